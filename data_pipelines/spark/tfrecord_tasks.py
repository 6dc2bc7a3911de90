"""Bodies of Spark tasks for TFRecord files, on Arrow batches: write a partition, read, infer and check files."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.spark.tfrecord_options import Layout, OnDamage, ReadOptions, WriteOptions
from mirrorspark.data_pipelines.tfrecord import (
    CODEC_SUFFIX,
    BinaryWriter,
    CodecError,
    DamagedRecordError,
    MalformedExampleError,
    RecordChunk,
    RecordScan,
    RecordWriter,
    RowDecoder,
    RowEncoder,
    arrow_schema,
    compressed,
    infer,
    open_records,
    scan_records,
    table_blocks,
)
from mirrorspark.spark_session import TaskTotal
from mirrorspark.storage import listing
from mirrorspark.storage.publish import WriteJob, WrittenFile

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriteTask:
    """Writer of one partition's rows to files below the staging folder of a job.

    Attributes:
        job: The write that the files belong to.
        partition_by: Columns of strings or timestamps that name a file's folder and are not in its records. Rows with
            equal values should be adjacent; each change begins a file.
    """

    job: WriteJob
    options: WriteOptions
    partition_by: tuple[str, ...] = ()

    def __call__(self, partition: int, batches: Iterable[pa.RecordBatch]) -> list[WrittenFile]:
        """Write ``batches``; after any error but a kill, nothing is left behind.

        Args:
            partition: Number of the partition, for the files' names.
            batches: Its rows.

        Raises:
            SchemaError: Records cannot hold the columns.
            ValueNotStorableError: A record cannot hold a value.
            OSError: The store fails, for example on a full disk.
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
        """Yield the runs of rows with the same folder, without the columns that name it."""
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
    """Return the text that names folders; timestamps are in UTC, with its mark (``2024-01-31 12:00:00.000000Z``)."""
    if not pa.types.is_timestamp(column.type):
        return column
    # Spark passes timestamps in the session's zone.
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
        """Close the open file and ignore errors: the files will be removed."""
        if self._open is not None:
            self._open.abandon()

    def _new_file(self, schema: pa.Schema) -> "_OpenFile":
        folder = listing.partition_folder(self._task.partition_by, self._values)
        number = f"-{len(self._written)}" if self._written else ""
        suffix = CODEC_SUFFIX[self._task.options.codec]
        name = f"part-{self._attempt}{number}.tfrecord{suffix}"
        return _OpenFile(self._task, self._attempt, f"{folder}/{name}" if folder else name, schema)

    def _finish_file(self) -> None:
        # Cleared first: a file that fails to close is not closed again.
        file, self._open = self._open, None
        if file is not None:
            self._written.append(file.finish())


