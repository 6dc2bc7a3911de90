"""Functions that read, write and check TFRecord files with Spark, beyond Spark's interface for Python data sources.

``spark.read.format("tfrecord")`` and ``df.write.format("tfrecord")`` do the same as that interface allows.
"""

import functools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StructType, TimestampType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import (
    WriteResult,
    arrow_schema_of,
    counted,
    numbered_partitions,
    numbers_of,
    outcome,
    spark_schema_of,
    tfrecord_options,
    tfrecord_tasks,
    with_plain_names,
    write_files,
)
from mirrorspark.data_pipelines.tfrecord import (
    CodecError,
    DamagedRecordError,
    MalformedExampleError,
    arrow_schema,
    table_blocks,
)
from mirrorspark.spark_session import (
    SPARK_ERRORS,
    TaskTotal,
    on_running_session,
    partition_id,
    session_of,
    task_message,
    versions,
)
from mirrorspark.storage import Location, StoragePath, listing, meant
from mirrorspark.storage.publish import SaveMode, TargetExistsError, WriteJob

# Errors of a task for rows that no record can hold.
_REFUSALS = (arrow_schema.SchemaError, arrow_schema.ValueNotStorableError)

T = TypeVar("T")


class ReadError(ClearError, OSError):
    """Files that cannot be read; the message is that of the failed task."""


@on_running_session
def write_tfrecords(
    df: DataFrame,
    path: Location,
    *,
    mode: str = "error",
    partition_by: Sequence[str] = (),
    layout: str = "row",
    codec: str = "none",
    record_type: str = arrow_schema.RecordType.EXAMPLE,
    rows_per_block: int = table_blocks.ROWS_PER_BLOCK,
    max_rows_per_file: int = 0,
) -> WriteResult:
    """Write the rows of ``df`` to TFRecord files, one per task, which appear all together or not at all.

    Args:
        df: The table. Its columns are the records' features.
        path: Folder of the files, on any store that executors and driver reach.
        mode: ``error`` refuses a folder with data, ``append`` adds to it, ``overwrite`` replaces it once the new files
            are complete, ``ignore`` leaves it and writes nothing.
        partition_by: Columns that become folders (``day=3/``) and are left out of the records.
        layout: ``row`` for one row per record, ``block`` for ``rows_per_block`` of them.
        codec: ``none``, ``gzip`` or ``zlib``.
        record_type: ``Example``, ``SequenceExample`` or ``ByteArray``.
        rows_per_block: Rows in one record of the block layout.
        max_rows_per_file: A task begins a new file after this many rows; 0 for one file per task (and folder).

    Raises:
        OptionError: An option has a value that it does not take.
        SchemaError: Records cannot hold the columns: a type has no mapping, or a name is repeated.
        TargetExistsError: The mode is ``error``, and there is data.
        ValueNotStorableError: A record cannot hold a value.
        WriteError: The write failed; the message says why. Nothing of it is visible.
        OSError: The files were written whole and cannot be published; the message names the visible part.
    """
    options = tfrecord_options.WriteOptions(
        record_type=record_type,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        codec=codec,
        rows_per_block=rows_per_block,
        max_rows_per_file=max_rows_per_file,
    )
    check_columns(df.schema, options, partition_by)
    job = _begin(path, mode)
    if job is None:
        return WriteResult()
    names = tuple(df.columns)
    df = with_plain_names(df)
    plain = dict(zip(names, df.columns, strict=True))
    if partition_by:
        texts = [plain[name] for name in partition_by if not isinstance(df.schema[plain[name]].dataType, TimestampType)]
        # As text they are folders' names; timestamps become text in the task, where no session's zone matters.
        df = df.withColumns({name: F.col(name).cast("string") for name in texts})
        # Sorted, a task has one file open at a time.
        df = df.sortWithinPartitions(*(plain[name] for name in partition_by))
    df, count = counted(df)
    writer = _DataFrameWriter(tfrecord_tasks.WriteTask(job, options, tuple(partition_by)), names)
    return write_files(df, job, writer, count, refusal=arrow_schema.ValueNotStorableError)


