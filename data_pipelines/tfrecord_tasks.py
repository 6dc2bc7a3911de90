"""What one Spark task does to TFRecord files, on Arrow batches alone: write a partition, read files, look at them."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from data_pipelines.file_listing import DataFile, partition_column, partition_folder
from data_pipelines.publish import WriteJob, WrittenFile
from data_pipelines.tfrecord.arrow_schema import FeatureTypeError, InferredSchema, RecordType, SchemaError
from data_pipelines.tfrecord.examples import MalformedExampleError
from data_pipelines.tfrecord.records import (
    CODEC_SUFFIX,
    BinaryWriter,
    CodecError,
    DamagedRecordError,
    RecordChunk,
    RecordScan,
    RecordWriter,
    compressed,
    open_records,
    scan_records,
)
from data_pipelines.tfrecord.row_codec import RowDecoder, RowEncoder
from data_pipelines.tfrecord.schema_inference import infer
from data_pipelines.tfrecord.table_blocks import (
    decode_table_block,
    encode_table_block,
    is_table_block,
    table_block_rows,
)
from data_pipelines.tfrecord_options import Layout, OnDamage, ReadOptions, WriteOptions

if TYPE_CHECKING:
    from pyspark import Accumulator

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriteTask:
    """Writes the rows of one partition to files below the staging folder of a job.

    Attributes:
        job: Where the files go.
        options: How rows become records.
        partition_by: Names of columns of strings or timestamps that name a file's folder and are no part of its
            records. Rows of equal values stand together, else there is a file for each change.
    """

    job: WriteJob
    options: WriteOptions
    partition_by: tuple[str, ...] = ()

    def __call__(self, partition: int, batches: Iterable[pa.RecordBatch]) -> list[WrittenFile]:
        """Write ``batches``; whatever goes wrong, nothing of it stays but what a kill leaves.

        Args:
            partition: Number of the partition, for the files' names.
            batches: Its rows.

        Raises:
            SchemaError: The columns do not map to records.
            ValueNotStorableError: A value is none that a record can hold.
            OSError: The store refuses, a full disk for example.
        """
        with self.job.attempt(partition) as attempt, ExitStack() as undo:
            files = _Files(self, attempt)
            undo.callback(files.close)
            for batch in batches:
                for values, rows in self._runs(batch):
                    files.add(values, rows)
            written = files.finish()
            undo.pop_all()
        return written

    def _runs(self, batch: pa.RecordBatch) -> Iterator[tuple[tuple[str | None, ...], pa.RecordBatch]]:
        """Yield the rows that stand together and share a folder, without the columns that name it."""
        if not batch.num_rows:
            return
        if not self.partition_by:
            yield (), batch
            return
        named = [_folder_values(batch.column(name)) for name in self.partition_by]
        is_new = np.zeros(batch.num_rows, bool)
        is_new[0] = True
        for column in named:
            ids = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
            is_new[1:] |= ids[1:] != ids[:-1]
        rest = batch.drop_columns(list(self.partition_by))
        starts = np.flatnonzero(is_new)
        for start, stop in zip(starts, [*starts[1:], batch.num_rows], strict=True):
            yield tuple(column[int(start)].as_py() for column in named), rest.slice(start, stop - start)


def _folder_values(column: pa.Array) -> pa.Array:
    """Return the text that names folders: timestamps in UTC, which they say (``2024-01-31 12:00:00.000000Z``)."""
    if not pa.types.is_timestamp(column.type):
        return column
    # Spark hands timestamps over in the session's zone.
    return column.cast(pa.timestamp("us", "UTC")).cast(pa.string())


class _Files:
    """The files of one task attempt: one is open at a time."""

    def __init__(self, task: WriteTask, attempt: str) -> None:
        self._task = task
        self._attempt = attempt
        self._values: tuple[str | None, ...] = ()
        self._open: _OpenFile | None = None
        self._written: list[WrittenFile] = []

    def add(self, values: tuple[str | None, ...], rows: pa.RecordBatch) -> None:
        limit = self._task.options.max_rows_per_file
        if values != self._values:
            self._finish_file()
        self._values = values
        while rows.num_rows:
            if self._open is None:
                self._open = self._new_file(rows.schema)
            part = rows.slice(0, limit - self._open.rows) if limit else rows
            self._open.add(part)
            rows = rows.slice(part.num_rows)
            if limit and self._open.rows >= limit:
                self._finish_file()

    def finish(self) -> list[WrittenFile]:
        self._finish_file()
        return self._written

    def close(self) -> None:
        """Close what is open, whatever it says: the files are to be removed."""
        if self._open is not None:
            self._open.abandon()

    def _new_file(self, schema: pa.Schema) -> "_OpenFile":
        folder = partition_folder(self._task.partition_by, self._values)
        number = f"-{len(self._written)}" if self._written else ""
        suffix = CODEC_SUFFIX[self._task.options.codec]
        name = f"part-{self._attempt}{number}.tfrecord{suffix}"
        return _OpenFile(self._task, self._attempt, f"{folder}/{name}" if folder else name, schema)

    def _finish_file(self) -> None:
        # Forgotten first: a file that fails to close is not closed again.
        file, self._open = self._open, None
        if file is not None:
            self._written.append(file.finish())


class _OpenFile:
    """One file that is being written."""

    def __init__(self, task: WriteTask, attempt: str, path: str, schema: pa.Schema) -> None:
        self._options = task.options
        # Before the file: a schema that does not map leaves none.
        self._encoder = RowEncoder(schema, task.options.record_type)
        self._attempt = attempt
        self._path = path
        self._raw = task.job.attempt_file(attempt, path).open_write()
        self._stored = _CountingFile(self._raw)
        self._compression = compressed(self._stored, task.options.codec)
        self._file = self._compression.__enter__()
        self._blocks = RecordWriter(self._file)
        self._row_records = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        if self._options.layout is Layout.ROW:
            encoded = self._encoder.encode(batch)
            # Past the RecordWriter, whose checksum of the whole file nobody asks for: it is 8 % of the time.
            self._file.write(cast(bytes, encoded.content.data))
            self._row_records += batch.num_rows
            return
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        if self._waiting_rows >= self._options.rows_per_block:
            self._write_blocks(self._waiting_rows // self._options.rows_per_block * self._options.rows_per_block)

    def _write_blocks(self, rows: int) -> None:
        """Write the first ``rows`` rows that wait."""
        waiting = pa.concat_batches(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        for start in range(0, rows, self._options.rows_per_block):
            size = min(self._options.rows_per_block, rows - start)
            self._blocks.write(encode_table_block(waiting.slice(start, size)))
        self._waiting, self._waiting_rows = [waiting.slice(rows)], waiting.num_rows - rows

    def finish(self) -> WrittenFile:
        with ExitStack() as undo:
            undo.callback(self.abandon)
            if self._waiting_rows:
                self._write_blocks(self._waiting_rows)
            self._compression.__exit__(None, None, None)
            undo.pop_all()
        self._raw.close()
        records = self._row_records + self._blocks.records_written
        return WrittenFile(self._attempt, self._path, self.rows, records, self._stored.bytes)

    def abandon(self) -> None:
        try:
            self._raw.close()
        except OSError:
            # The first failure is being told; this is what a full disk says once more.
            _LOGGER.debug("closing %s failed after another failure", self._path)


class _CountingFile:
    """Counts the bytes that reach the store."""

    def __init__(self, file: BinaryWriter) -> None:
        self._file = file
        self.bytes = 0

    def write(self, content: bytes, /) -> None:
        self._file.write(content)
        # A buffer's length is in items, which need not be bytes.
        self.bytes += memoryview(content).nbytes


@dataclass(frozen=True)
class ReadTask:
    """Reads files of either layout into batches of a few megabytes.

    Attributes:
        schema: The columns to read, as Spark takes them: features, and the values of partition folders.
        options: How files are read.
        damaged: Counts the records that are skipped.
    """

    schema: pa.Schema
    options: ReadOptions
    damaged: "Accumulator[int] | None" = None

    def __call__(self, files: Iterable[DataFile]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``files`` in their order.

        Raises:
            CodecError: A file is not compressed as it was said to be.
            DamagedRecordError: A record is damaged, and is not to be skipped.
            FeatureTypeError: A feature is not what its column asks for, or is missing where the column cannot be null.
            MalformedExampleError: A record is no message of the record type.
            OSError: The store refuses.
        """
        for file in files:
            yield from self._read(file)

    def _read(self, file: DataFile) -> Iterator[pa.RecordBatch]:
        folders = dict(file.partition)
        stored = pa.schema([field for field in self.schema if field.name not in folders])
        with _opened(file, self.options) as scan:
            malformed = 0
            for batch, rows, skipped in _decoded(scan, stored, self.options, str(file.path)):
                malformed += skipped
                yield self._assembled(batch, rows, file)
            self._tell_skipped(scan, malformed, file)

    def _tell_skipped(self, scan: RecordScan, malformed: int, file: DataFile) -> None:
        if scan.skipped:
            _LOGGER.warning("%s: %d damaged records were skipped; first: %s", file.path, scan.skipped, scan.damages[0])
        if malformed:
            _LOGGER.warning("%s: %d whole records that are no messages were skipped", file.path, malformed)
        if self.damaged is not None:
            self.damaged.add(scan.skipped + malformed)

    def _assembled(self, stored: pa.RecordBatch, rows: int, file: DataFile) -> pa.RecordBatch:
        """Put the columns into the schema's order; a null where it allows none would crash the JVM."""
        folders = dict(file.partition)
        columns = []
        for field in self.schema:
            if field.name in folders:
                column = partition_column(folders[field.name], field.type, rows)
            else:
                column = stored.column(field.name)
            if column.null_count and not field.nullable:
                problem = "is missing, or null, and its column takes no nulls; make the column nullable"
                raise FeatureTypeError(field.name, 0, problem, file=str(file.path))
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


