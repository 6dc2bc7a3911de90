"""Reading of a DataFrame's rows in tasks, without the JVM, for DataFrames that only select columns of Parquet files.

The transfer of a row of 40 columns from the JVM to Python costs more than scoring it. If Spark would only read files,
the tasks read the files themselves. The plan keeps the files, so that Spark still refuses to overwrite their table.

With rows that Spark reads, ``score`` slightly misses its target of 1.3 times ``predict_batch_udf``; rows read here are
twice as fast (``docs/benchmarks/score_files.md``).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import DataType, StructField, StructType, UserDefinedType

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import BatchFunction, Shares, map_batches, portable
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.spark_session import MissingCapabilityError, NotPlainParquetError, ParquetPlan, session_of, versions
from mirrorspark.storage import StorageError, StoragePath, listing

_LOGGER = logging.getLogger(__name__)

# The footers of all files are read before the job starts.
_MOST_FILES = 1_000

Reader = Literal["auto", "spark", "tasks"]
"""Reader of the rows.

``auto``: the tasks read plain Parquet files on a disk that they share with the driver; Spark reads everything else.
``tasks``: the tasks read plain Parquet files anywhere, with the credentials in their environment. ``spark``: always
Spark.
"""


def map_rows(table: DataFrame, task: BatchFunction, schema: StructType, reader: Reader = "auto") -> DataFrame:
    """Return the DataFrame that ``task`` computes from the rows of ``table``.

    Args:
        table: The rows.
        task: Body of a Spark task; it must pickle by reference to its module.
        schema: Columns that ``task`` yields.
        reader: Reader of the rows.

    Raises:
        ScoringError: ``reader`` is ``tasks``, but tasks cannot read the rows; the message gives the reason.
    """
    rows = rows_of(table, reader)
    if rows is None:
        return map_batches(table, task, schema)
    spark = table.sparkSession
    shares = Shares.of(rows, rows.groups_per_task(session_of(spark).default_parallelism))
    _LOGGER.info("%d tasks read the table's Parquet files on their own", len(shares.groups))
    # This empty branch keeps the files in the plan. It costs nothing because the optimizer drops it.
    nothing = table.where(F.lit(False)).select(F.lit(0).cast("bigint").alias("id"))
    return shares.partitions(spark).union(nothing).mapInArrow(portable(SharesTask(shares, task)), schema)


def rows_of(table: DataFrame, reader: Reader = "auto") -> parquet_rows.ParquetRows | None:
    """Return the rows of ``table`` in a form that tasks can read; None if Spark has to read them, and the log says why.

    Raises:
        ScoringError: ``reader`` is ``tasks``, but tasks cannot read the rows; the message gives the reason.
    """
    if reader == "spark":
        return None
    try:
        return _plain_rows(table, only_local=reader == "auto")
    except (NotPlainParquetError, MissingCapabilityError) as reason:
        if reader == "tasks":
            raise ScoringError(
                f"tasks cannot read the table on their own: {reason}; give the DataFrame of spark.read.parquet, or "
                f"leave reader as it is"
            ) from reason
        _LOGGER.info("Spark reads the rows and hands them over: %s", reason)
        return None


@dataclass(frozen=True)
class SharesTask:
    """Body of a task that reads its share of the row groups itself.

    Attributes:
        task: Body that processes the rows of a share.
    """

    shares: Shares
    task: BatchFunction

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the results of each share whose number is in ``batches``."""
        for _, rows in self.shares.read(batches):
            yield from self.task(rows)


def _plain_rows(table: DataFrame, *, only_local: bool) -> parquet_rows.ParquetRows:
    """Return the rows of ``table`` in a form that tasks can read.

    Raises:
        NotPlainParquetError: Tasks cannot read them, or would read something else.
    """
    plan = session_of(table.sparkSession).parquet_plan(table)
    try:
        rows = parquet_rows.ParquetRows.of_files(_files(plan, only_local=only_local), table.columns)
    except (parquet_rows.ParquetError, StorageError, OSError) as error:
        raise NotPlainParquetError(str(error)) from error
    return replace(rows, schema=_as_spark_sends_it(rows.schema, table.schema))


def _files(plan: ParquetPlan, *, only_local: bool) -> list[listing.DataFile]:
    """Return the files of a plan, with the partitions of their folders."""
    wanted = sorted(_storage_path(unquote(uri)) for uri in plan.files)
    folders = [StoragePath.of(_storage_path(root)) for root in plan.roots]
    if only_local and len(wanted) > _MOST_FILES:
        raise NotPlainParquetError(f"it has {len(wanted)} files, more than {_MOST_FILES}")
    if only_local and not all(folder.is_local for folder in folders):
        raise NotPlainParquetError("its files are on a store for which tasks may have no credentials")
    files = parquet_rows.parquet_files(folders)
    if sorted(file.path.uri for file in files) != wanted:
        raise NotPlainParquetError("Spark passes over some of the files in its folders")
    return files


def _storage_path(path: str) -> str:
    """Return Hadoop's ``path`` in the notation of :class:`StoragePath`, local paths without a scheme."""
    return "/" + path.removeprefix("file:").lstrip("/") if path.startswith("file:") else str(StoragePath.of(path))


def _as_spark_sends_it(found: pa.Schema, schema: StructType) -> pa.Schema:
    """Return the schema in which Spark would send the columns of the files.

    Raises:
        NotPlainParquetError: Spark gives a column another type, because of a given schema or its own reading of the
            files.
    """
    sent = StructType([StructField(field.name, _stored(field.dataType)) for field in schema])
    try:
        in_files = {field.name: field.dataType.simpleString() for field in versions.from_arrow_schema(found)}
    except PySparkException as error:
        raise NotPlainParquetError(str(error)) from error
    for field in sent:
        if in_files[field.name] != field.dataType.simpleString():
            raise NotPlainParquetError(
                f"column '{field.name}' is {in_files[field.name]} in the files, and {field.dataType.simpleString()} to "
                f"Spark"
            )
    return versions.to_arrow_schema(sent)


def _stored(type_: DataType) -> DataType:
    return type_.sqlType() if isinstance(type_, UserDefinedType) else type_
