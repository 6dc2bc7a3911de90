"""The Spark data sources ``tfrecord`` and ``tfrecords``: ``spark.read.format``, ``df.write.format``, streaming writes.

Spark runs a data source's parts in Python processes of its own: it makes schema, reader and writer in planning
processes on the driver, runs read and write in the tasks, and commit and abort in another process on the driver.
Objects are pickled on the way.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import psutil
import pyarrow as pa
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.spark.schema import arrow_schema_of, spark_schema_of
from mirrorspark.data_pipelines.spark.tfrecord_options import OptionError, ReadOptions, WriteOptions
from mirrorspark.data_pipelines.spark.tfrecord_tasks import ReadTask, WriteTask, infer_files, merged_schema, sampled
from mirrorspark.data_pipelines.tfrecords import check_columns, check_readable, with_partition_columns
from mirrorspark.spark_session import partition_id, task_property, versions
from mirrorspark.storage import StoragePath, listing
from mirrorspark.storage.publish import SaveMode, WriteJob, WrittenFile

versions.require_python_sources()
from pyspark.sql.datasource import (  # noqa: E402 - after the line that says what PySpark 3.5 lacks
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
    WriterCommitMessage,
)

SOURCE_NAME = "tfrecord"
ALIAS = "tfrecords"
"""The name of the format in TensorFlow's own connector; LinkedIn's has the other one."""

_STREAM_LOG_FOLDER = "_tfrecord_stream"
# Spark's StreamExecution.QUERY_ID_KEY.
_QUERY_ID_PROPERTY = "sql.streaming.queryId"

_LOGGER = logging.getLogger(__name__)


class TFRecordSource(DataSource):
    """TFRecord files as a Spark format; options have the names of the JVM connectors."""

    @classmethod
    def name(cls) -> str:
        """Return the name for ``format(...)``."""
        return SOURCE_NAME

    def schema(self) -> StructType:
        """Infer the schema from the records, in this one process; sampleFiles bounds the work.

        Raises:
            FileNotFoundError: Nothing is at the path.
            OptionError: An option is unknown or has an invalid value.
            SchemaError: The records have no common schema.
        """
        options = ReadOptions.of(self.options)
        files = _files(self.options, options)
        inferred = infer_files(sampled(files, options.sample_files), options=options)
        return with_partition_columns(spark_schema_of(merged_schema([inferred], options)), files)

    def reader(self, schema: StructType) -> DataSourceReader:
        """Return a reader that lists the files and reads them."""
        options = ReadOptions.of(self.options)
        files = _files(self.options, options)
        task = ReadTask(arrow_schema_of(schema), options)
        check_readable(task.schema, files, options)
        return _Reader(task, files)

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        """Return a writer of a table.

        Raises:
            OptionError: An option is unknown or has an invalid value.
            SchemaError: Records cannot hold the columns.
        """
        options = WriteOptions.of(self.options)
        check_columns(schema, options)
        mode = SaveMode.OVERWRITE if overwrite else SaveMode.APPEND
        return _Writer(WriteTask(WriteJob.begin(_target(self.options), mode, driver=_driver()), options))

    def streamWriter(self, schema: StructType, overwrite: bool) -> versions.StreamWriter:  # noqa: N802 - Spark's
        """Return a writer of the batches of a stream; each batch appears atomically.

        Raises:
            OptionError: An option is unknown or has an invalid value.
            SchemaError: Records cannot hold the columns.
        """
        options = WriteOptions.of(self.options)
        check_columns(schema, options)
        mode = SaveMode.OVERWRITE if overwrite else SaveMode.APPEND
        # Spark makes one writer for the tasks of a batch and another for its commit; the name makes both the same
        # write.
        checkpoint = self.options.get("checkpointLocation")
        name = hashlib.sha256(checkpoint.encode()).hexdigest()[:16] if checkpoint else None
        job = WriteJob.begin(_target(self.options), mode, driver=_driver(), name=name)
        return _StreamWriter(WriteTask(job, options), schema)


def _target(options: Mapping[str, str]) -> StoragePath:
    path = options.get("path")
    if not path:
        raise OptionError("no path is given; name the folder to write to: .save(path)")
    return StoragePath.of(path)


def _files(source_options: Mapping[str, str], options: ReadOptions) -> list[listing.DataFile]:
    # Spark passes a single path as it is, and several as a JSON list.
    several = source_options.get("paths")
    paths = json.loads(several) if several else [path for path in [source_options.get("path")] if path]
    if not paths:
        raise OptionError("no path is given; name files or folders to read: .load(path)")
    return listing.list_files(paths, base_path=options.base_path)


def _driver() -> int:
    """Return the PID of the driver's JVM, which lives as the application and started this process."""
    process = psutil.Process()
    return next((parent.pid for parent in process.parents() if parent.name() == "java"), process.pid)


