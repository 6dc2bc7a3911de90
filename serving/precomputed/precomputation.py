"""Writing of computed rows (scores, lists of candidates) into a store with look-up by key."""

import json
import sqlite3
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from mirrorspark.data_pipelines.features import repeated_names
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import WriteError, map_batches, progress_bar
from mirrorspark.scoring.output import VERSION_COLUMN
from mirrorspark.serving.precomputed.store_file import (
    INTEGER,
    ROWS_TABLES,
    TEXT,
    StoreError,
    StoreMetadata,
    row_checksum,
    seal,
)
from mirrorspark.spark_session import SPARK_ERRORS, first_line, on_running_session, task_message, versions
from mirrorspark.storage import Location, StoragePath, abilities, atomic_file, lakes, meant
from mirrorspark.storage.publish import SaveMode

# Rows that are Python objects at a time, because these take many times the memory of Arrow.
_ROWS_AT_A_TIME = 1024
# Limit for a row in an error message.
_SHOWN_CHARACTERS = 200
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_JSON_TYPES = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_null,
)

Encoded: TypeAlias = tuple[int | str | None, str, str | None]
"""A key, the other columns as a JSON array, and the version of the model that made them."""


@on_running_session
def precompute(
    table: DataFrame | Location | Sequence[Location],
    store: str | Path,
    *,
    key: str,
    fallback: Mapping[str, Any] | None = None,
    mode: str = "error",
) -> StoreMetadata:
    """Write the rows of a table into one file, for look-up by :class:`serving.precomputed.PrecomputedScores`.

    The file appears complete, in one step; readers that have a previous file open continue to read it. Values are
    Python's booleans, integers, floats (including NaN), strings, lists, dicts for structs, and None. Memory is bounded
    by batches.

    Args:
        table: A DataFrame, for example from :func:`scoring.score` or :func:`recommending.recommend`, or
            Parquet files, folders or globs, for example from :func:`scoring.score_files`. Files are read in this
            process, without Spark. A DataFrame is computed once, by all tasks, and cached on the executors' disks.
        store: The file, on a local disk.
        key: Key column of integers or strings; keys must be unique.
        fallback: The row for keys that are not in the table: a value for each column except the key.
        mode: Treatment of an existing file: ``error`` or ``overwrite``.

    Returns:
        The metadata of the store.

    Raises:
        StoreError: The key column is missing or has a null or a duplicate; a column has a type that JSON lacks; the
            fallback has other columns than the table; the table has no rows or only the key.
        FileExistsError: The mode is ``error`` and the file exists.
        FileNotFoundError: There are no Parquet files.
        LakeTableError: ``table`` or ``store`` is, or lies in, a Delta, Iceberg or Hudi table.
        ParquetError: A file is not Parquet, or has other columns than the first one.
        StorageError: The store is not on a local disk.
        WriteError: A task of the DataFrame failed; the message gives the reason.
        OSError: The disk rejects the write. The new store is not visible, as in all cases above.
    """
    save_mode, target = _save_mode(mode), StoragePath.of(StoragePath.of(store).local.resolve())
    _check_place(target, save_mode)
    source = (
        _SparkRows(table)
        if isinstance(table, DataFrame)
        else _FileRows(parquet_rows.ParquetRows.of(_listed(table), None))
    )
    columns = _columns(source.schema, key)
    fallback_text = None if fallback is None else _fallback_text(fallback, source.schema, key)
    with _atomic_file(target, save_mode) as path, closing(source.encoded(key)) as rows:
        return _written(path, columns, rows, fallback_text)


@dataclass(frozen=True)
class _FileRows:
    """Rows of Parquet files that this process reads."""

    rows: parquet_rows.ParquetRows

    @property
    def schema(self) -> pa.Schema:
        return self.rows.schema

    def encoded(self, key: str) -> Generator[Encoded, None, None]:
        """Yield the rows in the order of the files."""
        for batch in encoded_batches(self.rows.batches(self.rows.groups, 1), key):
            keys, values, versions = (column.to_pylist() for column in batch.columns)
            yield from zip(keys, values, versions, strict=True)