@contextmanager
def _opened(file: DataFile, options: ReadOptions) -> Iterator[RecordScan]:
    name = str(file.path)
    with file.path.open_stream() as raw:
        records = open_records(raw, name=name, codec=options.codec)
        yield scan_records(
            records, name=name, verify_checksums=options.verify_checksums, on_damage=options.on_damage.value
        )


def _decoded(
    scan: RecordScan, schema: pa.Schema, options: ReadOptions, name: str
) -> Iterator[tuple[pa.RecordBatch, int, int]]:
    """Yield batches of the stored columns, their rows (there may be no column), and how many were malformed."""
    decoder = RowDecoder(schema, options.record_type)
    are_blocks: bool | None = None
    for chunk in scan:
        if are_blocks is None:
            # One writer wrote the file: its first record tells of the others.
            are_blocks = options.record_type is RecordType.EXAMPLE and _is_block(chunk)
        if are_blocks:
            yield *_decoded_blocks(chunk, schema, name), 0
        elif options.on_damage is OnDamage.SKIP:
            batch, skipped = decoder.decode_intact(chunk, name=name)
            yield batch, len(chunk.starts) - skipped, skipped
        else:
            yield decoder.decode(chunk, name=name), len(chunk.starts), 0


def _decoded_blocks(chunk: RecordChunk, schema: pa.Schema, name: str) -> tuple[pa.RecordBatch, int]:
    blocks: list[pa.RecordBatch] = []
    rows = 0
    for number, payload in enumerate(_payloads(chunk)):
        record, offset = chunk.first_record + number, chunk.record_offset(number)
        if len(schema):
            blocks.append(decode_table_block(payload, schema, name=name, record=record, offset=offset))
        else:
            # A batch without columns does not keep its rows' number.
            rows += table_block_rows(payload, name=name, record=record, offset=offset)
    if not blocks:
        return pa.RecordBatch.from_arrays([], schema=schema), rows
    batch = blocks[0] if len(blocks) == 1 else pa.concat_batches(blocks)
    return batch, batch.num_rows


