"""A Spark task for each share of the row groups of Parquet files, which it reads itself."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from data_pipelines.parquet_rows import ParquetRows, RowGroups
from data_pipelines.task_numbers import numbered_partitions, numbers_of


@dataclass(frozen=True)
class Shares:
    """Rows of Parquet files as they are dealt to tasks: a plain value that pickles.

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
