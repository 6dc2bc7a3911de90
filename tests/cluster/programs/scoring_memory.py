"""Score a partition of 10,000 rows, then one of a million, in one Python worker, and say what memory that took.

Prints a line for each: the tasks' counts, and the largest resident memory of the driver's Python so far, in bytes.
Argument: a linear model of the columns ``x0``, ``x1``, and so on.
"""

import dataclasses
import json
import os
import sys

from benchmarks.measure import peak_bytes
from mirrorspark.scoring.batch import score
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.task.counts import Counters
from mirrorspark.spark_session.start import open_session


def main() -> None:
    """Score rows that Spark makes, and have it count the scores."""
    model = resolve(sys.argv[1])
    columns = [f"CAST(id AS DOUBLE) AS {name}" for name in ModelDirectory.open(model.path).inputs.columns]
    spark = open_session(master="local[1]", workers=1)
    for rows in (10_000, 1_000_000):
        counters = Counters(spark)
        table = spark.range(rows, numPartitions=1).selectExpr("id", *columns)
        score(table, model, keys="id", counters=counters).agg({"score": "count"}).collect()
        # Not ru_maxrss, which has what the process was before it became this program.
        driver_bytes = peak_bytes(os.getpid())
        print(json.dumps(dataclasses.asdict(counters.value) | {"driver_bytes": driver_bytes}))
    spark.stop()


if __name__ == "__main__":
    main()
