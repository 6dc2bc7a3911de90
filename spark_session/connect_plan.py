"""The Parquet files behind a DataFrame of Spark Connect, by the text of its plan.

A text that is not clearly that of a plain selection is refused, and Spark reads the rows.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.spark_session.session import NotPlainParquetError, ParquetPlan
from mirrorspark.storage import StoragePath, hadoop_path, literal_hadoop_uri

_OPTIMIZED = re.compile(r"^== Optimized Logical Plan ==\n(.*?)\n\n== Physical Plan ==$", re.MULTILINE | re.DOTALL)
# The relation of a table of the catalog has the table's name before its columns.
_PLAIN = re.compile(r"(?:Project \[(?P<chosen>.+)\]\n\+- )?Relation \[(?P<columns>.+)\] parquet")
_COLUMN = re.compile(r".+#\d+L?")
_LOCATION = re.compile(r"^Location: (\w+) ?\[(.*)\]$", re.MULTILINE)
_OTHER_FOLDERS = re.compile(r", \.\.\. \d+ entries$")
# Longer lists of columns are cut, and a list that is cut is not clear.
_MOST_FIELDS = "spark.sql.debug.maxToStringFields"


def parquet_plan(spark: SparkSession, table: DataFrame) -> ParquetPlan:
    """Return the Parquet files that ``table`` reads.

    Raises:
        NotPlainParquetError: It does not clearly select columns of plain Parquet files, or its files are on a disk of
            the server.
    """
    if table.isStreaming:
        raise NotPlainParquetError("it is a stream")
    reader: Any = table
    try:
        with _whole_lists(spark):
            extended, formatted = (reader._explain_string(mode=mode) for mode in ("extended", "formatted"))
        plan = plan_of(extended, formatted, tuple(table.inputFiles()))
        _check_disk(spark, [file for file in map(hadoop_path, plan.files) if file.is_local])
    except PySparkException as error:
        raise NotPlainParquetError(f"its plan is not shown ({type(error).__name__})") from error
    return plan


def plan_of(extended: str, formatted: str, files: tuple[str, ...]) -> ParquetPlan:
    """Return the files of an explained plan.

    Args:
        extended: The plan in Spark's mode ``extended``.
        formatted: The plan in the mode ``formatted``.
        files: URIs of the files, percent-encoded.

    Raises:
        NotPlainParquetError: The plan is not clearly a selection of columns of plain Parquet files.
    """
    optimized = _OPTIMIZED.search(extended)
    plain = _PLAIN.fullmatch(optimized[1]) if optimized else None
    if plain is None or "\n" in (plain["chosen"] or "") + plain["columns"]:
        raise NotPlainParquetError("Spark's plan is more than a selection of columns of Parquet files")
    chosen, columns = {*plain["chosen"].split(", ")} if plain["chosen"] else set(), {*plain["columns"].split(",")}
    if not chosen <= columns or not all(map(_COLUMN.fullmatch, columns)):
        raise NotPlainParquetError("it has columns that Spark computes")
    locations = _LOCATION.findall(formatted)
    if len(locations) != 1 or locations[0][0] != "InMemoryFileIndex":
        raise NotPlainParquetError("its files are not plain Parquet files")
    folder = locations[0][1]
    if not _OTHER_FOLDERS.search(folder):
        return ParquetPlan(files, (folder,))
    # The plan shows the first of several folders. Below folders of partitions their names would be columns.
    if any("=" in file for file in files):
        raise NotPlainParquetError("it has several folders, of which the plan shows one")
    return ParquetPlan(files, files)


@contextmanager
def _whole_lists(spark: SparkSession) -> Iterator[None]:
    before = spark.conf.get(_MOST_FIELDS) or "25"  # Spark's default
    spark.conf.set(_MOST_FIELDS, str(2**31 - 1))
    try:
        yield
    finally:
        spark.conf.set(_MOST_FIELDS, before)


def _check_disk(spark: SparkSession, files: list[StoragePath]) -> None:
    """Check that files of a disk are the same here as on the server.

    Raises:
        NotPlainParquetError: They are not.
    """
    if not files:
        return
    seen = spark.read.format("binaryFile").load([literal_hadoop_uri(file) for file in files])
    rows = seen.select("path", "length", F.unix_millis("modificationTime")).collect()
    try:
        found = {file.uri: file.local.stat() for file in files}
    except OSError as error:
        raise NotPlainParquetError(f"its files are on a disk of the server ({error.strerror})") from error
    here = {name: (status.st_size, status.st_mtime_ns // 10**6) for name, status in found.items()}
    if {"/" + path.removeprefix("file:").lstrip("/"): (size, changed) for path, size, changed in rows} != here:
        raise NotPlainParquetError("its files are on a disk of the server, and others of their names are on this one")
