"""Tables in files, as Spark DataFrames: which files a path names, and their kind."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.csv_tables import CsvError, CsvTable
from mirrorspark.data_pipelines.joined_files import SchemasError, as_one, warn_of_folders, with_folder_types
from mirrorspark.data_pipelines.json_tables import JsonError, json_frames
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.data_pipelines.orc_footers import OrcError
from mirrorspark.data_pipelines.orc_tables import orc_frames, read_footers
from mirrorspark.data_pipelines.packed_files import PackedFileError
from mirrorspark.data_pipelines.parquet_tables import read_parquet
from mirrorspark.data_pipelines.reading.parquet_rows import ParquetError
from mirrorspark.data_pipelines.spark import read_lake_table, refuse_lake_tables
from mirrorspark.spark_session import SPARK_ERRORS, task_message, versions
from mirrorspark.storage import (
    Location,
    StorageError,
    StoragePath,
    hadoop_uri,
    lakes,
    listing,
    literal_hadoop_uri,
)

_LOGGER = logging.getLogger(__name__)

_Read = Callable[[Sequence[listing.DataFile], StructType], Mapping[StoragePath, DataFrame]]

KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".parq": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json",
    ".jsonl": "json", ".ndjson": "json", ".orc": "orc",
}  # fmt: skip
_QUOTED_PART = re.compile(r"`(?:[^`]|``)*`")
_PACKED = (".gz", ".bz2", ".zst", ".xz", ".zip")
_MAGIC = {b"PAR1": "parquet", b"ORC": "orc"}
# Readers of files that Spark does not read.
_READERS = {
    ".xlsx": "pandas.read_excel", ".xls": "pandas.read_excel", ".feather": "pandas.read_feather",
    ".arrow": "pandas.read_feather", ".dta": "pandas.read_stata", ".sas7bdat": "pandas.read_sas",
    ".sav": "pandas.read_spss", ".pkl": "pandas.read_pickle", ".h5": "pandas.read_hdf", ".avro": "polars.read_avro",
}  # fmt: skip


def is_path(name: Location) -> bool:
    """Return whether a name is that of a file or folder, rather than of a table of the catalog.

    A part of a table's name that is in backticks may hold any character.
    """
    if not isinstance(name, str):
        return True
    plain = _QUOTED_PART.sub("`", name)
    return "/" in plain or "\\" in plain or suffix_of(plain) in KINDS


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
    except (StorageError, OSError, lakes.LakeTableError) as error:
        return _seen_by_spark(spark, given, kind, shown, error)
    _require_seen(paths)
    if not files:
        raise TableError(
            f"{shown} holds no file of format {kind or 'parquet'}; give the folder or file of the table"
            if all(StoragePath.of(path).is_folder() for path in paths)
            else f"{shown} is empty; give the folder or file of the table"
        )
    kind, files = of_one_kind(files, kind or ("csv" if separator else None), shown)
    names = [str(path) for path in paths]
    footers = cache(lambda: read_footers([one.path for one in files]))

    def read(own: Sequence[listing.DataFile], folders: StructType) -> Mapping[StoragePath, DataFrame]:
        base = own[0].root
        if kind == "csv":
            plan = CsvTable.of(
                spark, own, encoding=encoding, separator=separator, base=base, folders=folders, given=names
            )
            _require_different(plan)
            return {own[0].path: plan.typed(spark)}
        if kind == "parquet":
            return {own[0].path: read_parquet(spark, own, base, folders, names)}
        load = partial(_load, spark, base, folders, names)
        if kind == "json":
            return json_frames(spark, own, folders, load)
        if kind == "orc":
            warn_of_folders(base, (name for one in own for name in footers()[one.path].columns.names), folders)
            return orc_frames(spark, [one.path for one in own], load, footers())
        return {own[0].path: load(kind, [one.path for one in own])}

    try:
        return _by_folders(files, read)
    except AnalysisException as error:
        if versions.condition_of(error) != "COLUMN_ALREADY_EXISTS":
            raise
        twice = (error.getMessageParameters() or {}).get("columnName", "")
        raise TableError(
            f"{shown} has several columns or keys {twice.replace('`', chr(39))}, which may differ in case alone, and "
            f"Spark ignores case; rename all but one"
        ) from error


def read_parquet_files(
    spark: SparkSession, files: Sequence[listing.DataFile], paths: Sequence[Location], columns: Sequence[str]
) -> DataFrame:
    """Return columns of Parquet files that are listed already, found at ``paths``, as :func:`read_stored` does.

    Raises:
        TableError: A file is damaged, or the files do not make one table.
    """
    names = [str(path) for path in paths]

    def read(own: Sequence[listing.DataFile], folders: StructType) -> Mapping[StoragePath, DataFrame]:
        return {own[0].path: read_parquet(spark, own, own[0].root, folders, names, columns)}

    return _by_folders(files, read)


def declared_csv(
    spark: SparkSession,
    paths: Sequence[Location],
    schema: StructType,
    *,
    null: str = "",
    encoding: str | None = None,
    separator: str | None = None,
) -> DataFrame:
    """Return columns of CSV files, found by name, in the types of ``schema``; a cell that does not fit fails the job.

    Args:
        spark: The session.
        paths: Files, folders or patterns.
        schema: The columns.
        null: A further text that stands for null.
        encoding: The encoding in Python's words; by default UTF-8, or the one that a byte order mark shows.
        separator: The separator; by default the one that the files show.

    Raises:
        LakeTableError: A path is, or lies in, a lake table.
        TableError: There is no such file, or it lacks a column or is damaged.
    """
    refuse_lake_tables(spark, [path_for_spark(path) for path in paths])
    shown = ", ".join(map(str, paths))
    try:
        _, files = of_one_kind(listing.list_files(paths), "csv", shown)
    except lakes.LakeTableError:
        raise
    except (StorageError, OSError) as error:
        raise TableError(str(error)) from error
    _require_seen(paths)
    if not files:
        raise TableError(f"{shown} is empty; give the folder or file of the table")
    names = [str(path) for path in paths]

    _require_values(files, schema)

    def read(own: Sequence[listing.DataFile], folders: StructType) -> Mapping[StoragePath, DataFrame]:
        plan = CsvTable.of(
            spark, own, encoding=encoding, separator=separator, base=own[0].root, folders=folders, given=names
        )
        return {own[0].path: plan.declared(spark, schema, null=null)}

    return _by_folders(files, read)


def _require_values(files: Sequence[listing.DataFile], schema: StructType) -> None:
    """Refuse a partition folder whose value does not have the declared type of its column."""
    names = {name for file in files for name, _ in file.partition}
    kinds = versions.to_arrow_schema(StructType([one for one in schema if one.name in names]))
    for file in files:
        for name, value in file.partition:
            if name in kinds.names:
                try:
                    listing.partition_column(value, kinds.field(name).type, 1)
                except ValueError as error:
                    raise TableError(f"column '{name}' of {file.path}: {error}") from error


def _require_seen(paths: Sequence[Location]) -> None:
    for path in paths:
        place = StoragePath.of(path)
        if place.name.startswith(("_", ".")) and place.is_file() and place.size() > 0:
            raise TableError(f"{path} is hidden from Spark, as its name begins with '_' or '.'; rename it")


def _by_folders(files: Sequence[listing.DataFile], read: _Read) -> DataFrame:
    """Return the rows of all files; those below one folder, with the same columns of subfolders, are read together.

    Raises:
        TableError: A file is damaged, or the files do not make one table.
    """
    found: dict[object, list[listing.DataFile]] = defaultdict(list)
    for file in files:
        if file.path.is_local and ":" in file.path.name:
            raise TableError(f"{file.path} has a colon in its name, and Hadoop reads no such file; rename it")
        found[file.root, tuple(name for name, _ in file.partition)].append(file)
    folders = versions.from_arrow_schema(listing.folder_types(files))
    try:
        return as_one({path: frame for own in found.values() for path, frame in read(own, _of(own, folders)).items()})
    except (CsvError, JsonError, OrcError, PackedFileError, ParquetError, SchemasError) as error:
        raise TableError(str(error)) from error
    except SPARK_ERRORS as error:
        if "[FAILED_READ_FILE" not in str(error):
            raise
        raise TableError(
            f"{task_message(error).rstrip('.')}; check that Spark may read it; if it is damaged, copy it "
            f"again, or leave it out"
        ) from error


def _of(files: Sequence[listing.DataFile], folders: StructType) -> StructType:
    """Return those columns of folders that some files have, which lie below one folder."""
    return StructType([one for one in folders if one.name in dict(files[0].partition)])


def _require_different(plan: CsvTable) -> None:
    for form, files in plan.files.items():
        if twice := sorted({name for name in form.header if form.header.count(name) > 1}):
            raise TableError(f"{files[0].path} has several columns of one name: {twice}; rename or drop all but one")


def path_for_spark(path: Location) -> str:
    """Return a path as ``spark.read`` takes it: literal if this process sees it, else a pattern or Spark's own."""
    try:
        place = StoragePath.of(path)
        if place.exists() or not listing.is_pattern(place):
            return literal_hadoop_uri(place, path) if not place.is_local or place.exists() else str(path)
        return hadoop_uri(place, path) if not place.is_local or listing.list_files(place) else str(path)
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
        if versions.condition_of(refused) == "UNABLE_TO_INFER_SCHEMA":
            raise TableError(f"{shown} holds no file of format {kind}; give the folder or file of the table") from error
        if versions.condition_of(refused) != "PATH_NOT_FOUND":
            raise
        raise TableError(f"there is no file or folder {shown}") from error
    except SPARK_ERRORS as refused:
        said = task_message(refused).rstrip(".")
        is_unknown = "No FileSystem for scheme" in said or "ClassNotFoundException" in str(refused)
        advice = (
            "give the path of a file system that Spark has" if is_unknown else "check the path and your access to it"
        )
        raise TableError(f"{shown} cannot be read: {said}; {advice}") from error


