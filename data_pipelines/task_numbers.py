"""Which part of a job a Spark task does: the numbers that it is handed, or that of its partition."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession


def numbered_partitions(spark: SparkSession, count: int) -> DataFrame:
    """Return the numbers from 0 to ``count`` (not included), each in a partition of its own: a task for each."""
    # At least one partition, which is empty where there are no numbers.
    return spark.range(0, count, 1, max(1, count))


def numbers_of(batches: Iterable[pa.RecordBatch]) -> Iterator[int]:
    """Yield, in the task, the numbers of :func:`numbered_partitions` that it is handed."""
    for batch in batches:
        yield from batch.column(0).to_pylist()


def partition_id() -> int:
    """Return the number of the task's partition; 0 outside Spark."""
    context = TaskContext.get()
    return context.partitionId() if context else 0
