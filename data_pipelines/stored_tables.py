"""Tables in files, as Spark DataFrames: which files a path names, their kind, and files of one table that differ."""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegralType,
    TimestampNTZType,
    TimestampType,
)

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.csv_tables import CsvError, CsvTable
from mirrorspark.data_pipelines.features import quoted
from mirrorspark.data_pipelines.spark import read_lake_table
from mirrorspark.storage import Location, StorageError, StoragePath, encoding_of, lakes, listing, literal_hadoop_uri

_LOGGER = logging.getLogger(__name__)

KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json",
    ".ndjson": "json", ".orc": "orc",
}  # fmt: skip
_PACKED = (".gz", ".bz2", ".zst", ".xz", ".zip")
# Readers of pandas for files that Spark does not read.
_PANDAS_READERS = {".xlsx": "excel", ".xls": "excel", ".feather": "feather", ".arrow": "feather", ".dta": "stata",
                   ".sas7bdat": "sas", ".sav": "spss", ".pkl": "pickle", ".h5": "hdf"}  # fmt: skip
_HEADS_AT_A_TIME = 16
_HEAD_BYTES = 1 << 16
# Beyond this number of schemas Spark's plan gets slow.
_MOST_SCHEMAS = 100
_CORRUPT = "_corrupt_record"


class TableError(ClearError, ValueError):
    """A value that is not a table, or a table that Spark cannot take; the message gives the remedy."""


def is_path(name: Location) -> bool:
    """Return whether a name is that of a file or folder, rather than of a table of the catalog."""
    return not isinstance(name, str) or "/" in name or "\\" in name or suffix_of(name) in KINDS


def suffix_of(name: Location) -> str:
    """Return the suffix of a file in lower case, without that of its compression."""
    path = Path(str(name).partition("?")[0] if "://" in str(name) else str(name))
    return Path(path.stem).suffix.lower() if path.suffix.lower() in _PACKED else path.suffix.lower()


def read_stored(
    spark: SparkSession,
    paths: Sequence[Location],
    *,
    kind: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
) -> DataFrame:
    """Return the table in some files, or in a lake table's folder.

    A path is the file that this process sees: relative to its working directory, ``~`` the user's home. It is a
    pattern only if no file has its name. A path that this process does not see is one of Spark's own file system.

    Args:
        spark: The session.
        paths: Files, folders, or patterns.
        kind: The format of the files; by default by their suffixes.
        encoding: Encoding of CSV files, in Python's words.
        separator: Separator of CSV files.

    Raises:
        LakeTableError: The path is a lake table that the session cannot read, or a part of one.
        TableError: There is no such file, it is of another kind or damaged, or the files do not make one table.
    """
    shown = ", ".join(map(str, paths))
    given = [path_for_spark(path) for path in paths]
    if (lake := read_lake_table(spark, *given)) is not None:
        return lake
    try:
        files = listing.list_files(paths)
    except (StorageError, FileNotFoundError, PermissionError, lakes.LakeTableError) as error:
        return _seen_by_spark(spark, given, kind, shown, error)
    if not files:
        raise TableError(
            f"{shown} holds no file of format {kind or 'parquet'}; give the folder or file of the table"
            if all(StoragePath.of(path).is_folder() for path in paths)
            else f"{shown} is empty; give the folder or file of the table"
        )
    kind, files = _of_one_kind(files, kind, shown)
    base = StoragePath.of(paths[0]) if len(paths) == 1 and any(file.partition for file in files) else None
    if base is not None and not base.is_folder():
        base = None
    names = [str(path) for path in paths]
    try:
        if kind == "csv":
            plan = CsvTable.of(spark, files, encoding=encoding, separator=separator, base=base, given=names)
            _require_different(plan)
            return plan.typed(spark)
        if kind == "json":
            return _json(spark, files, base, names, shown)
        if kind == "parquet":
            return _parquet(spark, files, base, names)
        return _load(spark, kind, [file.path for file in files], base, names)
    except CsvError as error:
        raise TableError(str(error)) from error


def _require_different(plan: CsvTable) -> None:
    for form, paths in plan.files.items():
        if twice := sorted({name for name in form.header if form.header.count(name) > 1}):
            raise TableError(f"{paths[0]} has several columns of one name: {twice}; rename or drop all but one")


def path_for_spark(path: Location) -> str:
    """Return a path as ``spark.read`` takes it: literal if this process sees it, else as the user wrote it."""
    try:
        place = StoragePath.of(path)
        return literal_hadoop_uri(place, path) if not place.is_local or place.exists() else str(path)
    except (StorageError, OSError):
        return str(path)


