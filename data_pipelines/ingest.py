"""Ingestion of CSV files as Parquet files of one size: typed, narrow, optionally sorted, published atomically.

It takes two passes of Spark tasks. The first types and sorts the rows and writes them to a staging folder; it measures
sizes and ranges on the way. The second cuts this table into files of the target size, in the narrowest types.
:mod:`storage.publish` makes them visible.

Spark's own sizing, ``maxRecordsPerFile``, counts rows within a partition, so that every partition would leave a short
file, where here only the table does. Its writer also needs Hadoop's connectors and commit protocol on an object store,
and the narrow types before it writes, which takes the first pass in any case.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.memory_tables import TableError
from mirrorspark.data_pipelines.spark import numbered_partitions, numbers_of
from mirrorspark.data_pipelines.stored_tables import declared_csv
from mirrorspark.spark_session import SPARK_ERRORS, first_line, on_running_session, task_message
from mirrorspark.storage import StoragePath
from mirrorspark.storage.publish import SaveMode, TargetExistsError, WriteJob, WrittenFile

# In a job over 620 million rows, 3,500 files of about this size read fastest from an object store: large enough to make
# opening them cheap, small enough to keep every core of a cluster busy to the end.
TARGET_FILE_BYTES = 240_000_000
ROW_GROUP_BYTES = 64 * 2**20

# Row groups that are written twice to measure the savings of narrower types.
_PILOT_GROUPS = 8
_RESULT_SCHEMA = "result string"
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())


class IngestError(ClearError, ValueError):
    """CSV files that cannot be ingested; the message names the value or column and the remedy."""


@dataclass(frozen=True)
class IngestResult:
    """The result of an ingestion.

    Attributes:
        files: The Parquet files, in the order of their rows; an empty ``_SUCCESS`` is next to them, as after a write of
            Spark.
        rows: The number of rows in all of them.
        bytes: Their total size.
        types: The Arrow type of each column, as text.
    """

    files: tuple[str, ...]
    rows: int
    bytes: int
    types: Mapping[str, str]


@dataclass(frozen=True)
class RowGroup:
    """A row group of a staged file."""

    file: str
    number: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``stop`` of a staged row group."""

    group: RowGroup
    start: int
    stop: int


@dataclass(frozen=True)
class ColumnRange:
    """The range of a column of numbers: bounds of whole numbers, and a flag for values that fit float32 exactly."""

    minimum: int | None = None
    maximum: int | None = None
    fits_float32: bool = True

    def merged(self, other: "ColumnRange") -> "ColumnRange":
        """Return the range of both."""
        bounds = [range_ for range_ in (self, other) if range_.minimum is not None and range_.maximum is not None]
        return ColumnRange(
            min((range_.minimum for range_ in bounds if range_.minimum is not None), default=None),
            max((range_.maximum for range_ in bounds if range_.maximum is not None), default=None),
            self.fits_float32 and other.fits_float32,
        )


