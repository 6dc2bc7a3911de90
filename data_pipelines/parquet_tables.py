"""Parquet files of one table as a Spark DataFrame: columns that Spark does not read, and files whose schemas differ.

Spark refuses a whole file for one column of a type that it lacks, also for the nanoseconds in which pandas writes its
times.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines import held_columns
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.joined_files import as_one, warn_of_folders, with_folder_types
from mirrorspark.data_pipelines.reading.parquet_rows import ParquetError, ParquetFiles
from mirrorspark.spark_session import versions
from mirrorspark.storage import StoragePath, listing, literal_hadoop_uri

_LOGGER = logging.getLogger(__name__)

# Beyond this number of schemas Spark's plan gets slow.
_MOST_SCHEMAS = 100
# The name that pandas gives to an index that has none.
_INDEX = re.compile(r"__index_level_\d+__")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = "1970-01-01 00:00:00"


def read_parquet(
    spark: SparkSession,
    files: Sequence[listing.DataFile],
    base: StoragePath | None,
    folders: StructType,
    given: Sequence[str],
    columns: Sequence[str] | None = None,
) -> DataFrame:
    """Return the rows of Parquet files; of several schemas, each is read alone and its columns are widened.

    A column that Spark cannot hold is left out with a warning, and so is the index of a pandas DataFrame that has no
    name.

    Args:
        spark: The session.
        files: The files.
        base: Folder whose subfolders like ``day=3`` are columns; None without such folders.
        folders: Names and types of these columns.
        given: Locations as the user wrote them.
        columns: The columns to read; all by default.

    Raises:
        ParquetError: A file is not Parquet, has a column twice or a codec that Spark lacks, or no column can be held.
        SchemasError: Columns have types that do not make one.
    """
    groups: dict[frozenset[tuple[str, str]], list[StoragePath]] = defaultdict(list)
    schemas: dict[frozenset[tuple[str, str]], pa.Schema] = {}
    for file, footer in zip(files, ParquetFiles.of(files).footers, strict=True):
        if footer.unread:
            raise ParquetError(
                f"{file.path} is written with {' and '.join(footer.unread)}, which Spark does not read; write it with "
                f"zstd: df.to_parquet(path, compression='zstd')"
            )
        schema = pa.schema([field for field in footer.schema if columns is None or field.name in columns])
        key = frozenset((field.name, str(field.type)) for field in schema)
        groups[key].append(file.path)
        schemas[key] = schema
    if len(groups) > _MOST_SCHEMAS:
        raise ParquetError(f"the {len(files)} Parquet files have {len(groups)} schemas; write them with one")
    _tell_left_out(list(schemas.values()), files[0].path)
    warn_of_folders(base, (name for schema in schemas.values() for name in schema.names), folders)
    if len(groups) == 1 and columns is None:
        return _frame(spark, schemas.popitem()[1], [file.path for file in files], base, folders, given, is_whole=True)
    frames = {
        paths[0]: _frame(spark, schemas[key], paths, base, folders, given, is_whole=False)
        for key, paths in groups.items()
    }
    nulls = {
        groups[key][0]: {field.name for field in schema if pa.types.is_null(field.type)}
        for key, schema in schemas.items()
    }
    return _together({path: frame.drop(*nulls[path]) for path, frame in frames.items()}, given)


def _frame(
    spark: SparkSession,
    schema: pa.Schema,
    paths: Sequence[StoragePath],
    base: StoragePath | None,
    folders: StructType,
    given: Sequence[str],
    *,
    is_whole: bool,
) -> DataFrame:
    """Return the rows of files of one schema, which has all their columns if ``is_whole``."""
    reader = spark.read
    if base is not None:
        reader = reader.option("basePath", f"file://{base.uri}" if base.is_local else base.uri)
    kept = [field for field in schema if _reason(field.type) is None]
    typed = [field.with_type(_stored(field.type) or _known(field.type)) for field in kept]
    is_plain = is_whole and all(_stored(field.type) is None for field in kept) and len(kept) == len(schema)
    if not is_plain:
        stored = versions.from_arrow_schema(pa.schema([one for one in typed if one.name not in folders.names]))
        reader = reader.schema(StructType([*stored, *folders]))
    files = [literal_hadoop_uri(path, *given) for path in paths]
    frame = reader.parquet(*files)
    if is_plain and (wanted := with_folder_types(frame.schema, folders)) != frame.schema:
        frame = reader.schema(wanted).parquet(*files)
    if not is_plain:
        read = {field.name: _restored(quoted(field.name), field.type) for field in kept if _stored(field.type)}
        frame = frame.select(*[read.get(name, quoted(name)).alias(name) for name in frame.columns])
    return frame.drop(*filter(_INDEX.fullmatch, frame.columns))


def _tell_left_out(schemas: Sequence[pa.Schema], path: StoragePath) -> None:
    """Warn of the columns that are left out.

    Raises:
        ParquetError: They are all.
    """
    reasons = {
        field.name: reason for schema in schemas for field in schema if (reason := _reason(field.type)) is not None
    }
    if reasons and all(field.name in reasons for schema in schemas for field in schema):
        shown = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ParquetError(f"no column of {path} can be used: {shown}; write them as texts or numbers")
    held_columns.warn_of(reasons)
    if indexes := sorted({name for schema in schemas for name in schema.names if _INDEX.fullmatch(name)}):
        _LOGGER.info("%s: the index of a pandas DataFrame (%s) is not a column", path, ", ".join(indexes))


def _reason(kind: pa.DataType) -> str | None:
    """Return why a column of a type is left out; None if Spark can read it."""
    if held_columns.held_type(kind) is None:
        return f"Spark has no type for its values of {kind}"
    if not _is_read(kind):
        return f"Spark does not read values of {kind} from Parquet files"
    return None


def _is_read(kind: pa.DataType) -> bool:
    """Return whether Spark reads a type that it can hold, or whole numbers in its place, from Parquet files."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_read(kind.value_type)
    if pa.types.is_map(kind):
        return all(_is_read(part) and _stored(part) is None for part in (kind.key_type, kind.item_type))
    if pa.types.is_struct(kind):
        return all(_is_read(field.type) and _stored(field.type) is None for field in kind)
    return not pa.types.is_float16(kind)


