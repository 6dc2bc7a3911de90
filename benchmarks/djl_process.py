"""The process of DJL: the same Spark, with DJL and the class of ``DjlScore.java`` in its JVM.

It takes requests on its standard input, one JSON object per line, and answers each with one line of JSON.
"""

import json
import sys
import time
from typing import Any

from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.connector_process import RESULT_PREFIX


def serve() -> None:
    """Answer requests until the input ends."""
    session = spark_work.session()
    for line in sys.stdin:
        print(RESULT_PREFIX + json.dumps(_answer(session, json.loads(line))), flush=True)
    session.stop()


def _answer(session: SparkSession, request: dict[str, Any]) -> dict[str, Any]:
    jvm: Any = session.sparkContext._jvm
    if request["work"] == "versions":
        engine = jvm.ai.djl.engine.Engine
        return {"djl": engine.getDjlVersion(), "tensorflow": engine.getEngine("TensorFlow").getVersion()}
    ids, numbers, method = request["ids"], request["numbers"], getattr(jvm.benchmarks.DjlScore, request["method"])
    start = time.perf_counter()
    table: Any = session.read.parquet(*request["files"]).select("key", *ids, *numbers)
    scored = method(table._jdf, request["model"], len(ids), len(numbers), request["batch_rows"])
    scored.write().parquet(request["target"])
    return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    serve()
