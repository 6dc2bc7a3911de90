"""The Parquet files behind a DataFrame of Spark Connect, by the text of its plan.

A text that is not clearly that of a plain selection is refused, and Spark reads the rows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.spark_session.connect_look import is_refusal
from mirrorspark.spark_session.session import NotPlainParquetError, ParquetPlan
from mirrorspark.storage import StoragePath, hadoop_path, literal_hadoop_uri

_OPTIMIZED = re.compile(r"^== Optimized Logical Plan ==\n(.*?)\n\n== Physical Plan ==$", re.MULTILINE | re.DOTALL)
# The relation of a table of the catalog has the table's name before its columns.
_PLAIN = re.compile(r"(?:Project \[(?P<chosen>.+)\]\n\+- )?Relation \[(?P<columns>.+)\] parquet")
_COLUMN = re.compile(r".+#\d+L?")
_LOCATION = re.compile(r", Location: (\w+)\((\d+) paths?\)\[(.*?)\], PartitionFilters: ")
# Longer texts are cut, and a text that is cut is not clear.
_LONGEST = {"spark.sql.debug.maxToStringFields": "25", "spark.sql.maxMetadataStringLength": "100"}


def parquet_plan(spark: SparkSession, table: DataFrame, *, shares_disk: bool) -> ParquetPlan:
    """Return the Parquet files that ``table`` reads.

    Args:
        spark: The session.
        table: The DataFrame.
        shares_disk: True if the server has the disk of this process.

    Raises:
        NotPlainParquetError: It does not clearly select columns of plain Parquet files, or its files are on a disk of
            the server.
    """
    if table.isStreaming:
        raise NotPlainParquetError("it is a stream")
    reader: Any = table
    try:
        with _whole_texts(spark):
            explained = reader._explain_string(mode="extended")
        plan = plan_of(explained, tuple(table.inputFiles()))
        files = [file for file in map(hadoop_path, plan.files) if file.is_local and not shares_disk]
        seen = _seen_by_server(spark, files)
    except PySparkException as error:
        if not is_refusal(error):
            raise  # the session, or a store, that Spark would not read from either
        raise NotPlainParquetError(f"its plan is not shown ({type(error).__name__})") from error
    require_same(seen)
    return plan


def plan_of(explained: str, files: tuple[str, ...]) -> ParquetPlan:
    """Return the files of a plan.

    Args:
        explained: The plan in Spark's mode ``extended``.
        files: URIs of the files, percent-encoded.

    Raises:
        NotPlainParquetError: The plan is not clearly a selection of columns of plain Parquet files.
    """
    optimized = _OPTIMIZED.search(explained)
    plain = _PLAIN.fullmatch(optimized[1]) if optimized else None
    if optimized is None or plain is None or "\n" in (plain["chosen"] or "") + plain["columns"]:
        raise NotPlainParquetError("Spark's plan is more than a selection of columns of Parquet files")
    chosen, columns = {*plain["chosen"].split(", ")} if plain["chosen"] else set(), {*plain["columns"].split(",")}
    if not chosen <= columns or not all(map(_COLUMN.fullmatch, columns)):
        raise NotPlainParquetError("it has columns that Spark computes")
    locations = _LOCATION.findall(explained[optimized.end() :])
    if len(locations) != 1 or locations[0][0] != "InMemoryFileIndex":
        raise NotPlainParquetError("its files are not plain Parquet files")
    ((_, count, listed),) = locations
    roots = tuple(listed.split(", "))
    if len(roots) != int(count):
        raise NotPlainParquetError("Spark's plan does not show its folders clearly")
    return ParquetPlan(files, roots)


@contextmanager
def _whole_texts(spark: SparkSession) -> Iterator[None]:
    before = {name: spark.conf.get(name, default) for name, default in _LONGEST.items()}
    try:
        for name in before:
            spark.conf.set(name, str(2**31 - 1))
        yield
    finally:
        for name, value in before.items():
            spark.conf.set(name, str(value))


def _seen_by_server(spark: SparkSession, files: Sequence[StoragePath]) -> dict[str, tuple[int, int]]:
    """Return size and time of change, in milliseconds, of files of the server's disk."""
    if not files:
        return {}
    found = spark.read.format("binaryFile").load([literal_hadoop_uri(file) for file in files])
    rows = found.select("path", "length", F.unix_millis("modificationTime")).collect()
    return {"/" + path.removeprefix("file:").lstrip("/"): (size, changed) for path, size, changed in rows}


def require_same(seen: Mapping[str, tuple[int, int]]) -> None:
    """Check that files of a server's disk are the same on this one.

    Raises:
        NotPlainParquetError: They are not.
    """
    try:
        found = {name: Path(name).stat() for name in seen}
    except OSError as error:
        raise NotPlainParquetError(f"its files are on a disk of the server ({error.strerror})") from error
    if {name: (status.st_size, status.st_mtime_ns // 10**6) for name, status in found.items()} != seen:
        raise NotPlainParquetError("its files are on a disk of the server, and others of their names are on this one")