@on_running_session
def ingest_csv(
    spark: SparkSession,
    paths: str | Sequence[str],
    output: str | StoragePath,
    *,
    schema: str,
    sort_by: str | Sequence[str] = (),
    target_file_bytes: int = TARGET_FILE_BYTES,
    row_group_bytes: int = ROW_GROUP_BYTES,
    downcast: bool = True,
    compression: str = "zstd",
    csv_null: str = "",
    encoding: str | None = None,
    separator: str | None = None,
) -> IngestResult:
    """Write CSV files, plain or packed with gzip or bzip2, as Parquet files of about ``target_file_bytes`` each.

    ``output`` appears atomically and complete, or not at all; on an object store its ``_SUCCESS`` appears last, and the
    next write to it takes back an interrupted publish. All files but the last have the target size within 20%; the last
    one has the rest.

    Args:
        spark: The session.
        paths: Files, folders or globs, which are read as :func:`data_pipelines.read_table` reads them; each file has a
            header line. Several tasks read a large file, but only one a gzip file or one with line breaks in cells.
        output: Folder to create, a local path or a URI on any store. It must be reachable from the executors.
        schema: The columns in Spark's DDL; the files may have more, in any order.
        sort_by: Sort all rows by these columns, so that equal values are adjacent and a filter on them skips files.
        target_file_bytes: Size of a file on the store.
        row_group_bytes: Memory of a row group when read; a task of either pass holds about two.
        downcast: Store whole numbers in the narrowest type that holds every value of the column, and doubles as float32
            if that changes no value.
        compression: ``zstd``, ``snappy``, ``gzip`` or ``none``.
        csv_null: A further text that means null, in addition to those of :func:`data_pipelines.read_table`.
        encoding: The encoding of the files in Python's words, such as ``"windows-1252"``; by default UTF-8, or the one
            that a byte order mark shows.
        separator: The character between two values; by default the one that the files show.

    Raises:
        IngestError: There is data at ``output``, a column of ``sort_by`` is not in the schema, a header lacks a column
            of the schema, there are no rows, or a value does not fit its column.
        LakeTableError: ``paths`` or ``output`` is, or lies in, a Delta, Iceberg or Hudi table.
        ValueError: A size is not above zero.
    """
    for name, size in (("target_file_bytes", target_file_bytes), ("row_group_bytes", row_group_bytes)):
        if size < 1:
            raise ValueError(f"{name} {size} is below 1; give a size in bytes, for example {TARGET_FILE_BYTES}")
    try:
        job = WriteJob.begin(StoragePath.of(output), SaveMode.ERROR)
    except (TargetExistsError, NotADirectoryError):
        raise IngestError(f"{output} exists already; delete it, or choose another output") from None
    codec = None if compression == "none" else compression
    try:
        frame = _read(spark, paths, schema, sort_by, csv_null, encoding, separator)
        parts = _run(frame, FirstPassTask(job, row_group_bytes, codec))
        groups = [RowGroup(**group) for part in parts for group in part["groups"]]
        if not groups:
            raise IngestError(f"there are no rows in {paths}; check the path")
        ranges = _merged_ranges(part["ranges"] for part in parts)
        staged_schema = _schema_of(StoragePath.of(groups[0].file))
        final = narrow_schema(staged_schema, ranges) if downcast else staged_schema
        scale = _pilot(groups, final, codec) if final != staged_schema else 1.0
        plan = plan_files(groups, target_file_bytes / scale)
        numbers = numbered_partitions(spark, len(plan))
        cut = _run(numbers, CutTask(job, tuple(map(tuple, plan)), row_group_bytes, codec, final))
        written = sorted((WrittenFile(**file) for file in cut), key=lambda file: file.path)
        rows = sum(file.rows for file in written)
        if rows != sum(group.rows for group in groups):
            raise IngestError(f"{output} would not hold all rows of {paths}; this is a bug: report it")
        job.publish(written)
    except SPARK_ERRORS as error:
        raise IngestError(
            f"{paths} cannot be read with the schema '{schema}': {task_message(error)}; fix the schema, or the value"
        ) from None  # the message has the one useful line of a hundred lines of Java
    except TargetExistsError as error:
        raise IngestError(f"another write has made {output} meanwhile; delete it, or choose another output") from error
    finally:
        job.abort()
    return IngestResult(
        files=tuple(str(job.target / file.path) for file in written),
        rows=rows,
        bytes=sum(file.bytes for file in written),
        types={field.name: str(field.type) for field in final},
    )


def plan_files(groups: Sequence[RowGroup], target_bytes: float) -> list[list[Span]]:
    """Cut the staged rows, in order, into files of ``target_bytes`` each; the last one gets the rest.

    Each row counts with the mean size of its row group.
    """
    files: list[list[Span]] = [[]]
    room = target_bytes
    for group in groups:
        start = 0
        row_bytes = max(group.bytes, 1) / group.rows
        while start < group.rows:
            # At least one row, however large: with empty files this would never end.
            rows = min(group.rows - start, max(round(room / row_bytes), 0 if files[-1] else 1))
            if rows:
                files[-1].append(Span(group, start, start + rows))
                start += rows
                room -= rows * row_bytes
            if start < group.rows:
                files.append([])
                room = target_bytes
    return files