@on_running_session
def write_tfrecords_from_parquet(
    spark: SparkSession,
    parquet: Location | Sequence[Location],
    path: Location,
    *,
    columns: Sequence[str] | None = None,
    mode: str = "error",
    layout: str = "block",
    codec: str = "none",
    record_type: str = arrow_schema.RecordType.EXAMPLE,
    rows_per_block: int = table_blocks.ROWS_PER_BLOCK,
    max_rows_per_file: int = 0,
) -> WriteResult:
    """Write the rows of Parquet files to TFRecord files; tasks read them with pyarrow, without the JVM.

    Tasks get consecutive row groups, about equal in bytes. Everything else is as in :func:`write_tfrecords`.

    Args:
        spark: Runs the tasks.
        parquet: Files, folders or globs of files of one schema; partition folders become columns.
        path: Folder of the new files.
        columns: The columns to write, in this order; all by default. Others are not read.
        mode: The treatment of data at ``path``, as in :func:`write_tfrecords`.
        layout: ``block`` or ``row``.
        codec: ``none``, ``gzip`` or ``zlib``.
        record_type: ``Example``, ``SequenceExample`` or ``ByteArray``.
        rows_per_block: Rows in one record of the block layout.
        max_rows_per_file: A task begins a new file after this many rows; 0 for one file per task.

    Raises:
        FileNotFoundError: There are no Parquet files.
        ParquetError: A file is not Parquet, or its columns differ from the first file's.
        OptionError: An option has a value that it does not take.
        SchemaError: Records cannot hold the columns.
        TargetExistsError: The mode is ``error``, and there is data.
        ValueNotStorableError: A record cannot hold a value.
        WriteError: The write failed; the message says why. Nothing of it is visible.
        OSError: The files were written whole and cannot be published; the message names the visible part.
    """
    options = tfrecord_options.WriteOptions(
        record_type=record_type,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        codec=codec,
        rows_per_block=rows_per_block,
        max_rows_per_file=max_rows_per_file,
    )
    source = parquet_rows.ParquetRows.of(parquet, columns)
    check_storable(source.schema, options)
    job = _begin(path, mode)
    if job is None:
        return WriteResult()
    shares = source.divide(session_of(spark).default_parallelism)
    numbers = numbered_partitions(spark, len(shares))
    writer = _ParquetWriter(tfrecord_tasks.WriteTask(job, options), source, shares)
    return write_files(numbers, job, writer, lambda: source.rows, refusal=arrow_schema.ValueNotStorableError)


def check_columns(schema: StructType, options: tfrecord_options.WriteOptions, partition_by: Sequence[str] = ()) -> None:
    """Check that records can hold the columns of ``schema``, before any task starts.

    Raises:
        SchemaError: A type has no mapping, a name is repeated, or all columns are folders' names.
    """
    names = schema.fieldNames()
    missing = [name for name in partition_by if name not in names]
    if missing:
        hint = meant(missing[0], names)
        raise arrow_schema.SchemaError(f"there is no column {missing} to partition by; the table has {names}{hint}")
    stored = StructType([field for field in schema.fields if field.name not in partition_by])
    if not stored.fields:
        raise arrow_schema.SchemaError(f"all columns ({names}) are folders' names; a record needs one that is not")
    check_storable(arrow_schema_of(stored), options)


def check_storable(schema: pa.Schema, options: tfrecord_options.WriteOptions) -> None:
    """Check that records of a layout can hold columns.

    Raises:
        SchemaError: A type has no mapping, or a name is repeated or reserved.
    """
    arrow_schema.table_columns(schema, options.record_type)
    if options.layout is tfrecord_options.Layout.BLOCK:
        table_blocks.check_block_schema(schema)
    elif options.record_type is arrow_schema.RecordType.EXAMPLE and table_blocks.BLOCK_ROWS in schema.names:
        raise arrow_schema.SchemaError(
            f"column '{table_blocks.BLOCK_ROWS}' has a name that is reserved for blocks of rows; rename it"
        )


def _begin(path: Location, mode: str) -> WriteJob | None:
    """Return a new write, or None if there is data and the mode is ``ignore``."""
    save_mode = SaveMode.of(mode)
    try:
        return WriteJob.begin(StoragePath.of(path), save_mode)
    except TargetExistsError:
        if save_mode is SaveMode.IGNORE:
            return None
        raise