class _OpenFile:
    """One file that is being written."""

    def __init__(self, task: WriteTask, attempt: str, path: str, schema: pa.Schema) -> None:
        self._options = task.options
        # Made before the file: an invalid schema leaves no file.
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
            # Not through the RecordWriter: its checksum of the whole file is not needed here and takes 8 % of the time.
            self._file.write(cast(bytes, encoded.content.data))
            self._row_records += batch.num_rows
            return
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        if self._waiting_rows >= self._options.rows_per_block:
            self._write_blocks(self._waiting_rows // self._options.rows_per_block * self._options.rows_per_block)

    def _write_blocks(self, rows: int) -> None:
        """Write the first ``rows`` waiting rows."""
        waiting = pa.concat_batches(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        for start in range(0, rows, self._options.rows_per_block):
            size = min(self._options.rows_per_block, rows - start)
            self._blocks.write(table_blocks.encode_table_block(waiting.slice(start, size)))
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
            # The first failure is already on its way; a full disk fails here again.
            _LOGGER.debug("closing %s failed after another failure", self._path)


class _CountingFile:
    """A file that counts the bytes written to the store."""

    def __init__(self, file: BinaryWriter) -> None:
        self._file = file
        self.bytes = 0

    def write(self, content: bytes, /) -> None:
        self._file.write(content)
        # A buffer's length is in items, which may not be bytes.
        self.bytes += memoryview(content).nbytes


@dataclass(frozen=True)
class ReadTask:
    """Reader of files of either layout into batches of a few megabytes.

    Attributes:
        schema: The columns to read, in Spark's types: features, and the values of partition folders.
        damaged: Counter of skipped records.
    """

    schema: pa.Schema
    options: ReadOptions
    damaged: TaskTotal[int] | None = None

    def __call__(self, files: Iterable[listing.DataFile]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of ``files`` in their order.

        Raises:
            CodecError: A file is not compressed with the given codec.
            DamagedRecordError: A record is damaged and ``on_damage`` is ``fail``.
            FeatureTypeError: A feature does not fit its column, or is missing in a column that is not nullable.
            MalformedExampleError: A record is not a message of the record type.
            OSError: The store fails.
        """
        for file in files:
            yield from self._read(file)

    def _read(self, file: listing.DataFile) -> Iterator[pa.RecordBatch]:
        folders = dict(file.partition)
        stored = pa.schema([field for field in self.schema if field.name not in folders])
        with _opened(file, self.options) as scan:
            malformed = 0
            for batch, rows, skipped in _decoded(scan, stored, self.options, str(file.path)):
                malformed += skipped
                yield self._assembled(batch, rows, file)
            self._report_skipped(scan, malformed, file)

    def _report_skipped(self, scan: RecordScan, malformed: int, file: listing.DataFile) -> None:
        if scan.skipped:
            _LOGGER.warning("%s: %d damaged records were skipped; first: %s", file.path, scan.skipped, scan.damages[0])
        if malformed:
            _LOGGER.warning("%s: %d whole records that are not messages were skipped", file.path, malformed)
        # Over Spark Connect an addition is a request to a store.
        if self.damaged is not None and (skipped := scan.skipped + malformed):
            self.damaged.add(skipped)

    def _assembled(self, stored: pa.RecordBatch, rows: int, file: listing.DataFile) -> pa.RecordBatch:
        """Put the columns into the schema's order; a null in a column that is not nullable would crash the JVM."""
        folders = dict(file.partition)
        columns = []
        for field in self.schema:
            if field.name in folders:
                column = listing.partition_column(folders[field.name], field.type, rows)
            else:
                column = stored.column(field.name)
            if column.null_count and not field.nullable:
                problem = "is missing, or null, and its column takes no nulls; make the column nullable"
                raise arrow_schema.FeatureTypeError(field.name, 0, problem, file=str(file.path))
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


@contextmanager
def _opened(file: listing.DataFile, options: ReadOptions) -> Iterator[RecordScan]:
    name = str(file.path)
    with file.path.open_stream() as raw:
        records = open_records(raw, name=name, codec=options.codec)
        yield scan_records(
            records, name=name, verify_checksums=options.verify_checksums, on_damage=options.on_damage.value
        )


def _decoded(
    scan: RecordScan, schema: pa.Schema, options: ReadOptions, name: str
) -> Iterator[tuple[pa.RecordBatch, int, int]]:
    """Yield batches of the stored columns, their rows (there may be no column), and the number of malformed records."""
    decoder = RowDecoder(schema, options.record_type)
    are_blocks: bool | None = None
    for chunk in scan:
        if are_blocks is None:
            # One writer wrote the file, so its first record shows the layout of all.
            are_blocks = options.record_type is arrow_schema.RecordType.EXAMPLE and _is_block(chunk)
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
            blocks.append(table_blocks.decode_table_block(payload, schema, name=name, record=record, offset=offset))
        else:
            # A batch without columns does not keep its number of rows.
            rows += table_blocks.table_block_rows(payload, name=name, record=record, offset=offset)
    if not blocks:
        return pa.RecordBatch.from_arrays([], schema=schema), rows
    batch = blocks[0] if len(blocks) == 1 else pa.concat_batches(blocks)
    return batch, batch.num_rows


def _is_block(chunk: RecordChunk) -> bool:
    try:
        return table_blocks.is_table_block(next(_payloads(chunk)))
    except MalformedExampleError:
        # The decoder of rows reports the record.
        return False


def _payloads(chunk: RecordChunk) -> Iterator[memoryview]:
    content = chunk.content.data
    for start, stop in zip(chunk.starts.tolist(), chunk.stops.tolist(), strict=True):
        yield content[start:stop]


def infer_files(files: Iterable[listing.DataFile], *, options: ReadOptions) -> arrow_schema.InferredSchema:
    """Return the schema of all records of ``files``.

    Raises:
        CodecError: A file is not compressed with the given codec.
        DamagedRecordError: A record is damaged and ``on_damage`` is ``fail``.
        MalformedExampleError: A record is not a message of the record type.
        SchemaError: A feature has different kinds in different records.
        OSError: The store fails.
    """
    inferred = arrow_schema.InferredSchema(options.record_type)
    for file in files:
        name = str(file.path)
        with _opened(file, options) as scan:
            for chunk in scan:
                inferred = inferred.merged(infer(chunk, options.record_type, name=name))
    return inferred


def sampled(files: Sequence[listing.DataFile], count: int) -> list[listing.DataFile]:
    """Return ``count`` of ``files``, spread over all of them; all for a count of 0."""
    if not count or count >= len(files):
        return list(files)
    return [files[number * len(files) // count] for number in range(count)]


def merged_schema(inferred: Iterable[arrow_schema.InferredSchema], options: ReadOptions) -> pa.Schema:
    """Return the common schema of the schemas that tasks have inferred.

    Raises:
        SchemaError: A feature has different kinds in different records, or there are no records.
    """
    whole = arrow_schema.InferredSchema(options.record_type)
    for part in inferred:
        whole = whole.merged(part)
    if not whole.records:
        raise arrow_schema.SchemaError(
            "there are no records to infer a schema from; give the schema, or check the path"
        )
    return whole.schema


@dataclass(frozen=True)
class FileReport:
    """The state of a file.

    Attributes:
        records: The number of intact records.
        damaged: The number of damaged records.
        problem: The problem in one line: the reason why it cannot be read, or its first damage. None for an intact
            file.
    """

    path: str
    bytes: int
    records: int
    damaged: int
    problem: str | None = None


def check_files(files: Iterable[listing.DataFile], *, options: ReadOptions) -> list[FileReport]:
    """Read all records of ``files``, compare their checksums, and report the state of each file."""
    return [_report(file, options) for file in files]


def _report(file: listing.DataFile, options: ReadOptions) -> FileReport:
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