def narrow_schema(schema: pa.Schema, ranges: Mapping[str, ColumnRange]) -> pa.Schema:
    """Return ``schema`` with each column of numbers in the narrowest type that holds its range."""
    return pa.schema([field.with_type(_narrow_type(field.type, ranges.get(field.name))) for field in schema])


def column_ranges(table: pa.Table) -> dict[str, ColumnRange]:
    """Return the range of every column of whole numbers or doubles."""
    return {
        field.name: _column_range(table.column(field.name))
        for field in table.schema
        if pa.types.is_integer(field.type) or pa.types.is_float64(field.type)
    }


@dataclass(frozen=True)
class FirstPassTask:
    """The body of a task of the first pass, which writes the partition's rows to a staged file and measures them."""

    job: WriteJob
    row_group_bytes: int
    codec: str | None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the row groups written and the ranges of the columns, as JSON."""
        ranges: dict[str, ColumnRange] = {}
        writer: pq.ParquetWriter | None = None
        tables = _gathered(batches, self.row_group_bytes)
        first = next(tables, None)
        if first is None:
            return
        path = _begun_file(self.job, "staged.parquet")[1]
        with path.open_write() as file:
            writer = pq.ParquetWriter(file, first.schema, compression=self.codec)
            with writer:
                for table in _chained(first, tables):
                    writer.write_table(table, row_group_size=table.num_rows)
                    ranges = _merged_ranges([_as_dicts(ranges), _as_dicts(column_ranges(table))])
        yield _result({"groups": [asdict(group) for group in _row_groups(path)], "ranges": _as_dicts(ranges)})


@dataclass(frozen=True)
class CutTask:
    """The body of a task of the second pass, which writes one file of the plan."""

    job: WriteJob
    plan: tuple[tuple[Span, ...], ...]
    row_group_bytes: int
    codec: str | None
    schema: pa.Schema

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield each file written, as JSON."""
        for number in numbers_of(batches):
            name = _file_name(number)
            attempt, path = _begun_file(self.job, name)
            rows = 0
            with (
                path.open_write() as file,
                pq.ParquetWriter(file, self.schema, compression=self.codec) as writer,
            ):
                for table in _gathered(self._pieces(number), self.row_group_bytes):
                    writer.write_table(table, row_group_size=table.num_rows)
                    rows += table.num_rows
            yield _result(asdict(WrittenFile(attempt, name, rows, records=rows, bytes=path.size())))

    def _pieces(self, number: int) -> Iterator[pa.RecordBatch]:
        for span in self.plan[number]:
            with StoragePath.of(span.group.file).open_read() as file:
                table = pq.ParquetFile(file).read_row_group(span.group.number)
            yield from table.slice(span.start, span.stop - span.start).cast(self.schema).to_batches()


def _begun_file(job: WriteJob, name: str) -> tuple[str, StoragePath]:
    """Return the name of a new attempt and the place of its file; failed attempts are never published."""
    attempt = uuid4().hex
    job.begin_attempt(attempt)
    return attempt, job.attempt_file(attempt, name)


def _read(
    spark: SparkSession,
    paths: str | Sequence[str],
    schema: str,
    sort_by: str | Sequence[str],
    csv_null: str,
    encoding: str | None,
    separator: str | None,
) -> DataFrame:
    try:
        wanted = spark.createDataFrame([], schema).schema
    except PySparkException as error:
        raise IngestError(f"{paths} cannot be read as CSV with the schema '{schema}': {first_line(error)}") from error
    try:
        frame = declared_csv(
            spark,
            [paths] if isinstance(paths, str) else paths,
            wanted,
            null=csv_null,
            encoding=encoding,
            separator=separator,
        )
    except TableError as error:
        raise IngestError(f"{paths} cannot be read: {error}") from error
    order = [sort_by] if isinstance(sort_by, str) else list(sort_by)
    missing = [name for name in order if name not in frame.columns]
    if missing:
        raise IngestError(f"sort_by {missing} is not in the schema; choose from {frame.columns}")
    return frame.orderBy(*order) if order else frame


