"""The source tables of a recipe: files in a folder as Spark views, and an identity that changes with the files."""

import hashlib
import importlib.util
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.csv_tables import CsvError, CsvTable
from mirrorspark.data_pipelines.spark import refuse_lake_tables
from mirrorspark.data_pipelines.stored_tables import TableError, read_stored
from mirrorspark.spark_session import first_line
from mirrorspark.storage import StoragePath, lakes, listing, literal_hadoop_uri

CSV_ENDINGS = (".csv", ".csv.gz", ".csv.bz2", ".csv.zip", ".tsv", ".tsv.gz")
PARQUET_ENDING = ".parquet"

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
        raise SourceError(f"the data package '{package}' is not installed; run: pip install {package}")
    return Path(spec.origin).parent / folder


def find_tables(folder: Path, tables: Mapping[str, str]) -> dict[str, Path]:
    """Return the file (or Parquet folder) of each table.

    Raises:
        SourceError: ``folder`` does not exist, or a table has no file in it.
    """
    if not folder.is_dir():
        raise SourceError(f"data folder {folder} does not exist; give the folder with the tables as --data")
    found = {}
    for table in tables:
        candidates = [folder / f"{table}{ending}" for ending in (PARQUET_ENDING, *CSV_ENDINGS)]
        existing = [path for path in candidates if path.exists()]
        if not existing:
            names = [path.name for path in candidates]
            raise SourceError(f"table '{table}' has no file in {folder}; expected one of {names}")
        found[table] = existing[0]
    return found


def register_tables(
    spark: SparkSession,
    files: Mapping[str, Path],
    schemas: Mapping[str, str],
    *,
    unpacked: Path,
    csv_null: str = "",
) -> None:
    """Register each file as a temporary view under its table's name.

    Args:
        spark: The session.
        files: The file of each table.
        schemas: The columns of each table in Spark's DDL; a CSV file may have more, in any order.
        unpacked: Folder for unpacked zip archives, which Spark cannot read packed.
        csv_null: A further text that means null in CSV files, in addition to those of ``ms.read_table``.

    Raises:
        LakeTableError: A file is, or lies in, a Delta, Iceberg or Hudi table that cannot be read.
        SourceError: Spark does not understand a schema, or a file lacks a column of it. A value that does not fit its
            column fails the job that reads it.
    """
    for table, path in files.items():
        readable = _unzipped(path, unpacked) if path.suffix == ".zip" else path
        try:
            if readable.name.endswith(PARQUET_ENDING):
                frame = read_stored(spark, [readable], kind="parquet")
            else:
                refuse_lake_tables(spark, [literal_hadoop_uri(StoragePath.of(readable))])
                frame = _read_csv(spark, readable, table, schemas[table], csv_null)
        except (AnalysisException, ParseException) as error:
            raise SourceError(f"table '{table}' ({path}) cannot be read: {first_line(error)}") from error
        except (TableError, CsvError) as error:
            raise SourceError(f"table '{table}' cannot be read: {error}") from error
        frame.createOrReplaceTempView(table)


def query(spark: SparkSession, sql: str, name: str) -> DataFrame:
    """Return the table that ``sql`` builds from the registered views.

    Raises:
        SourceError: Spark cannot analyse the query.
    """
    try:
        return spark.sql(sql)
    except (AnalysisException, ParseException) as error:
        raise SourceError(f"{name} cannot be run: {first_line(error)}") from error


def source_identity(files: Mapping[str, Path], sql: str) -> dict[str, Any]:
    """Return the identity of this source: the query, and name, size and digest of every file."""
    return {
        "sql": hashlib.sha256(sql.encode()).hexdigest()[:16],
        "files": {table: _identity(path) for table, path in sorted(files.items())},
    }


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
        members = [member for member in archive.infolist() if not member.is_dir()]
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


def _read_csv(spark: SparkSession, path: Path, table: str, schema: str, null: str) -> DataFrame:
    """Return the columns of ``schema``, found by name: Spark goes by position, so a shifted table becomes nulls."""
    wanted = spark.createDataFrame([], schema).schema
    plan = CsvTable.of(spark, listing.list_files(path))
    missing = [column for column in wanted.names if column not in plan.header]
    if missing:
        raise SourceError(
            f"table '{table}' ({path.name}) lacks the columns {missing}; its header has {list(plan.header)}"
        )
    return plan.declared(spark, wanted, null=null)
