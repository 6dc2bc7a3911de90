"""Write rows that are there (scores, lists of candidates) into a store that answers by key, for :mod:`.precomputed`."""

import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pyarrow as pa
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql.pandas.types import to_arrow_schema

from data_pipelines.file_writes import WriteError
from data_pipelines.parquet_rows import ParquetRows
from data_pipelines.publish import SaveMode
from data_pipelines.repeated_names import repeated_names
from data_pipelines.spark_errors import first_line, task_message
from data_pipelines.storage import Location, StoragePath
from scoring.precomputed import INTEGER, ROWS_TABLES, TEXT, StoreError, StoreMetadata
from scoring.scorer import VERSION_COLUMN
from scoring.shipping import map_batches

# Python's objects take many times what Arrow's do: no more rows than this are objects at a time.
_ROWS_AT_A_TIME = 1024
# Of a row that is shown in a message.
_SHOWN_CHARACTERS = 200
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_KEPT_IN_JSON = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_null,
)

Encoded: TypeAlias = tuple[int | str | None, str, str | None]
"""A key, the columns behind it as a JSON array, and the version of the model that made them."""


def precompute(
    table: DataFrame | Location | Sequence[Location],
    store: str | Path,
    *,
    key: str,
    fallback: Mapping[str, Any] | None = None,
    mode: str = "error",
) -> StoreMetadata:
    """Write every row of a table into one file, in which :class:`scoring.precomputed.PrecomputedScores` finds it.

    The file appears whole, in one step; who has the one of before open goes on reading that. Values are what they are
    in Python: booleans, integers, floats (NaN too), texts, lists, structs as dicts, None. Memory is bounded by batches.

    Args:
        table: The rows: a DataFrame, such as :func:`scoring.batch.score` or :func:`scoring.recommend.recommend` return,
            or Parquet files, folders or globs, such as :func:`scoring.files.score_files` writes. Files are read here,
            without Spark. A DataFrame is computed once, by all tasks, which keep it on their disks meanwhile.
        store: The file, on a local disk.
        key: The column to find rows by, of integers or texts; each row has one of its own.
        fallback: The row of all keys that are not in the table: a value for each column but the key.
        mode: What becomes of a file that is there: ``error`` or ``overwrite``.

    Returns:
        What the store says of itself.

    Raises:
        StoreError: There is no such key, it has a null, or the same value twice; a column has a type that JSON does not
            know; the fallback does not have the table's columns; there is no row, or nothing but the key.
        FileExistsError: The mode is ``error``, and there is a file.
        FileNotFoundError: There are no Parquet files.
        ParquetError: A file is not Parquet, or has other columns than the first.
        StorageError: The store is not on a local disk.
        WriteError: A task of the DataFrame failed; the message says why.
        OSError: The disk refuses. Nothing of the new store is visible, nor in any case above.
    """
    save_mode, target = _save_mode(mode), StoragePath.of(StoragePath.of(store).local.resolve())
    _check_place(target, save_mode)
    source = _SparkRows(table) if isinstance(table, DataFrame) else _FileRows(ParquetRows.of(_listed(table), None))
    columns = _columns(source.schema, key)
    fallback_text = None if fallback is None else _fallback_text(fallback, source.schema, key)
    with _appearing(target, save_mode) as path, closing(source.encoded(key)) as rows:
        return _written(path, columns, rows, fallback_text)


@dataclass(frozen=True)
class _FileRows:
    """Rows of Parquet files, which are read in this process."""

    rows: ParquetRows

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
    """Rows of a DataFrame, which its tasks encode."""

    table: DataFrame

    @property
    def schema(self) -> pa.Schema:
        try:
            return to_arrow_schema(self.table.schema, timezone="UTC")
        except PySparkException as error:
            raise StoreError(f"the table has a column that cannot be kept: {first_line(error)}; cast it") from error

    def encoded(self, key: str) -> Generator[Encoded, None, None]:
        """Yield the rows, a partition after the other.

        Raises:
            WriteError: A task failed.
        """
        keys = "bigint" if _key_type(self.schema, key) == INTEGER else "string"
        rows = map_batches(self.table, EncodeTask(key), f"key {keys}, value string, {VERSION_COLUMN} string")
        # Partitions come here one by one. If they were computed then, one task would run at a time.
        rows.persist(StorageLevel.DISK_ONLY)
        try:
            rows.count()
            yield from rows.toLocalIterator(prefetchPartitions=True)
        except (Py4JJavaError, PySparkException) as error:
            raise WriteError(f"the table cannot be computed: {task_message(error)}") from error
        finally:
            rows.unpersist()


