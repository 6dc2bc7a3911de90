"""The process of the JVM connector: runs in an environment that has Spark 3.5 and nothing of ours.

It takes requests on its standard input, one JSON object per line, and answers each with one line of JSON.
"""

import json
import sys
import time
from typing import Any

RESULT_PREFIX = "RESULT "
"""Begins every answer: Spark, too, may write to the standard output."""


def serve(slots: int) -> None:
    """Answer requests until the input ends."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master(f"local[{slots}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "UTC")
        .getOrCreate()
    )
    for line in sys.stdin:
        print(RESULT_PREFIX + json.dumps(_answer(spark, json.loads(line))), flush=True)
    spark.stop()


def _answer(spark: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["work"] == "versions":
        java = spark.sparkContext._jvm.java.lang.System.getProperty("java.version")
        return {"spark": spark.version, "java": java}
    start = time.perf_counter()
    if request["work"] == "write":
        table = spark.read.parquet(*request["source"])
        table.write.format("tfrecord").option("recordType", "Example").save(request["target"])
    else:
        reader = spark.read.format("tfrecord").option("recordType", "Example").schema(request["columns"])
        reader.load(request["source"]).write.format("noop").mode("overwrite").save()
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve(int(sys.argv[1]))
