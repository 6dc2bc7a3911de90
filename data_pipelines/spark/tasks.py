"""Spark tasks of our own: how many there are, which part of the rows is whose, and how their code gets to executors."""

import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.reading.parquet_rows import ParquetRows, RowGroups
from mirrorspark.data_pipelines.spark.schema import with_plain_names

BatchFunction: TypeAlias = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""The body of a task: a top-level function, or a frozen dataclass that is called, so that it pickles by reference."""


def is_local(spark: SparkSession) -> bool:
    """Tell whether tasks run beside the driver, with its files and packages.

    ``local-cluster[...]`` does not count: it has executors of its own.
    """
    return re.match(r"local$|local\[", str(spark.sparkContext.master)) is not None


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


@dataclass(frozen=True)
class Shares:
    """Rows of Parquet files as they are dealt to tasks, which read them without Spark: a plain value that pickles.

    Attributes:
        source: The rows.
        groups: The row groups of each task; there is a task even where there is none.
    """

    source: ParquetRows
    groups: tuple[tuple[RowGroups, ...], ...]

    @classmethod
    def of(cls, source: ParquetRows, groups_per_task: Sequence[int]) -> "Shares":
        """Deal the row groups, in their order: so many to the first task, and so many to the next."""
        # Files without a row have no row groups; one task that gets none tells the columns of its result.
        return cls(source, source.shares(groups_per_task) or ((),))

    def partitions(self, spark: SparkSession) -> DataFrame:
        """Return the numbers of the shares, a partition for each."""
        return numbered_partitions(spark, len(self.groups))

    def read(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
        """Yield, in the task, number and rows of each share that ``batches`` number."""
        for number in numbers_of(batches):
            yield number, self.source.batches(self.groups[number], 1)


def portable(task: Callable[[Iterable[Any]], Iterator[Any]]) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return ``task`` in a form that an executor can unpickle even where our packages are missing, to say so.

    A task pickles as a reference to its module. Where Spark fails to import that, all that the user sees is a pickle
    error; the function below travels as code and imports for itself.
    """
    payload = pickle.dumps(task)

    def run(batches: Iterable[Any]) -> Iterator[Any]:
        import pickle
        import sys

        try:
            unpacked = pickle.loads(payload)  # noqa: S301 - the driver of this very job wrote it
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{sys.executable} on this executor cannot import '{error.name}'; install mirrorspark in the Python of "
                f"every executor (spark.pyspark.python, or an environment sent with --archives)",
                name=error.name,
            ) from error
        return unpacked(batches)

    return run


def map_batches(table: DataFrame, task: BatchFunction, schema: StructType | str) -> DataFrame:
    """Return what ``task`` makes of the rows of ``table``, whose columns may have any name.

    Args:
        table: The rows.
        task: The body of a task.
        schema: Of what it yields.
    """
    names = tuple(table.columns)
    return with_plain_names(table).mapInArrow(portable(NamedTask(names, task)), schema)


@dataclass(frozen=True)
class NamedTask:
    """The body of a task whose batches have lost the names of their columns.

    Attributes:
        names: Of the columns.
        task: Gets the batches with these names.
    """

    names: tuple[str, ...]
    task: BatchFunction

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what the task does."""
        return self.task(batch.rename_columns(self.names) for batch in batches)