def of_one_kind(files: Sequence[listing.DataFile], kind: str | None, shown: str) -> tuple[str, list[listing.DataFile]]:
    """Return the format of the files, and those that have it; others next to them are left out.

    Args:
        files: The files.
        kind: Their format, if it is known.
        shown: Their place in a message.

    Raises:
        TableError: They have several formats, or none that is known.
    """
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
        # Files without suffixes, as Hive writes them.
        for magic, found_kind in _MAGIC.items():
            if all(_begins(file.path, magic) for file in others[:3]):
                return found_kind, others
        suffix = suffix_of(others[0].path.name)
        if len(others) == 1 or suffix in _READERS:
            reader = _READERS.get(suffix)
            advice = reader or ("ms.read_tfrecords" if "tfrecord" in suffix else "Spark")
            as_csv = "" if reader else "if it is a CSV file, give its separator, else "
            raise TableError(
                f"{others[0].path} has none of the suffixes {sorted(KINDS)}; {as_csv}read it with {advice} and give "
                f"the table"
            )
        raise TableError(f"{shown} holds no file of format parquet; give the folder or file of the table")
    if others:
        _LOGGER.info("%s: files that are not part of the table: %s", shown, [file.path.name for file in others[:5]])
    ((own_kind, own_files),) = by_kind.items()
    return str(own_kind), own_files


def _begins(path: StoragePath, magic: bytes) -> bool:
    with path.open_stream() as file:
        return bool(file.read(len(magic)) == magic)


def _load(
    spark: SparkSession,
    base: StoragePath | None,
    folders: StructType,
    given: Sequence[str],
    kind: str,
    paths: Sequence[StoragePath],
    *,
    schema: StructType | None = None,
    session: SparkSession | None = None,
    **options: bool | str,
) -> DataFrame:
    if base is not None:
        options["basePath"] = f"file://{base.uri}" if base.is_local else base.uri
    reader = (session or spark).read.format(kind).options(**options)
    reader = reader if schema is None else reader.schema(schema)
    files = [literal_hadoop_uri(path, *given) for path in paths]
    frame = reader.load(files)
    wanted = with_folder_types(frame.schema, folders)
    return frame if wanted == frame.schema else reader.schema(wanted).load(files)