def _seen_by_spark(
    spark: SparkSession, given: Sequence[str], kind: str | None, shown: str, error: Exception
) -> DataFrame:
    """Return a table that only Spark sees, on a store to which this process has no access."""
    kind = kind or KINDS.get(suffix_of(given[0]), "parquet")
    reader = spark.read.format(kind)
    if kind == "csv":
        reader = reader.options(header=True, inferSchema=True, multiLine=True, quote='"', escape='"')
    if kind == "parquet":
        reader = reader.option("mergeSchema", True)
    try:
        return reader.load(list(given))
    except AnalysisException as refused:
        if refused.getCondition() == "UNABLE_TO_INFER_SCHEMA":
            raise TableError(f"{shown} holds no file of format {kind}; give the folder or file of the table") from error
        if refused.getCondition() != "PATH_NOT_FOUND":
            raise
        raise TableError(f"there is no file or folder {shown}") from error


def _of_one_kind(files: Sequence[listing.DataFile], kind: str | None, shown: str) -> tuple[str, list[listing.DataFile]]:
    """Return the format of the files, and those that have it; others next to them are left out."""
    by_kind: dict[str | None, list[listing.DataFile]] = defaultdict(list)
    for file in files:
        by_kind[KINDS.get(suffix_of(file.path.name))].append(file)
    others = by_kind.pop(None, [])
    if kind is not None:
        return kind, by_kind.get(kind) or list(files)
    if len(by_kind) > 1:
        examples = " and ".join(f"{found[0].path.name} ({name})" for name, found in sorted(by_kind.items()))
        raise TableError(f"{shown} holds files of several formats, {examples}; give those of the table, as in *.csv")
    if not by_kind:
        suffix = suffix_of(others[0].path.name)
        if len(others) == 1 or suffix in _PANDAS_READERS:
            reader = _PANDAS_READERS.get(suffix)
            advice = f"pandas.read_{reader}" if reader else "Spark"
            raise TableError(
                f"{others[0].path} has none of the suffixes {sorted(KINDS)}; read it with {advice} and give the table"
            )
        # Files without suffixes, as some programs write Parquet.
        if all(_begins(file.path, b"PAR1") for file in others[:3]):
            return "parquet", others
        raise TableError(f"{shown} holds no file of format parquet; give the folder or file of the table")
    if others:
        _LOGGER.info("%s: files that are not part of the table: %s", shown, [file.path.name for file in others[:5]])
    ((found_kind, found_files),) = by_kind.items()
    return str(found_kind), found_files


def _begins(path: StoragePath, magic: bytes) -> bool:
    with path.open_stream() as file:
        return bool(file.read(len(magic)) == magic)


def _load(
    spark: SparkSession,
    kind: str,
    paths: Sequence[StoragePath],
    base: StoragePath | None,
    given: Sequence[str],
    **options: bool | str,
) -> DataFrame:
    if base is not None:
        options["basePath"] = f"file://{base.uri}" if base.is_local else base.uri
    return spark.read.format(kind).options(**options).load([literal_hadoop_uri(path, *given) for path in paths])


def _json(
    spark: SparkSession, files: Sequence[listing.DataFile], base: StoragePath | None, given: Sequence[str], shown: str
) -> DataFrame:
    """Return the rows of JSON files: of lines, of a list, or a document each."""
    with ThreadPoolExecutor(_HEADS_AT_A_TIME) as pool:
        heads = list(pool.map(_json_head, [file.path for file in files]))
    for file, (encoding, _, text) in zip(files, heads, strict=True):
        if encoding not in ("utf-8", "utf-8-sig"):
            raise TableError(f"{file.path} has the encoding {encoding.upper()}; save it as UTF-8")
        if text.startswith('{"') and '{"0":' in text[: text.find("}") + 1]:
            raise TableError(
                f"{file.path} is a document of columns; write rows: df.to_json(path, orient='records', lines=True)"
            )
    is_whole = any(not is_lines for _, is_lines, _ in heads)
    df = _load(spark, "json", [file.path for file in files], base, given, multiLine=is_whole)
    if _CORRUPT in df.columns:
        raise TableError(f"{shown} has lines or documents that are not JSON objects; correct them, or write JSON lines")
    return df


