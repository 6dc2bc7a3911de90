"""The source tables of a recipe as Spark views, wherever they are, and an identity that changes with their files."""

import hashlib
import importlib.util
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.any_table import read_table
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.data_pipelines.stored_tables import (
    KINDS,
    declared_csv,
    is_path,
    of_one_kind,
    read_stored,
    suffix_of,
)
from mirrorspark.extras import package_line
from mirrorspark.spark_session import first_line
from mirrorspark.storage import (
    Location,
    StorageError,
    StoragePath,
    StoreUnreachableError,
    lakes,
    listing,
)

CSV_ENDINGS = (".csv", ".csv.gz", ".csv.bz2", ".csv.zip", ".tsv", ".tsv.gz")
PARQUET_ENDING = ".parquet"
# The last two kinds of packed CSV files are found in order to be refused with the remedy.
_OTHER_ENDINGS = (
    *(".tsv.bz2", ".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz", ".orc", ".pq"),
    *(".csv.zst", ".csv.xz"),
)

# Parts of DDL in which any character may stand: quoted names, and comments.
_QUOTED = re.compile(r"`(?:[^`]|``)*`|'[^']*'")
_NAME_PART = r"(?:`(?:[^`]|``)+`|[^\s`.,:;()<>'\"]+)"
_TABLE_NAME = re.compile(rf"{_NAME_PART}(\.{_NAME_PART}){{0,3}}")

# Files up to this size are identified by their content, larger ones by size and modification time.
_HASHED_BYTES = 256 * 1024 * 1024

_LOGS = tuple(format_.log for format_ in lakes.LAKE_FORMATS)


class SourceError(ClearError, ValueError):
    """Source data that is absent or cannot be read; the message names the file or column and the remedy."""


def package_folder(package: str, folder: str) -> Path:
    """Return the data folder of an installed package, without importing the package (only its parents).

    Raises:
        SourceError: The package is not installed.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError as error:  # a parent is missing, or is not a package
        raise SourceError(
            f"the data package '{package}' is not installed: there is no module '{error.name}'; install the "
            f"package that provides it"
        ) from error
    if spec is None or spec.origin is None:
        raise SourceError(f"the data package '{package}' is not installed; run: {package_line(package)}")
    return Path(spec.origin).parent / folder


def find_tables(folder: Location | None, tables: Mapping[str, str]) -> dict[str, Location]:
    """Return the place of each table: a path, or the recipe's own entry, as :func:`data_pipelines.read_table` takes it.

    Args:
        folder: Folder with the tables that have no place of their own, or the file of the only one; None if there is
            none.
        tables: The columns of each table in Spark's DDL, for a file in the folder that has its name; or its place, a
            path or the name of a table of the catalog.

    Raises:
        SourceError: ``folder`` or a path does not exist, a table has no file in the folder, or there is no folder for
            it.
    """
    found: dict[str, Location] = {}
    for table, entry in tables.items():
        if "." in table:
            found[table] = table
        elif is_place(entry):
            found[table] = _existing(table, entry)
    if rest := [table for table in tables if table not in found]:
        if folder is None:
            raise SourceError(f"the recipe brings no data for the tables {rest}; give their folder as --data")
        found |= _in_folder(folder, rest)
    return {table: found[table] for table in tables}


def is_place(entry: str) -> bool:
    """Return whether an entry of a recipe's ``tables`` is a path or a table's name, rather than columns in DDL."""
    unquoted = _QUOTED.sub("", entry)
    return is_path(unquoted) or _TABLE_NAME.fullmatch(entry.strip()) is not None


def _existing(table: str, entry: str) -> Location:
    """Return a table's own place; a path of this machine has to exist."""
    entry = entry.strip()
    if not is_path(entry):
        return entry
    try:
        place = StoragePath.of(entry)
        if place.is_local:
            listing.list_files(place)
    except lakes.LakeTableError:
        pass  # Spark reads it
    except (StorageError, OSError) as error:
        raise SourceError(f"table '{table}': {error}") from error
    return entry


def _in_folder(given: Location, tables: Sequence[str]) -> dict[str, Location]:
    """Return the file or folder of each table in a folder of data; local ones as a path."""
    try:
        folder = StoragePath.of(given)
        if not folder.is_folder():
            if folder.is_file() and len(tables) == 1:
                return {tables[0]: _as_path(folder)}
            if folder.is_file():
                raise SourceError(f"data folder {given} is a file; give the folder with the tables {list(tables)}")
            raise SourceError(f"data folder {given} does not exist; give the folder with the tables as --data")
        names = {file.path.name for file in folder.files(recursive=False)} | {one.name for one in folder.folders()}
    except (StoreUnreachableError, OSError) as error:
        raise SourceError(
            f"data folder {given} cannot be listed ({error}); give this process access to it, or give the path of each "
            f"table in the recipe"
        ) from error
    except StorageError as error:
        raise SourceError(f"data folder: {error}") from error
    found: dict[str, Location] = {}
    for table in tables:
        # An editor of another system may write orders.CSV.
        by_name = {name[: len(table)] + name[len(table) :].lower(): name for name in sorted(names, reverse=True)}
        candidates = [f"{table}{ending}" for ending in (PARQUET_ENDING, *CSV_ENDINGS, *_OTHER_ENDINGS, "")]
        name = next((by_name[one] for one in candidates if one in by_name), None)
        if name is None:
            shown = [f"{table}{ending}" for ending in (PARQUET_ENDING, *CSV_ENDINGS)]
            raise SourceError(
                f"table '{table}' has no file in {given}; expected one of {shown}, a folder '{table}', or the table's "
                f"place in the recipe: a path, or a name of the catalog"
            )
        found[table] = _as_path(folder / name)
    return found