@dataclass(frozen=True)
class _SparkRows:
    """Rows of a DataFrame that Spark tasks encode."""

    table: DataFrame

    @property
    def schema(self) -> pa.Schema:
        try:
            return versions.to_arrow_schema(self.table.schema)
        except PySparkException as error:
            raise StoreError(f"the table has a column that cannot be kept: {first_line(error)}; cast it") from error

    def encoded(self, key: str) -> Generator[Encoded, None, None]:
        """Yield the rows, one partition after the other.

        Raises:
            WriteError: A task failed.
        """
        keys = "bigint" if _key_type(self.schema, key) == INTEGER else "string"
        rows = map_batches(self.table, EncodeTask(key), f"key {keys}, value string, {VERSION_COLUMN} string")
        # The iterator fetches partitions one by one. Without this cache only one task would run at a time.
        rows.persist(StorageLevel.DISK_ONLY)
        try:
            with progress_bar(self.table.sparkSession, "precompute"):
                rows.count()
            yield from rows.toLocalIterator(prefetchPartitions=True)
        except SPARK_ERRORS as error:
            raise WriteError(f"the table cannot be computed: {task_message(error)}") from error
        finally:
            rows.unpersist()


@dataclass(frozen=True)
class EncodeTask:
    """Body of a Spark task that encodes rows as keys and JSON.

    Attributes:
        key: Name of the key column.
    """

    key: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        yield from encoded_batches(batches, self.key)


def encoded_batches(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows as ``key``, ``value`` (JSON of the other columns) and ``model_version``, in small batches."""
    for whole in batches:
        for start in range(0, whole.num_rows, _ROWS_AT_A_TIME):
            batch = whole.slice(start, _ROWS_AT_A_TIME)
            names = batch.schema.names
            values = [batch.column(name).to_pylist() for name in names if name != key]
            columns = {
                "key": batch.column(key).cast(_arrow_type(_key_type(batch.schema, key))),
                "value": pa.array([_JSON.encode(row) for row in zip(*values, strict=True)], pa.string()),
                VERSION_COLUMN: _versions(batch),
            }
            yield pa.RecordBatch.from_pydict(columns)


def _versions(batch: pa.RecordBatch) -> pa.Array:
    """Return the model version of each row; nulls if there is no such column."""
    place = batch.schema.get_field_index(VERSION_COLUMN)
    if place < 0 or not pa.types.is_string(batch.schema.field(place).type):
        return pa.nulls(batch.num_rows, pa.string())
    return batch.column(place)


def _columns(schema: pa.Schema, key: str) -> dict[str, str]:
    """Return the types of the columns by name, the key first.

    Raises:
        StoreError: A store cannot hold them.
    """
    names = schema.names
    repeated = repeated_names(names)
    if repeated:
        raise StoreError(f"the table has the columns {repeated} twice; rename or leave out one of each")
    if key not in names:
        raise StoreError(f"the table has no column '{key}' to find rows by; it has {names}{meant(key, names)}")
    if len(names) == 1:
        raise StoreError(f"the table has no column but the key '{key}'; there is nothing to find")
    for field in schema:
        if not _fits_json(field.type):
            raise StoreError(
                f"column '{field.name}' has type {field.type}, which JSON does not know; cast it, or drop it"
            )
    return {key: _key_type(schema, key)} | {field.name: str(field.type) for field in schema if field.name != key}


def _key_type(schema: pa.Schema, key: str) -> str:
    found = schema.field(key).type
    # SQLite's integers are signed.
    if pa.types.is_integer(found) and found != pa.uint64():
        return INTEGER
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return TEXT
    raise StoreError(f"the key '{key}' has type {found}; cast it to bigint or string")


def _arrow_type(key_type: str) -> pa.DataType:
    return pa.int64() if key_type == INTEGER else pa.string()


def _fits_json(type_: pa.DataType) -> bool:
    """Return whether values of a type survive a round trip through JSON."""
    if pa.types.is_struct(type_):
        return all(_fits_json(type_.field(place).type) for place in range(type_.num_fields))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return _fits_json(type_.value_type)
    return any(is_type(type_) for is_type in _JSON_TYPES)


def _fallback_text(fallback: Mapping[str, Any], schema: pa.Schema, key: str) -> str:
    """Return the fallback in the encoding of rows.

    Raises:
        StoreError: Its columns differ from the table's, or a column cannot hold its value.
    """
    fields = [field for field in schema if field.name != key]
    wanted, found = sorted(field.name for field in fields), sorted(fallback)
    if wanted != found:
        raise StoreError(f"the fallback has the columns {found}, and rows have {wanted}; give each a value, or None")
    try:
        row = [pa.array([fallback[field.name]], field.type).to_pylist()[0] for field in fields]
    except (pa.ArrowException, TypeError) as error:
        raise StoreError(f"the fallback is none of the table's rows: {error}; give values of their types") from error
    return _JSON.encode(row)


def _written(path: Path, columns: Mapping[str, str], rows: Iterable[Encoded], fallback: str | None) -> StoreMetadata:
    """Write rows and metadata into a new file.

    Raises:
        StoreError: There are no rows, or a key is null or a duplicate.
        OSError: The disk rejects the write.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            count, versions = _filled(connection, columns, rows)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            metadata = StoreMetadata(columns, count, tuple(sorted(versions)), created, fallback)
            metadata.save(connection)
            connection.commit()
    except sqlite3.OperationalError as error:
        raise OSError(f"{path.parent} takes no store: {error}") from error
    seal(path)
    return metadata


def _filled(
    connection: sqlite3.Connection, columns: Mapping[str, str], encoded: Iterable[Encoded]
) -> tuple[int, set[str]]:
    """Insert the rows; return their number and their model versions.

    Raises:
        StoreError: There are no rows, or a key is null or a duplicate.
    """
    key = next(iter(columns))
    # An incomplete file is never visible and is thrown away, so it needs no journal.
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(ROWS_TABLES[columns[key]])
    versions: set[str] = set()
    last: int | str | None = None
    rows = 0

    def checked_rows() -> Iterator[tuple[int | str, str, int]]:
        nonlocal rows, last
        for last, value, version in encoded:
            if last is None:
                shown = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}..."
                raise StoreError(f"the key '{key}' is null in a row with {shown}; leave such rows out")
            if version is not None:
                versions.add(version)
            rows += 1
            yield last, value, row_checksum(last, value)

    try:
        connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", checked_rows())
    except sqlite3.IntegrityError as error:
        raise StoreError(
            f"the key {last!r} of column '{key}' is there twice; keep one row of each key, such as by "
            f"dropDuplicates(['{key}'])"
        ) from error
    if not rows:
        raise StoreError("the table has no rows: everybody would get the fallback; give one that has some")
    return rows, versions


