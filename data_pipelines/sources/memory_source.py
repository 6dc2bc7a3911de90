"""A small table in memory that is converted: this process does what Spark's tasks do, with the same result.

The first jobs of a Spark session take longer than all the work on some thousands of rows.
"""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField, StructType

from mirrorspark.data_pipelines.memory_tables import CATEGORIES
from mirrorspark.data_pipelines.sources import hashes
from mirrorspark.data_pipelines.sources.source import ORDER_COLUMN, ROW_HASH_COLUMN, ShardTask, sortable_columns
from mirrorspark.data_pipelines.sources.token_counts import ranked_here
from mirrorspark.data_pipelines.spark import BatchFunction, with_notes
from mirrorspark.spark_session import session_of, versions
from mirrorspark.storage import StoragePath

# Up to here this process is done before a session of Spark has started.
MOST_ROWS = 100_000
MOST_BYTES = 256 << 20

# As many rows as Spark sends to a task at a time.
_BATCH_ROWS = 10_000
_TIME_ZONE = "UTC"
# Spark writes the metadata of a column as JSON under this name.
_SPARK_NOTE = "SPARK::metadata::json"
# Types of keys whose text and hash are the same here as in Spark. A float has other digits in Java.
_KEY_TYPES = (pa.types.is_integer, pa.types.is_string, pa.types.is_boolean, pa.types.is_date32)
# Spark reads texts as times, too.
_TIMES = (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date32)


@dataclass(frozen=True)
class MemorySource:
    """A :class:`data_pipelines.sources.Source` in this process's memory.

    Attributes:
        rows: The table, in the types in which Spark sends it to tasks.
        schema: The columns, in the types of Spark.
    """

    rows: pa.Table
    schema: StructType

    @classmethod
    def of(cls, table: pa.Table) -> "MemorySource":
        """Return a table from :func:`data_pipelines.memory_tables.in_arrow` as a source."""
        found = versions.from_arrow_schema(table.schema.remove_metadata(), prefer_timestamp_ntz=False)
        notes = [_note(field) for field in table.schema]
        sent = [
            field.with_metadata({_SPARK_NOTE: json.dumps(note, separators=(",", ":"))} if note else None)
            for field, note in zip(versions.to_arrow_schema(found), notes, strict=True)
        ]
        rows = pa.Table.from_arrays([*table.columns], table.column_names).cast(pa.schema(sent))
        fields = zip(found, notes, strict=True)
        return cls(rows, StructType([StructField(of.name, of.dataType, of.nullable, note) for of, note in fields]))

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.rows.column_names)

    def to_spark(self, spark: SparkSession) -> DataFrame:
        """Return the table as a DataFrame."""
        notes = {field.name: field.metadata for field in self.schema}
        return with_notes(session_of(spark).table_of(self.rows), notes)

    def select(self, *names: str) -> "MemorySource":
        """Return the table with some of its columns."""
        return MemorySource(self.rows.select(list(names)), StructType([self.schema[name] for name in names]))

    def where(self, name: str, value: str) -> "MemorySource":
        """Return the rows with a value in a column."""
        return MemorySource(self.rows.filter(pc.equal(self.rows[name], value)), self.schema)

    def filter(self, mask: pa.BooleanArray) -> "MemorySource":
        """Return the rows where ``mask`` is true, bool ``[rows]``."""
        return MemorySource(self.rows.filter(mask), self.schema)

    def with_column(self, name: str, values: pa.Array) -> "MemorySource":
        """Return the table with one more column."""
        added = versions.from_arrow_schema(pa.schema([(name, values.type)]))
        return MemorySource(self.rows.append_column(name, values), StructType([*self.schema, *added]))

    def column(self, name: str) -> pa.Array:
        """Return a column as one array."""
        return self.rows[name].combine_chunks()

    def progress(self, name: str) -> AbstractContextManager[None]:
        """Return a context without a bar: the work is done in a moment."""
        return contextlib.nullcontext()

    def without_rows(self, columns: Sequence[str]) -> pa.Table:
        """Return an empty table of some columns; see :class:`data_pipelines.sources.Source`."""
        return self.rows.select(list(columns)).slice(0, 0)

    def hashes(self, *columns: pa.Array) -> np.ndarray:
        """Return Spark's ``xxhash64`` of some columns, int64 ``[rows]``."""
        return hashes.xxhash64(columns, self.rows.num_rows)

    def in_shards(
        self, task: ShardTask, split_column: str, columns: Sequence[str], keys: Sequence[str], shards: int
    ) -> list[str]:
        """Divide the rows among shards, and do the task for each; see :class:`data_pipelines.sources.Source`."""
        sortable = sortable_columns(self.schema, columns)
        order = self.hashes(*map(self.column, keys))
        added = {ORDER_COLUMN: order, ROW_HASH_COLUMN: self.hashes(*map(self.column, sortable))}
        table = self.rows.select([split_column])
        for name, values in added.items():
            table = table.append_column(pa.field(name, pa.int64(), nullable=False), pa.array(values))
        for name in columns:
            table = table.append_column(self.rows.schema.field(name), self.rows[name])
        shard_of = hashes.partitions(map(self.column, keys), self.rows.num_rows, shards)
        outcomes = []
        for shard in range(shards):
            places = np.flatnonzero(shard_of == shard)
            places = self._in_order(places[np.argsort(order[places], kind="stable")], order, sortable)
            batches = table.take(pa.array(places)).combine_chunks().to_batches(max_chunksize=_BATCH_ROWS)
            outcomes.append(task.outcome(shard, [batch for batch in batches if batch.num_rows]))
        return outcomes

    def outcomes(self, task: BatchFunction, count: int) -> list[str]:
        """Do a task for each number; see :class:`data_pipelines.sources.Source`."""
        numbers = pa.RecordBatch.from_pydict({"id": pa.array(range(count), pa.int64())})
        return [outcome for batch in task([numbers]) for outcome in batch.column(0).to_pylist()]

    def ranked_tokens(self, files: Sequence[str], least: Mapping[str, int], folder: StoragePath) -> list[StoragePath]:
        """Sum and rank counts of tokens; see :class:`data_pipelines.sources.Source`."""
        return ranked_here(files, least, folder)

    def _in_order(self, places: np.ndarray, order: np.ndarray, sortable: Sequence[str]) -> np.ndarray:
        """Return the places of rows in their order by ``order``, with rows of equal order sorted by their columns."""
        hashed = order[places]
        starts = np.flatnonzero(np.concatenate([[True], hashed[1:] != hashed[:-1], [True]]))
        for start, stop in itertools.pairwise(starts):
            if stop - start > 1:
                rows = self.rows.select(list(sortable)).take(pa.array(places[start:stop])).to_pylist()
                keys = [[_sort_key(value) for value in row.values()] for row in rows]
                places[start:stop] = [places[start + place] for place in sorted(range(len(rows)), key=keys.__getitem__)]
        return places

    def content_sums(self) -> tuple[int, int | None, int | None]:
        """Return the number of rows and two sums of their hashes, as Spark has them."""
        rows = self.rows.num_rows
        parts = [part for name in self.columns for part in _hashed(self.column(name))]
        found = [self.hashes(pa.array(np.full(rows, seed, np.int32)), *parts) for seed in (1, 2)]
        first, second = (sum(map(int, of_rows)) if rows else None for of_rows in found)
        return rows, first, second