@dataclass(frozen=True)
class _DataFrameWriter:
    """The body of a task that writes Spark's rows to files and returns a report."""

    task: tfrecord_tasks.WriteTask
    names: tuple[str, ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        named = (batch.rename_columns(list(self.names)) for batch in batches)
        yield outcome(self.task.job, lambda: self.task(partition_id(), named), refusals=_REFUSALS)


@dataclass(frozen=True)
class _ParquetWriter:
    """The body of a task that writes its share of the row groups to files and returns a report."""

    task: tfrecord_tasks.WriteTask
    source: parquet_rows.ParquetRows
    shares: tuple[tuple[parquet_rows.RowGroups, ...], ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in numbers_of(batches):
            rows = self.source.batches(self.shares[number], self.task.options.rows_per_block)
            yield outcome(self.task.job, functools.partial(self.task, number, rows), refusals=_REFUSALS)


@on_running_session
def read_tfrecords(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    *,
    columns: Sequence[str] | None = None,
    schema: StructType | str | None = None,
    record_type: str = arrow_schema.RecordType.EXAMPLE,
    codec: str | None = None,
    on_damage: str = "fail",
    verify_checksums: bool = True,
    sample_files: int = 0,
    base_path: Location | None = None,
    damaged: TaskTotal[int] | None = None,
) -> DataFrame:
    """Return a DataFrame of TFRecord files of either layout; one task reads each file, or several small ones.

    Args:
        spark: Runs the tasks.
        paths: Files, folders or globs; partition folders (``day=3/``) become columns.
        columns: The columns to read, in this order; all by default. Features of other names are not decoded.
        schema: The columns and their types, as a schema or DDL string; inferred from the records by default.
        record_type: ``Example``, ``SequenceExample`` or ``ByteArray``.
        codec: The compression that files must have; detected from their content by default.
        on_damage: ``fail``, or ``skip`` damaged records.
        verify_checksums: Compare the checksums of each record.
        sample_files: The number of files to infer the schema from; 0 for all.
        base_path: Folder below which folders count as partitions; each of ``paths`` itself by default.
        damaged: Counter of skipped records, set after an action has read them: ``spark.sparkContext.accumulator(0)``,
            or :meth:`spark_session.session.Session.task_total`.
            It is exact for one action that reads every file to its end: retried tasks count once; repeated reads (a
            second action, a lost stage, a self-join, a speculative task before a shuffle) count again; and a file that
            a ``limit`` stops in the middle does not count. :func:`check_tfrecords` counts each file once.

    Raises:
        FileNotFoundError: Nothing is at one of ``paths``.
        OptionError: An option has a value that it does not take.
        SchemaError: Records cannot hold the columns, a requested column does not exist, or no schema can be inferred.
        CodecError: During inference, a file is not compressed with the given codec.
        DamagedRecordError: During inference, a record is damaged and ``on_damage`` is ``fail``.
        MalformedExampleError: During inference, a record is not a message of the record type.
        ReadError: During inference, a file cannot be read at all. With a given schema, any problem of a file fails the
            action that reads it.
    """
    options = tfrecord_options.ReadOptions(
        record_type=record_type,  # type: ignore[arg-type]
        codec=codec,
        on_damage=on_damage,  # type: ignore[arg-type]
        verify_checksums=verify_checksums,
        sample_files=sample_files,
        base_path=base_path,
    )
    files = listing.list_files(paths, base_path=base_path)
    if schema is None:
        full = spark_schema_of(_inferred(spark, files, options))
    else:
        full = schema if isinstance(schema, StructType) else versions.type_of_ddl(schema)  # type: ignore[assignment]
    wanted = _selected(with_partition_columns(full, files), columns)
    task = tfrecord_tasks.ReadTask(arrow_schema_of(wanted), options, damaged)
    check_readable(task.schema, files, options)
    shares = tuple(listing.pack_files(files, session_of(spark).default_parallelism))
    return numbered_partitions(spark, len(shares)).mapInArrow(_RowReader(task, shares), wanted)


@on_running_session
def check_tfrecords(
    spark: SparkSession, paths: Location | Sequence[Location], *, codec: str | None = None
) -> tuple[tfrecord_tasks.FileReport, ...]:
    """Read all records of some files, compare their checksums, and report the state of each file.

    A file that cannot be read is reported like any other, with its problem.

    Args:
        spark: Runs the tasks.
        paths: Files, folders or globs.
        codec: The compression that files must have; detected from their content by default.

    Raises:
        FileNotFoundError: Nothing is at one of ``paths``.
        ReadError: The tasks failed; the message gives the reason.
    """
    options = tfrecord_options.ReadOptions(codec=codec, on_damage=tfrecord_options.OnDamage.SKIP)
    found = _collected(spark, listing.list_files(paths), functools.partial(tfrecord_tasks.check_files, options=options))
    return tuple(sorted((report for reports in found for report in reports), key=lambda report: report.path))


def _inferred(
    spark: SparkSession, files: Sequence[listing.DataFile], options: tfrecord_options.ReadOptions
) -> pa.Schema:
    sample = tfrecord_tasks.sampled(files, options.sample_files)
    inferred = _collected(spark, sample, functools.partial(tfrecord_tasks.infer_files, options=options))
    return tfrecord_tasks.merged_schema(inferred, options)


def _collected(
    spark: SparkSession, files: Sequence[listing.DataFile], look: Callable[[Sequence[listing.DataFile]], T]
) -> list[T]:
    """Return the results of ``look`` for each task's share of ``files``."""
    shares = tuple(listing.pack_files(files, session_of(spark).default_parallelism))
    if not shares:
        return []
    try:
        numbers = numbered_partitions(spark, len(shares))
        rows = numbers.mapInArrow(_Looks(look, shares), "seen binary, refused binary").collect()
    except SPARK_ERRORS as error:
        raise ReadError(f"the files cannot be read: {task_message(error)}") from error
    # Our own tasks have pickled these.
    for row in rows:
        if row["refused"] is not None:
            raise pickle.loads(row["refused"])  # noqa: S301
    return [pickle.loads(row["seen"]) for row in rows]  # noqa: S301


@dataclass(frozen=True)
class _Looks:
    """The body of a task that inspects its share of the files and returns the result."""

    look: Callable[[Sequence[listing.DataFile]], object]
    shares: tuple[tuple[listing.DataFile, ...], ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in numbers_of(batches):
            try:
                row = {"seen": pickle.dumps(self.look(self.shares[number])), "refused": None}
            except (CodecError, DamagedRecordError, MalformedExampleError, arrow_schema.SchemaError) as error:
                # Reported, not raised: Spark would retry, and hide the message under two stack traces.
                row = {"seen": None, "refused": pickle.dumps(error)}
            yield pa.RecordBatch.from_pylist([row], pa.schema([("seen", pa.binary()), ("refused", pa.binary())]))


def with_partition_columns(schema: StructType, files: Sequence[listing.DataFile]) -> StructType:
    """Return ``schema`` with an additional column for each missing partition folder of ``files``."""
    known = set(schema.fieldNames())
    added = [field for field in spark_schema_of(listing.partition_schema(files)).fields if field.name not in known]
    return StructType([*schema.fields, *added])


def check_readable(schema: pa.Schema, files: Sequence[listing.DataFile], options: tfrecord_options.ReadOptions) -> None:
    """Check that columns can be read from records, before any task starts.

    Raises:
        SchemaError: A column has no mapping to records.
    """
    folders = {name for file in files for name, _ in file.partition}
    stored = pa.schema([field for field in schema if field.name not in folders])
    if len(stored):
        arrow_schema.table_columns(stored, options.record_type)


def _selected(schema: StructType, columns: Sequence[str] | None) -> StructType:
    if columns is None:
        return schema
    fields = {field.name: field for field in schema.fields}
    missing = [name for name in columns if name not in fields]
    if missing or not columns:
        hint = meant(missing[0], fields) if missing else ""
        raise arrow_schema.SchemaError(f"there is no column {missing or 'chosen'}; choose from {list(fields)}{hint}")
    return StructType([fields[name] for name in columns])


@dataclass(frozen=True)
class _RowReader:
    """The body of a task that reads its share of the files."""

    task: tfrecord_tasks.ReadTask
    shares: tuple[tuple[listing.DataFile, ...], ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in numbers_of(batches):
            yield from self.task(self.shares[number])