def _run(frame: DataFrame, task: FirstPassTask | CutTask) -> list[dict[str, Any]]:
    # Spark returns results in the order of the partitions, which is the order of the rows.
    return [json.loads(row.result) for row in frame.mapInArrow(task, _RESULT_SCHEMA).collect()]


def _gathered(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield tables of ``size`` bytes of memory or a little more; the last one may be smaller."""
    waiting: list[pa.RecordBatch] = []
    waiting_bytes = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        waiting_bytes += batch.nbytes
        if waiting_bytes >= size:
            yield pa.Table.from_batches(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _chained(first: pa.Table, rest: Iterable[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _row_groups(path: StoragePath) -> list[RowGroup]:
    with path.open_read() as file:
        metadata = pq.ParquetFile(file).metadata
    return [
        RowGroup(str(path), number, metadata.row_group(number).num_rows, _stored_bytes(metadata.row_group(number)))
        for number in range(metadata.num_row_groups)
    ]


def _stored_bytes(group: pq.RowGroupMetaData) -> int:
    # total_byte_size is the size before compression.
    return sum(group.column(column).total_compressed_size for column in range(group.num_columns))


def _schema_of(path: StoragePath) -> pa.Schema:
    with path.open_read() as file:
        return pq.ParquetFile(file).schema_arrow


def _pilot(groups: Sequence[RowGroup], schema: pa.Schema, codec: str | None) -> float:
    """Return the size of some row groups in the types of ``schema``, relative to their staged size."""
    chosen = sorted({round(place) for place in np.linspace(0, len(groups) - 1, _PILOT_GROUPS)})
    before = after = 0
    for group in (groups[place] for place in chosen):
        with StoragePath.of(group.file).open_read() as file:
            table = pq.ParquetFile(file).read_row_group(group.number).cast(schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=codec or "none", row_group_size=table.num_rows)
        before += group.bytes
        after += _stored_bytes(pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.row_group(0))
    return after / before if before else 1.0


def _column_range(column: pa.ChunkedArray) -> ColumnRange:
    if pa.types.is_float64(column.type):
        values = column.drop_null().to_numpy()
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32).astype(np.float64)
        return ColumnRange(fits_float32=bool(((narrow == values) | np.isnan(values)).all()))
    bounds = pc.min_max(column).as_py()
    return ColumnRange(bounds["min"], bounds["max"])


def _narrow_type(column_type: pa.DataType, found: ColumnRange | None) -> pa.DataType:
    if found is None:
        return column_type
    if pa.types.is_float64(column_type):
        return pa.float32() if found.fits_float32 else column_type
    if found.minimum is None or found.maximum is None:
        return column_type
    for candidate in _INTEGERS:
        limit = 2 ** (candidate.bit_width - 1)
        if candidate.bit_width <= column_type.bit_width and -limit <= found.minimum and found.maximum < limit:
            return candidate
    return column_type


def _merged_ranges(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, ColumnRange]:
    merged: dict[str, ColumnRange] = {}
    for part in parts:
        for name, found in part.items():
            merged[name] = merged.get(name, ColumnRange()).merged(ColumnRange(**found))
    return merged


def _as_dicts(ranges: Mapping[str, ColumnRange]) -> dict[str, dict[str, Any]]:
    return {name: asdict(found) for name, found in ranges.items()}


def _file_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _result(document: Mapping[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"result": pa.array([json.dumps(document)], pa.string())})
