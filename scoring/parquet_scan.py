"""Rows of a DataFrame for a task: read past the JVM where the DataFrame is nothing but columns of plain Parquet files.

A row of 40 columns costs more on its way from the JVM to Python than to be scored. Where all that Spark would do is to
read files, tasks read them on their own; the plan keeps the files, so that Spark goes on to refuse writing over their
table.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args
from urllib.parse import unquote

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema
from pyspark.sql.types import DataType, StructField, StructType, UserDefinedType

from data_pipelines.file_listing import DataFile
from data_pipelines.parquet_rows import ParquetError, ParquetRows, parquet_files
from data_pipelines.storage import StorageError, StoragePath
from scoring.checks import ScoringError
from scoring.shares import Shares
from scoring.shipping import BatchFunction, map_batches, portable

_LOGGER = logging.getLogger(__name__)

_PARQUET = "org.apache.spark.sql.execution.datasources.parquet.ParquetFileFormat"
# The footer of each is read before the job starts.
_MOST_FILES = 1_000

Reader = Literal["auto", "spark", "tasks"]
"""Who reads the rows.

``auto``: the tasks, of plain Parquet files on a disk that they share with the driver; else Spark. ``tasks``: they, of
plain Parquet files anywhere, with the credentials that their environment holds. ``spark``: always Spark.
"""


def map_rows(table: DataFrame, task: BatchFunction, schema: StructType, reader: Reader = "auto") -> DataFrame:
    """Return what ``task`` makes of the rows of ``table``.

    Args:
        table: The rows.
        task: The body of a task; it pickles, by reference to its module.
        schema: Of what it yields.
        reader: Who reads the rows.

    Raises:
        ScoringError: The tasks are to read the rows, and cannot; the message says why. Or ``reader`` is unknown.
    """
    if reader not in get_args(Reader):
        raise ScoringError(f"reader '{reader}' is unknown; use {', '.join(get_args(Reader))}")
    if reader == "spark":
        return map_batches(table, task, schema)
    try:
        rows = _plain_rows(table, only_local=reader == "auto")
    except _NotPlainError as reason:
        if reader == "tasks":
            raise ScoringError(
                f"tasks cannot read the table on their own: {reason}; give the DataFrame of spark.read.parquet, or "
                f"leave reader as it is"
            ) from reason
        _LOGGER.info("Spark reads the rows and hands them over: %s", reason)
        return map_batches(table, task, schema)
    spark = table.sparkSession
    shares = Shares.of(rows, rows.groups_per_task(spark.sparkContext.defaultParallelism))
    _LOGGER.info("%d tasks read the table's Parquet files on their own", len(shares.groups))
    # What keeps the files in the plan gives no row, and costs none: the optimizer drops it.
    nothing = table.where(F.lit(False)).select(F.lit(0).cast("bigint").alias("id"))
    return shares.partitions(spark).union(nothing).mapInArrow(portable(SharesTask(shares, task)), schema)


@dataclass(frozen=True)
class SharesTask:
    """The body of a task that reads its share of the row groups itself.

    Attributes:
        shares: The rows of each task.
        task: Gets the rows of a share.
    """

    shares: Shares
    task: BatchFunction

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what comes of each share that ``batches`` number."""
        for _, rows in self.shares.read(batches):
            yield from self.task(rows)


class _NotPlainError(Exception):
    """A DataFrame is more than columns of plain Parquet files, or less; the message says what."""


def _plain_rows(table: DataFrame, *, only_local: bool) -> ParquetRows:
    """Return the rows of ``table`` as tasks can read them.

    Raises:
        _NotPlainError: They cannot, or would not read the same.
    """
    location = _relation(table).location()
    try:
        rows = ParquetRows.of_files(_files(location, only_local=only_local), table.columns)
    except (ParquetError, StorageError, OSError) as error:
        raise _NotPlainError(str(error)) from error
    return replace(rows, schema=_as_spark_sends_it(rows.schema, table.schema))


def _files(location: Any, *, only_local: bool) -> list[DataFile]:
    """Return the files of Spark's list of files, with what their folders say of them."""
    wanted = sorted(_spelled(unquote(uri)) for uri in location.inputFiles())
    roots = [location.rootPaths().apply(place).toString() for place in range(location.rootPaths().size())]
    folders = [StoragePath.of(_spelled(root)) for root in roots]
    if only_local and len(wanted) > _MOST_FILES:
        raise _NotPlainError(f"it has {len(wanted)} files, more than {_MOST_FILES}")
    if only_local and not all(folder.is_local for folder in folders):
        raise _NotPlainError("its files are on a store for which tasks may have no credentials")
    files = parquet_files(folders)
    if sorted(file.path.uri for file in files) != wanted:
        raise _NotPlainError("Spark passes over some of the files in its folders")
    return files


def _relation(table: DataFrame) -> Any:
    """Return Spark's own description of the files, where the plan of ``table`` is to read columns of it and no more."""
    if table.isStreaming:
        raise _NotPlainError("it is a stream")
    plan = table._jdf.queryExecution().optimizedPlan()
    while _kind(plan) == "Project":
        if not plan.outputSet().subsetOf(plan.child().outputSet()):
            raise _NotPlainError("it has columns that Spark computes")
        plan = plan.child()
    if _kind(plan) != "LogicalRelation" or _kind(plan.relation()) != "HadoopFsRelation":
        raise _NotPlainError(f"its rows come from a step of Spark, {plan.nodeName()}")
    relation = plan.relation()
    # Formats built on Parquet, and tables whose log says which files count, have classes of their own.
    if relation.fileFormat().getClass().getName() != _PARQUET or _kind(relation.location()) != "InMemoryFileIndex":
        raise _NotPlainError("its files are not plain Parquet files")
    return relation


def _kind(plan: Any) -> str:
    return str(plan.getClass().getSimpleName())


def _spelled(path: str) -> str:
    """Return Hadoop's ``path`` as :class:`StoragePath` spells it, a local one without a scheme."""
    return "/" + path.removeprefix("file:").lstrip("/") if path.startswith("file:") else str(StoragePath.of(path))


def _as_spark_sends_it(found: pa.Schema, schema: StructType) -> pa.Schema:
    """Return the columns of the files as Spark would hand them over.

    Raises:
        _NotPlainError: Spark takes a column for something else: it was told a schema, or reads files in its own way.
    """
    sent = StructType([StructField(field.name, _stored(field.dataType)) for field in schema])
    try:
        in_files = {field.name: field.dataType.simpleString() for field in from_arrow_schema(found)}
    except PySparkException as error:
        raise _NotPlainError(str(error)) from error
    for field in sent:
        if in_files[field.name] != field.dataType.simpleString():
            raise _NotPlainError(
                f"column '{field.name}' is {in_files[field.name]} in the files, and {field.dataType.simpleString()} to "
                f"Spark"
            )
    return to_arrow_schema(sent, timezone="UTC")


def _stored(type_: DataType) -> DataType:
    return type_.sqlType() if isinstance(type_, UserDefinedType) else type_