class TFRecordsSource(TFRecordSource):
    """:class:`TFRecordSource` under the name that TensorFlow's connector has, ``tfrecords``."""

    @classmethod
    def name(cls) -> str:
        """Return the name for ``format(...)``."""
        return ALIAS


class _Share(InputPartition):
    """The files that one task reads."""

    def __init__(self, files: tuple[listing.DataFile, ...]) -> None:
        self.files = files


class _Reader(DataSourceReader):
    def __init__(self, task: ReadTask, files: list[listing.DataFile]) -> None:
        self._task = task
        self._files = files

    def partitions(self) -> list[InputPartition]:
        # The number of slots is not known here; the cores of the driver's machine replace it.
        shares = [_Share(files) for files in listing.pack_files(self._files, 2 * (os.cpu_count() or 1))]
        # Without partitions, Spark would make one of its own and read it.
        return [*shares] or [_Share(())]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        # Spark passes the partitions of partitions().
        return self._task(cast(_Share, partition).files)


@dataclass(frozen=True)
class _Written(WriterCommitMessage):
    """A task's report to the driver."""

    files: tuple[WrittenFile, ...]


class _Writer(DataSourceArrowWriter):
    def __init__(self, task: WriteTask) -> None:
        self._task = task

    def write(self, iterator: Iterator[pa.RecordBatch]) -> WriterCommitMessage:
        return _Written(tuple(self._task(partition_id(), iterator)))

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        self._task.job.publish(_reported(messages))

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        self._task.job.abort()


@dataclass(frozen=True)
class _BatchWritten(_Written):
    """The report of a stream's task; the writer that commits may have begun another job.

    Attributes:
        job: The write that the task took part in.
        query: Id of the query: Spark keeps it in the checkpoint, so it is the same after a restart, and different with
            a new checkpoint, wherever that is and however it was set.
    """

    job: WriteJob
    query: str


class _StreamWriter(versions.StreamWriter):
    """Writer of the batches of a stream; a note next to the files has the last published batch.

    A restarted query may commit a batch a second time. The note is named by the query's id, so that the same batch of
    the same query is published once.
    """

    def __init__(self, task: WriteTask, schema: StructType) -> None:
        self._task = task
        self._schema = schema

    def write(self, iterator: Iterator[pa.RecordBatch]) -> WriterCommitMessage:
        query, batches = _query_id(), versions.arrow_batches(iterator, self._schema)
        return _BatchWritten(tuple(self._task(partition_id(), batches)), self._task.job, query)

    def commit(self, messages: list[WriterCommitMessage | None], batchId: int) -> None:  # noqa: N803 - Spark's
        reports = [message for message in messages if isinstance(message, _BatchWritten)]
        files = _reported(messages)
        if reports and reports[0].job.mode is SaveMode.OVERWRITE:
            reports[0].job.publish(files)
        elif files and not _is_published(reports[0], batchId):
            reports[0].job.publish([*files, _note(reports[0], batchId)])
        self.abort(messages, batchId)

    def abort(self, messages: list[WriterCommitMessage | None], batchId: int) -> None:  # noqa: N803 - Spark's
        # Failed tasks report no job; theirs is this writer's, unless the query has no checkpoint of its own.
        for job in {self._task.job, *(message.job for message in messages if isinstance(message, _BatchWritten))}:
            job.abort()


def _query_id() -> str:
    """Return the id of this task's streaming query.

    Raises:
        RuntimeError: Spark does not provide it.
    """
    query = task_property(_QUERY_ID_PROPERTY)
    if query is None:
        raise RuntimeError(
            f"Spark has set no {_QUERY_ID_PROPERTY}, without which a batch would be written again after a restart; "
            f"write with foreachBatch and write_tfrecords"
        )
    return query


def _is_published(written: _BatchWritten, batch: int) -> bool:
    note = written.job.target / f"{_STREAM_LOG_FOLDER}/{written.query}"
    if not note.exists():
        return False
    last = int(note.read_bytes())
    if last < batch:
        return False
    _LOGGER.warning(
        "%s: batch %d of query %s is there already, as batch %d is, so it is not written again; if the checkpoint was "
        "set back by hand, delete %s and the batches' files",
        written.job.target,
        batch,
        written.query,
        last,
        note,
    )
    return True


def _note(written: _BatchWritten, batch: int) -> WrittenFile:
    text = str(batch).encode()
    attempt = f"batch-{batch}"
    path = f"{_STREAM_LOG_FOLDER}/{written.query}"
    file = written.job.attempt_file(attempt, path)
    file.parent.make_folder()
    file.write_bytes(text)
    return WrittenFile(attempt, path, rows=0, records=0, bytes=len(text))


def _reported(messages: list[WriterCommitMessage | None]) -> list[WrittenFile]:
    return [file for message in messages if isinstance(message, _Written) for file in message.files]