def _stored(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of the numbers that Spark can read of a type that it does not; None for all others."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = _stored(kind.value_type)
        return None if element is None else pa.list_(element)
    is_count = pa.types.is_duration(kind) or (pa.types.is_timestamp(kind) and kind.unit == "ns")
    return pa.int64() if is_count else None


def _known(kind: pa.DataType) -> pa.DataType:
    """Return a type as Spark infers it from Parquet files: small unsigned numbers in the next width."""
    narrow = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.null(): pa.int32()}
    return narrow.get(kind) or held_columns.held_type(kind)


def _restored(column: Column, kind: pa.DataType) -> Column:
    """Return the values that the numbers of :func:`_stored` stand for, in microseconds."""
    if not (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)):
        return F.transform(column, lambda element: _restored(element, kind.value_type))
    whole = column.cast("decimal(20,0)")
    if pa.types.is_duration(kind):
        seconds = F.floor(whole * (10**6) / _PER_SECOND[kind.unit]) / 10**6
        return F.make_dt_interval(F.lit(0), F.lit(0), F.lit(0), seconds.cast("decimal(18,6)"))
    microseconds = F.floor(whole / 1000).cast("bigint")
    if kind.tz is not None:
        return F.timestamp_micros(microseconds)
    return versions.timestamp_add("MICROSECOND", microseconds, F.lit(_EPOCH).cast("timestamp_ntz"))


def _together(frames: Mapping[StoragePath, DataFrame], given: Sequence[str]) -> DataFrame:
    """Return the rows of files of several schemas, by an example file of each."""
    table = as_one(frames)
    lacking = [name for name in table.columns if any(name not in frame.columns for frame in frames.values())]
    _LOGGER.warning(
        "the Parquet files at %s have %d schemas (those of %s and %s, for example); columns that some of them lack, "
        "and that are null there: %s",
        ", ".join(given),
        len(frames),
        *list(frames)[:2],
        ", ".join(lacking) or "none",
    )
    return table