def _as_path(place: StoragePath) -> Location:
    return place.local if place.is_local else place


def register_tables(
    spark: SparkSession,
    files: Mapping[str, Location],
    schemas: Mapping[str, str],
    *,
    unpacked: Path,
    csv_null: str = "",
) -> None:
    """Register each table as a temporary view under its name.

    Args:
        spark: The session.
        files: The place of each table, from :func:`find_tables`.
        schemas: The columns of each table in Spark's DDL; a CSV file may have more, in any order. Without columns, and
            for a place, they are the table's own.
        unpacked: Folder for unpacked zip archives, which Spark cannot read packed.
        csv_null: A further text that means null in CSV files, in addition to those of ``ms.read_table``.

    Raises:
        LakeTableError: A file is, or lies in, a Delta, Iceberg or Hudi table that cannot be read.
        SourceError: There is no such table, Spark does not understand a schema, or a file lacks a column of it. A value
            that does not fit its column fails the job that reads it.
    """
    for table, place in files.items():
        schema = "" if is_place(schemas.get(table, "")) else schemas.get(table, "")
        try:
            frame = _frame(spark, place, schema, unpacked, csv_null)
        except (AnalysisException, ParseException) as error:
            raise SourceError(f"table '{table}' ({place}) cannot be read: {first_line(error)}") from error
        except TableError as error:
            raise SourceError(f"table '{table}' cannot be read: {error}") from error
        if place != table:  # else the query names a table of the catalog itself
            frame.createOrReplaceTempView(table)


def _frame(spark: SparkSession, place: Location, schema: str, unpacked: Path, csv_null: str) -> DataFrame:
    """Return the rows of a table of the recipe."""
    if isinstance(place, str):
        return read_table(spark, place)
    if isinstance(place, Path) and place.suffix.lower() == ".zip":
        place = _unzipped(place, unpacked)
    kind = "parquet" if place.name.endswith(PARQUET_ENDING) else _kind(place)
    if kind != "csv" or not schema:
        return read_stored(spark, [place], kind=kind)
    return declared_csv(spark, [place], spark.createDataFrame([], schema).schema, null=csv_null)


def _kind(place: Location) -> str | None:
    """Return the format of a file or folder; None for a table with a log, which Spark reads."""
    if kind := KINDS.get(suffix_of(place)):
        return kind
    try:
        return of_one_kind(listing.list_files(place), None, str(place))[0]
    except lakes.LakeTableError:
        return None


def query(spark: SparkSession, sql: str, name: str) -> DataFrame:
    """Return the table that ``sql`` builds from the registered views.

    Raises:
        SourceError: Spark cannot analyse the query.
    """
    try:
        return spark.sql(sql)
    except (AnalysisException, ParseException) as error:
        raise SourceError(f"{name} cannot be run: {first_line(error)}") from error


def source_identity(files: Mapping[str, Location], sql: str) -> dict[str, Any]:
    """Return the identity of this source: the query, and name, size and digest of every file.

    A file on a store has its time in place of the digest. For a table that only Spark sees it is the table's name: see
    :func:`is_identified`.

    Raises:
        SourceError: A store does not answer, or has no such file.
    """
    return {
        "sql": hashlib.sha256(sql.encode()).hexdigest()[:16],
        "files": {table: _identity_of(table, place) for table, place in sorted(files.items())},
    }


def is_identified(identity: Mapping[str, Any]) -> bool:
    """Return whether an identity changes with the rows: no table of it is known by its name alone."""
    return all("table" not in one for one in identity["files"].values())


def _identity_of(table: str, place: Location) -> dict[str, Any]:
    if isinstance(place, str) and not is_path(place):
        return {"table": place}
    path = StoragePath.of(place)
    try:
        if path.is_local and path.exists():
            return _identity(path.local)
        if path.is_folder():  # with the log of a lake table
            return {
                file.path.relative_to(path): {"bytes": file.bytes, "modified_ns": file.modified_ns}
                for file in path.files()
            }
        return {file.path.uri: _file_identity(file) for file in listing.list_files(path)}
    except FileNotFoundError as error:
        raise SourceError(f"table '{table}': {error}") from error
    except (StorageError, OSError):  # a store that only Spark knows, or may read
        return {"table": str(place)}


def _file_identity(file: listing.DataFile) -> dict[str, Any]:
    if file.path.is_local:
        return _identity(file.path.local)
    return {"bytes": file.bytes, "version": file.path.version()}


def _identity(path: Path) -> dict[str, Any]:
    if path.is_dir():
        # The log of a lake table decides which files count, so a deletion may change nothing else.
        parts = [part for part in sorted(path.iterdir()) if not part.name.startswith(("_", ".")) or part.name in _LOGS]
        return {part.name: _identity(part) for part in parts}
    status = path.stat()
    if status.st_size > _HASHED_BYTES:
        return {"name": path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    with path.open("rb") as file:
        return {"name": path.name, "bytes": status.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _unzipped(path: Path, unpacked: Path) -> Path:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise SourceError(f"{path} is not a zip archive ({error}); fetch it again") from error
    with archive:
        # macOS packs a second file next to each.
        members = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        if len(members) != 1:
            raise SourceError(f"{path} holds {len(members)} files; an archive of one CSV file is expected")
        target = unpacked / f"{path.name.removesuffix('.zip')}-{members[0].CRC:08x}.csv"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            # Another run may be unpacking the same archive.
            temporary = target.with_suffix(f".{uuid4().hex}.partial")
            try:
                with archive.open(members[0]) as packed, temporary.open("wb") as file:
                    shutil.copyfileobj(packed, file)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    return target
