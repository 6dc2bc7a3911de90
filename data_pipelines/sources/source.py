"""The interface of a table that is converted."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import pyarrow as pa
from pyspark.sql.types import ArrayType, DataType, MapType, StructType, UserDefinedType

from mirrorspark.data_pipelines.spark import BatchFunction
from mirrorspark.storage import StoragePath

# Another hash than that by which keys are divided among shards, so a shard's rows are a fair sample of this one.
ORDER_COLUMN = "row order"
# A hash of every column that Spark can compare: equal rows are neighbours.
ROW_HASH_COLUMN = "row hash"


class ShardTask(Protocol):
    """The work on the rows of one shard."""

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome, as a task of Spark."""

    def outcome(self, shard: int, batches: Iterable[pa.RecordBatch]) -> str:
        """Return the outcome of a shard, given its number."""


class Source(Protocol):
    """A table, and the place where the work on its rows is done."""

    @property
    def schema(self) -> StructType:
        """The columns, in the types of Spark."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""

    def progress(self, name: str) -> AbstractContextManager[None]:
        """Return a context that shows a bar of the work inside it, if there is one to show."""

    def without_rows(self, columns: Sequence[str]) -> pa.Table:
        """Return an empty table of some columns, in the types in which tasks get them."""

    def in_shards(
        self, task: ShardTask, split_column: str, columns: Sequence[str], keys: Sequence[str], shards: int
    ) -> list[str]:
        """Divide the rows among shards by a hash of the keys, and return the outcome of ``task`` for each.

        The rows of a shard have the column of the split, ``ORDER_COLUMN`` and ``ROW_HASH_COLUMN``, then ``columns``.
        They are ordered by another hash of the keys, and rows of equal keys by their columns, so the same table gives
        the same shards whatever the order of its rows.
        """

    def outcomes(self, task: BatchFunction, count: int) -> list[str]:
        """Return the outcomes of a task for the numbers from 0 to ``count`` (not included)."""

    def ranked_tokens(self, files: Sequence[str], least: Mapping[str, int], folder: StoragePath) -> list[StoragePath]:
        """Sum counts of tokens, and write them by name, falling count, and bytes of the token.

        Args:
            files: URIs of files of ``TOKEN_COUNTS_SCHEMA``.
            least: Per name, the count below which a token is left out.
            folder: Folder for the new files, of the same schema.

        Returns:
            The files, in order.
        """


def sortable_columns(schema: StructType, columns: Sequence[str]) -> list[str]:
    """Return the columns that Spark can order: not maps, nor types that contain one."""
    return [name for name in columns if _is_sortable(schema[name].dataType)]


def _is_sortable(data_type: DataType) -> bool:
    if isinstance(data_type, UserDefinedType):
        return _is_sortable(data_type.sqlType())
    if isinstance(data_type, ArrayType):
        return _is_sortable(data_type.elementType)
    if isinstance(data_type, StructType):
        return all(_is_sortable(part.dataType) for part in data_type)
    # A variant has no class before PySpark 4.0.
    return not isinstance(data_type, MapType) and data_type.typeName() != "variant"
