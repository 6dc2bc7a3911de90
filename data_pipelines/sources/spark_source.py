"""A DataFrame that is converted: Spark runs its query and the tasks on its rows."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.sources.source import (
    ORDER_COLUMN,
    ROW_HASH_COLUMN,
    ShardTask,
    Source,
    sortable_columns,
)
from mirrorspark.data_pipelines.sources.token_counts import ranked_by_spark
from mirrorspark.data_pipelines.spark import BatchFunction, map_batches, numbered_partitions, progress_bar
from mirrorspark.spark_session import versions
from mirrorspark.storage import StoragePath


@dataclass(frozen=True)
class SparkSource:
    """A :class:`data_pipelines.sources.Source` of any size, in Spark.

    Attributes:
        df: The table. Its query runs once, in :meth:`in_shards`.
    """

    df: DataFrame

    @property
    def schema(self) -> StructType:
        """The columns, in the types of Spark."""
        return self.df.schema

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.df.columns

    def progress(self, name: str) -> AbstractContextManager[None]:
        """Return a context that shows a bar of Spark's tasks."""
        return progress_bar(self.df.sparkSession, name)

    def without_rows(self, columns: Sequence[str]) -> pa.Table:
        """Return an empty table of some columns; see :class:`data_pipelines.sources.Source`."""
        return versions.arrow_table(self.df.select(*map(quoted, columns)).limit(0))

    def in_shards(
        self, task: ShardTask, split_column: str, columns: Sequence[str], keys: Sequence[str], shards: int
    ) -> list[str]:
        """Run the query, and a task for each shard; see :class:`data_pipelines.sources.Source`."""
        by_keys = [quoted(name) for name in keys]
        sortable = [quoted(name) for name in sortable_columns(self.schema, columns)]
        added = [F.xxhash64(*by_keys).alias(ORDER_COLUMN), F.xxhash64(*sortable).alias(ROW_HASH_COLUMN)]
        rows = (
            self.df.select(quoted(split_column), *added, *map(quoted, columns))
            .repartition(shards, *by_keys)
            .sortWithinPartitions(quoted(ORDER_COLUMN), *sortable)
        )
        return [row.outcome for row in map_batches(rows, task, "outcome string").collect()]

    def outcomes(self, task: BatchFunction, count: int) -> list[str]:
        """Run a task for each number; see :class:`data_pipelines.sources.Source`."""
        numbers = numbered_partitions(self.df.sparkSession, count)
        return [row.outcome for row in numbers.mapInArrow(task, "outcome string").collect()]

    def ranked_tokens(self, files: Sequence[str], least: Mapping[str, int], folder: StoragePath) -> list[StoragePath]:
        """Sum and rank counts of tokens; see :class:`data_pipelines.sources.Source`."""
        return ranked_by_spark(self.df.sparkSession, files, least, folder)


def source_of(table: DataFrame | Source) -> Source:
    """Return a table as a source."""
    return SparkSource(table) if isinstance(table, DataFrame) else table