def _is_block(chunk: RecordChunk) -> bool:
    try:
        return is_table_block(next(_payloads(chunk)))
    except MalformedExampleError:
        # The decoder of rows says which record it is.
        return False


def _payloads(chunk: RecordChunk) -> Iterator[memoryview]:
    content = chunk.content.data
    for start, stop in zip(chunk.starts.tolist(), chunk.stops.tolist(), strict=True):
        yield content[start:stop]


def infer_files(files: Iterable[DataFile], *, options: ReadOptions) -> InferredSchema:
    """Return what all records of ``files`` hold.

    Raises:
        CodecError: A file is not compressed as it was said to be.
        DamagedRecordError: A record is damaged, and is not to be skipped.
        MalformedExampleError: A record is no message of the record type.
        SchemaError: A feature is of one kind here and of another there.
        OSError: The store refuses.
    """
    inferred = InferredSchema(options.record_type)
    for file in files:
        name = str(file.path)
        with _opened(file, options) as scan:
            for chunk in scan:
                inferred = inferred.merged(infer(chunk, options.record_type, name=name))
    return inferred


def sampled(files: Sequence[DataFile], count: int) -> list[DataFile]:
    """Return ``count`` of ``files``, spread over all of them; all for a count of 0."""
    if not count or count >= len(files):
        return list(files)
    return [files[number * len(files) // count] for number in range(count)]


def merged_schema(inferred: Iterable[InferredSchema], options: ReadOptions) -> pa.Schema:
    """Return the one schema of what tasks have inferred apart.

    Raises:
        SchemaError: A feature is of one kind here and of another there, or there are no records.
    """
    whole = InferredSchema(options.record_type)
    for part in inferred:
        whole = whole.merged(part)
    if not whole.records:
        raise SchemaError("there are no records to infer a schema from; give the schema, or check the path")
    return whole.schema


@dataclass(frozen=True)
class FileReport:
    """How a file is.

    Attributes:
        path: Where it is.
        bytes: Its size.
        records: Whole records in it.
        damaged: Damaged ones.
        problem: What is wrong with it, in one line: why it cannot be read, or its first damage. None for a good file.
    """

    path: str
    bytes: int
    records: int
    damaged: int
    problem: str | None = None


def check_files(files: Iterable[DataFile], *, options: ReadOptions) -> list[FileReport]:
    """Read all records of ``files``, compare their checksums, and say of each file how it is."""
    return [_report(file, options) for file in files]


def _report(file: DataFile, options: ReadOptions) -> FileReport:
    records, damaged = 0, 0
    try:
        with _opened(file, options) as scan:
            for chunk in scan:
                records += len(chunk.starts)
                damaged = scan.skipped
            problem = str(scan.damages[0]) if scan.damages else None
            return FileReport(str(file.path), file.bytes, records, scan.skipped, problem)
    except (CodecError, DamagedRecordError) as error:
        return FileReport(str(file.path), file.bytes, records, damaged, str(error))
    except OSError as error:
        problem = f"{file.path} cannot be read: {error}; check the file and the store"
        return FileReport(str(file.path), file.bytes, records, damaged, problem)