def _json_head(path: StoragePath) -> tuple[str, bool, str]:
    """Return a file's encoding, whether it has an object in each line, and its first characters."""
    with path.open_stream() as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith((b"\x1f\x8b", b"BZh")):
        codec = "gzip" if head.startswith(b"\x1f") else "bz2"
        with path.open_stream() as file:
            head = pa.CompressedInputStream(file, codec).read(_HEAD_BYTES)
    encoding = encoding_of(head)
    text = head.decode(encoding, errors="replace").lstrip("\ufeff \t\r\n")
    first, line_break, _ = text.partition("\n")
    try:
        return encoding, isinstance(json.loads(first), dict), text
    except ValueError:
        # A list, or an object over several lines; or a line that is longer than the head.
        return encoding, not line_break and text.startswith("{"), text


def _parquet(
    spark: SparkSession, files: Sequence[listing.DataFile], base: StoragePath | None, given: Sequence[str]
) -> DataFrame:
    """Return the rows of Parquet files; of several schemas, each is read alone and its columns are widened."""
    with ThreadPoolExecutor(_HEADS_AT_A_TIME) as pool:
        schemas = list(pool.map(_footer, [file.path for file in files]))
    groups: dict[frozenset[tuple[str, str]], list[StoragePath]] = defaultdict(list)
    nulls: dict[frozenset[tuple[str, str]], set[str]] = {}
    for file, schema in zip(files, schemas, strict=True):
        key = frozenset((field.name, str(field.type)) for field in schema)
        groups[key].append(file.path)
        nulls[key] = {field.name for field in schema if pa.types.is_null(field.type)}
    if len(groups) == 1:
        return _load(spark, "parquet", [file.path for file in files], base, given)
    if len(groups) > _MOST_SCHEMAS:
        raise TableError(f"the {len(files)} Parquet files have {len(groups)} schemas; write them with one")
    frames = {paths[0]: _load(spark, "parquet", paths, base, given).drop(*nulls[key]) for key, paths in groups.items()}
    names = list(dict.fromkeys(name for frame in frames.values() for name in frame.columns))
    kinds = {name: _common_type(name, frames) for name in names}
    cast = [
        frame.select(*[quoted(name).cast(kinds[name]).alias(name) for name in frame.columns])
        for frame in frames.values()
    ]
    lacking = [name for name in names if any(name not in frame.columns for frame in frames.values())]
    _LOGGER.warning(
        "the Parquet files at %s have %d schemas (those of %s and %s, for example); columns that some of them lack, "
        "and that are null there: %s",
        ", ".join(given),
        len(groups),
        *list(frames)[:2],
        ", ".join(lacking) or "none",
    )
    return reduce(lambda all_, one: all_.unionByName(one, allowMissingColumns=True), cast)


def _footer(path: StoragePath) -> pa.Schema:
    try:
        with path.open_read() as file:
            return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise TableError(f"{path} is not a Parquet file ({' '.join(str(error).split())}); write it again") from error


def _common_type(name: str, frames: dict[StoragePath, DataFrame]) -> DataType:
    """Return the narrowest type that holds a column's values of all files."""
    found = {path: frame.schema[name].dataType for path, frame in frames.items() if name in frame.columns}
    kinds = list(found.values())
    kind: DataType | None = kinds[0]
    for other in kinds[1:]:
        kind = kind and _wider(kind, other)
    if kind is None:
        types = "; ".join(f"{one.simpleString()} in {path}" for path, one in found.items())
        raise TableError(f"column '{name}' has types that are not read as one ({types}); write files of one schema")
    return kind


def _wider(left: DataType, right: DataType) -> DataType | None:
    if left == right:
        return left
    floating = (FloatType, DoubleType)
    numeric = (IntegralType, DecimalType, *floating)
    if isinstance(left, IntegralType) and isinstance(right, IntegralType):
        return max(left, right, key=lambda one: _WHOLE.index(one.simpleString()))
    if isinstance(left, numeric) and isinstance(right, numeric):
        if isinstance(left, floating) or isinstance(right, floating):
            return DoubleType()
        places = [_places(left), _places(right)]
        whole, scale = max(one[0] for one in places), max(one[1] for one in places)
        return DecimalType(whole + scale, scale) if whole + scale <= 38 else DoubleType()
    days = [one for one in (left, right) if isinstance(one, TimestampType | TimestampNTZType)]
    if len(days) == 1 and isinstance(left, DateType | type(days[0])) and isinstance(right, DateType | type(days[0])):
        return days[0]
    return None


_WHOLE = ("tinyint", "smallint", "int", "bigint")


def _places(kind: DataType) -> tuple[int, int]:
    """Return the digits before and after the point."""
    if isinstance(kind, DecimalType):
        return kind.precision - kind.scale, kind.scale
    return (3, 5, 10, 19)[_WHOLE.index(kind.simpleString())], 0