def _listed(locations: Location | Sequence[Location]) -> Location | list[Location]:
    return locations if isinstance(locations, str | Path | StoragePath) else list(locations)


def _save_mode(mode: str) -> SaveMode:
    found = SaveMode.of(mode)
    if found not in (SaveMode.ERROR, SaveMode.OVERWRITE):
        raise StoreError(f"mode '{found}' is none of a store, which is written whole; use error or overwrite")
    return found


def _check_place(store: StoragePath, mode: SaveMode) -> None:
    lakes.refuse_lake_write(store)
    if store.local.is_dir():
        raise StoreError(f"{store} is a folder; a store is a file: name one in it")
    if mode is SaveMode.ERROR and store.local.exists():
        raise FileExistsError(f"{store} exists already; use mode 'overwrite' to replace it, or another path")


@contextmanager
def _atomic_file(store: StoragePath, mode: SaveMode) -> Iterator[Path]:
    """Yield the path of a temporary file, which becomes ``store`` at the end, or is removed if the block raises."""
    store.parent.make_folder()
    with _writable_by_sqlite(store.local) as partial:
        yield partial
        StoragePath.of(partial).flush_to_disk()
        _check_place(store, mode)
        atomic_file.move(partial, store.local)
        store.parent.flush_to_disk()


@contextmanager
def _writable_by_sqlite(store: Path) -> Iterator[Path]:
    """Yield the path of a temporary file next to ``store``, or on a local disk where SQLite cannot write there."""
    if abilities.can_hold_sqlite(store):
        with atomic_file.temporary_beside(store) as file:
            yield file
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch, store.name)