@dataclass(frozen=True)
class EncodeTask:
    """The body of a task that makes keys and JSON of rows.

    Attributes:
        key: Name of the key column.
    """

    key: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order."""
        yield from encoded_batches(batches, self.key)


def encoded_batches(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows as ``key``, ``value`` (JSON of the other columns) and ``model_version``, some at a time."""
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
    """Return which version of a model made each row; nulls where no column says so."""
    place = batch.schema.get_field_index(VERSION_COLUMN)
    if place < 0 or not pa.types.is_string(batch.schema.field(place).type):
        return pa.nulls(batch.num_rows, pa.string())
    return batch.column(place)


def _columns(schema: pa.Schema, key: str) -> dict[str, str]:
    """Return name and type of each column, the key first.

    Raises:
        StoreError: A store cannot hold them.
    """
    names = schema.names
    repeated = repeated_names(names)
    if repeated:
        raise StoreError(f"the table has the columns {repeated} twice; rename or leave out one of each")
    if key not in names:
        raise StoreError(f"the table has no column '{key}' to find rows by; it has {names}")
    if len(names) == 1:
        raise StoreError(f"the table has no column but the key '{key}'; there is nothing to find")
    for field in schema:
        if not _is_kept(field.type):
            raise StoreError(
                f"column '{field.name}' has type {field.type}, which JSON does not know; cast it, or drop it"
            )
    return {key: _key_type(schema, key)} | {field.name: str(field.type) for field in schema if field.name != key}


def _key_type(schema: pa.Schema, key: str) -> str:
    found = schema.field(key).type
    # SQLite's integers have a sign.
    if pa.types.is_integer(found) and found != pa.uint64():
        return INTEGER
    if pa.types.is_string(found) or pa.types.is_large_string(found):
        return TEXT
    raise StoreError(f"the key '{key}' has type {found}; cast it to bigint or string")


def _arrow_type(key_type: str) -> pa.DataType:
    return pa.int64() if key_type == INTEGER else pa.string()


def _is_kept(type_: pa.DataType) -> bool:
    """Whether values of that type come back from JSON as they were."""
    if pa.types.is_struct(type_):
        return all(_is_kept(type_.field(place).type) for place in range(type_.num_fields))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return _is_kept(type_.value_type)
    return any(is_kept(type_) for is_kept in _KEPT_IN_JSON)


def _fallback_text(fallback: Mapping[str, Any], schema: pa.Schema, key: str) -> str:
    """Return the fallback as rows are kept.

    Raises:
        StoreError: It does not have the columns behind the key, or a value that a column cannot hold.
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
    """Write the rows into a new file, and what it says of itself.

    Raises:
        StoreError: There are none, or a key is null, or is there twice.
        OSError: The disk refuses.
    """
    try:
        with closing(sqlite3.connect(path)) as connection:
            count, versions = _filled(connection, columns, rows)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            metadata = StoreMetadata(columns, count, tuple(sorted(versions)), created, fallback)
            metadata.save(connection)
            connection.commit()
            return metadata
    except sqlite3.OperationalError as error:
        raise OSError(f"{path.parent} takes no store: {error}") from error


def _filled(
    connection: sqlite3.Connection, columns: Mapping[str, str], encoded: Iterable[Encoded]
) -> tuple[int, set[str]]:
    """Insert the rows; return how many there are, and the versions of the models that made them.

    Raises:
        StoreError: There are none, or a key is null, or is there twice.
    """
    key = next(iter(columns))
    # Nobody sees the file before it is whole, and of one that is not nothing is worth a journal.
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute(ROWS_TABLES[columns[key]])
    versions: set[str] = set()
    last: int | str | None = None
    rows = 0

    def told() -> Iterator[tuple[int | str, str]]:
        nonlocal rows, last
        for last, value, version in encoded:
            if last is None:
                shown = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}..."
                raise StoreError(f"the key '{key}' is null in a row with {shown}; leave such rows out")
            if version is not None:
                versions.add(version)
            rows += 1
            yield last, value

    try:
        connection.executemany("INSERT INTO rows VALUES (?, ?)", told())
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
    if store.local.is_dir():
        raise StoreError(f"{store} is a folder; a store is a file: name one in it")
    if mode is SaveMode.ERROR and store.local.exists():
        raise FileExistsError(f"{store} exists already; use mode 'overwrite' to replace it, or another path")


@contextmanager
def _appearing(store: StoragePath, mode: SaveMode) -> Iterator[Path]:
    """Yield where to write a file, which becomes ``store`` at the end; where the block raises, it is removed."""
    store.parent.make_folder()
    partial = store.parent / f".{store.name}.{uuid4().hex}"
    try:
        yield partial.local
        partial.flush_to_disk()
        _check_place(store, mode)
        partial.rename(store)
        store.parent.flush_to_disk()
    finally:
        partial.local.unlink(missing_ok=True)