def why_not_here(source: MemorySource, keys: Sequence[str], time: str | None = None) -> str | None:
    """Return the reason why a table in memory is left to Spark, or None for one that this process converts.

    Args:
        source: The table.
        keys: Columns that identify a row.
        time: The time of a row, where rows are split by it.
    """
    rows, active = source.rows, SparkSession.getActiveSession()
    zone = _TIME_ZONE if active is None else active.conf.get("spark.sql.session.timeZone")
    texts = [key for key in keys if key in source.columns and not _is_any(rows.schema.field(key).type, _KEY_TYPES)]
    times = [name for name in (time,) if name in source.columns and not _is_any(rows.schema.field(name).type, _TIMES)]
    reasons = {
        f"it has {rows.num_rows:,} rows, more than {MOST_ROWS:,}": rows.num_rows > MOST_ROWS,
        f"it takes {rows.nbytes >> 20:,} MB, more than {MOST_BYTES >> 20}": rows.nbytes > MOST_BYTES,
        f"the session's time zone is {zone}, not {_TIME_ZONE}": zone != _TIME_ZONE,
        f"only Spark writes the keys {texts} as text": bool(texts),
        f"only Spark reads the time {times} in order": bool(times),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _is_any(kind: pa.DataType, checks: Iterable[Callable[[pa.DataType], bool]]) -> bool:
    return any(check(kind) for check in checks)


def _note(field: pa.Field) -> dict[str, Any] | None:
    """Return the metadata that a column has in Spark."""
    found = (field.metadata or {}).get(CATEGORIES.encode())
    return None if found is None else {CATEGORIES: json.loads(found)}


def _sort_key(value: Any) -> tuple[Any, ...]:
    """Return a key by which Python orders values as Spark does: null before all others, NaN behind them."""
    if value is None:
        return (0,)
    if isinstance(value, float) and math.isnan(value):
        return (2,)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return (1, value if parts is None else tuple(map(_sort_key, parts)))


def _hashed(column: pa.Array) -> list[pa.Array]:
    """Return the columns to hash for a column; see ``converted_once``, which has the same in Spark's expressions."""
    if pa.types.is_map(column.type):
        return _hashed(_sorted_entries(column))
    if pa.types.is_struct(column.type):
        return [column.is_null(), *(part for field in column.flatten() for part in _hashed(field))]
    if pa.types.is_list(column.type):
        lengths, elements = pc.list_value_length(column), column.flatten()
        hashed = pa.array(hashes.xxhash64(_hashed(elements), len(elements)), pa.int64())
        ends = np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))
        offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
        # A null list is left out of the hash by its length, too.
        items = pa.ListArray.from_arrays(offsets, hashed)
        return [column.is_null(), lengths.cast(pa.int32()), items]
    return [column.is_null(), column]


def _sorted_entries(column: pa.MapArray) -> pa.ListArray:
    """Return maps as lists of structs, in the order of their keys."""
    entry = pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])
    lists = column.cast(pa.list_(entry))
    parents, entries = pc.list_parent_indices(lists), lists.flatten()
    keys = entries.field("key")
    order = pc.sort_indices(pa.table({"parent": parents, "key": keys}), [("parent", "ascending"), ("key", "ascending")])
    ends = np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(offsets, entries.take(order), mask=mask)
