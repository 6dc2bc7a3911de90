"""One job over files: tasks score rows into Parquet files, one each, which the driver publishes all at once.

In :func:`scoring.score` every row goes from the JVM to Python and its score goes back, which takes longer than the
model. Here tasks read and write plain Parquet files with pyarrow; Spark only starts them and assigns row groups.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines import KINDS, TableError, is_path, of_one_kind, suffix_of
from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import (
    BatchFunction,
    NamedTask,
    Shares,
    WriteResult,
    counted,
    numbers_of,
    outcome,
    portable,
    with_plain_names,
    write_files,
)
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import SparkSource, read_together
from mirrorspark.scoring.task import Speed, TaskCounts, grouped, log_plan, plan_tasks, regrouped
from mirrorspark.spark_session import partition_id, session_of, versions
from mirrorspark.storage import Location, StoragePath, hadoop_uri, lakes, listing
from mirrorspark.storage.publish import SaveMode, WriteJob, WrittenFile

_LOGGER = logging.getLogger(__name__)

ROW_GROUP_ROWS = 2**20
ROW_GROUP_BYTES = 64 * 2**20
"""Limits of a row group of scores; it is written when it reaches one of them."""

_TFRECORD_SUFFIXES = {".tfrecord": "tfrecord", ".tfrecords": "tfrecord"}

Read = Callable[[int], Iterable[pa.RecordBatch]]
"""Returns the rows of a task, given a number of rows of which most batches are to have a multiple."""

InputRows = parquet_rows.ParquetRows | DataFrame
"""Rows of files that tasks read themselves, or of a table that Spark reads."""

Seal = Callable[[Sequence[WrittenFile], Sequence[Mapping[str, Any]]], Sequence[WrittenFile]]
"""The argument ``seal`` of :func:`data_pipelines.spark.write_files`."""

C = TypeVar("C", bound=TaskCounts)


@dataclass(frozen=True)
class ScoredOutput:
    """Result of scoring into files.

    Attributes:
        output: Folder of the scores.
        files: Paths of the files, relative to ``output``, in the order of the rows.
        rows: Rows of the input.
        bytes: Total size of the files.
    """

    output: str
    files: tuple[str, ...]
    rows: int
    bytes: int


@dataclass(frozen=True)
class TaskScoring:
    """The scoring of one task's rows into a file, ready to run.

    Attributes:
        schema: Columns of the file: the keys and the scores.
        rows: The rows in batches that suit the model.
        scored: Yields keys and scores of such a batch, in types that can be cast to those of the file.
        keeps_rows: True if the file has one row for each row of the input.
        repeated: The columns, as Parquet names them, that hold few different values.
        group_bytes: Limit of a row group, in memory.
        metadata: Texts for the file's metadata.
    """

    schema: pa.Schema
    rows: Iterable[pa.RecordBatch]
    scored: Callable[[pa.RecordBatch], Iterator[pa.RecordBatch]]
    keeps_rows: bool
    repeated: Sequence[str]
    group_bytes: int = ROW_GROUP_BYTES
    metadata: Mapping[str, str] = field(default_factory=dict)

    def open_parquet(self, sink: Any) -> pq.ParquetWriter:
        """Return the writer of the file into ``sink``."""
        # Dictionary encoding of keys and scores takes longer than writing them plainly. The Arrow schema is left out so
        # that readers get plain strings instead of Arrow's own types.
        writer = pq.ParquetWriter(sink, self.schema, use_dictionary=list(self.repeated) or False, store_schema=False)
        if self.metadata:
            writer.add_key_value_metadata(self.metadata)
        return writer

    def batches(self, counts: TaskCounts) -> Iterator[pa.RecordBatch]:
        """Yield keys and scores in the types of the file, and count the seconds."""
        for rows in self.rows:
            counts.end_of("read")
            for scored in self.scored(rows):
                # Batches from Spark carry the time zone of its session and other names for list elements.
                typed = scored if scored.schema == self.schema else scored.cast(self.schema)
                counts.end_of("score")
                yield typed
            counts.end_of("score")
        counts.end_of("read")


@dataclass(frozen=True)
class FileWriter(ABC, Generic[C]):
    """Scores rows in tasks and writes the scores into files; pickles.

    Attributes:
        keys: The key columns, in the types of the files.
    """

    job: WriteJob
    keys: pa.Schema

    @abstractmethod
    def counts(self) -> C:
        """Return the counters of a new task."""

    @abstractmethod
    def scoring(self, read: Read, counts: C) -> TaskScoring:
        """Return the scoring of a task's rows, which counts them."""

    def path(self, number: int, attempt: str) -> str:
        """Return the name of the file of a share."""
        return file_name(attempt)

    def write(self, number: int, read: Read) -> pa.RecordBatch:
        """Score and write share ``number``, which ``read`` returns; return its outcome."""
        counts = self.counts()

        def write() -> list[WrittenFile]:
            files = self.write_share(number, read, counts)
            counts.end_of("write")
            return files

        return outcome(self.job, write, refusals=(raw_columns.ColumnError,), report=counts.report)

    def write_share(self, number: int, read: Read, counts: C) -> list[WrittenFile]:
        """Score and write a share; return its files."""
        scoring = self.scoring(read, counts)
        counts.end_of("score")
        with self.job.attempt(number) as attempt:
            path, rows = self.path(number, attempt), 0
            file = self.job.attempt_file(attempt, path)
            with file.open_write() as sink, scoring.open_parquet(sink) as parquet:
                counts.end_of("write")
                # Each write becomes a row group, and large ones are faster to read.
                for group in grouped(scoring.batches(counts), ROW_GROUP_ROWS, scoring.group_bytes):
                    table = pa.Table.from_batches(group, scoring.schema)
                    parquet.write_table(table, table.num_rows)
                    rows += table.num_rows
                    del group, table  # the next group is collected without this one in memory
                    counts.end_of("write")
            # If a row of the input can become several or none, the rows of the input are counted.
            rows = rows if scoring.keeps_rows else counts.rows
            return [WrittenFile(attempt, path, rows, rows, file.size())]


def file_name(attempt: str) -> str:
    """Return the name of the file that a task attempt writes."""
    return f"part-{attempt}.parquet"


@dataclass(frozen=True)
class FilesTask:
    """Body of a task that reads its share of the row groups itself."""

    shares: Shares
    writer: FileWriter[Any]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome of each share whose number is in ``batches``."""
        for number in numbers_of(batches):
            yield self.writer.write(number, partial(self.read, self.shares.groups[number]))

    def read(self, groups: Sequence[parquet_rows.RowGroups], multiple: int) -> Iterator[pa.RecordBatch]:
        """Return the rows of a share."""
        return self.shares.source.batches(groups, multiple)


@dataclass(frozen=True)
class RowsTask:
    """Body of a task that scores the rows of its partition."""

    writer: FileWriter[Any]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome."""
        yield self.writer.write(partition_id(), lambda rows: regrouped(batches, rows, ROW_GROUP_BYTES))


@dataclass(frozen=True)
class FileTasks:
    """Tasks that score rows into files and have not been started yet.

    Attributes:
        partitions: One partition per task.
        body: Scores and writes a partition's rows, and yields the outcome; Spark can send it to tasks.
        count: Returns the number of rows; callable once the tasks have run.
        predicted_seconds: Predicted duration of the longest task; None where no speed is known.
        loads: Loads of the model for the measurement of its speed.
    """

    partitions: DataFrame
    body: BatchFunction
    count: Callable[[], int]
    predicted_seconds: float | None = None
    loads: int = 0

    @classmethod
    def of(
        cls,
        spark: SparkSession,
        rows: InputRows,
        writer: FileWriter[Any],
        speed: Callable[[parquet_rows.ParquetRows, Sequence[int]], Speed | None],
        task_seconds: float,
    ) -> "FileTasks":
        """Assign rows to tasks; each partition of a table that Spark reads is one.

        ``speed`` returns the speed of a core, given the row groups and their number for each task by their size; None
        if these are to stay. Else a task takes at most ``task_seconds``, if row groups are small enough.
        """
        if not isinstance(rows, parquet_rows.ParquetRows):
            # Without partitions Spark starts no task, and one file is needed to hold the columns.
            table = session_of(spark).empty_table(rows.schema) if rows.isEmpty() else rows
            observed, count = counted(with_plain_names(table))
            return cls(observed, portable(NamedTask(tuple(table.columns), RowsTask(writer))), count)
        slots = session_of(spark).default_parallelism
        groups = rows.groups_per_task(slots)
        found = speed(rows, groups) if rows.group_rows else None
        if found is None:
            return cls.of_shares(spark, Shares.of(rows, groups), writer)
        plan = plan_tasks(rows.group_rows, groups, found.rows_per_second, slots, task_seconds)
        log_plan(plan, found, task_seconds)
        tasks = cls.of_shares(spark, Shares.of(rows, plan.groups_per_task), writer)
        return replace(tasks, predicted_seconds=plan.longest_seconds, loads=found.loads)

    @classmethod
    def of_shares(cls, spark: SparkSession, shares: Shares, writer: FileWriter[Any]) -> "FileTasks":
        """Return a task for each share of some files."""
        return cls(shares.partitions(spark), portable(FilesTask(shares, writer)), lambda: shares.source.rows)

    def run(self, job: WriteJob, seal: Seal | None = None) -> WriteResult:
        """Run the tasks and publish their files; arguments and errors are those of ``write_files``."""
        return write_files(self.partitions, job, self.body, self.count, refusal=raw_columns.ColumnError, seal=seal)


@contextmanager
def begun_write(target: StoragePath, mode: SaveMode) -> Iterator[WriteJob]:
    """Begin a write, and abort it if planning its tasks inside fails."""
    job = WriteJob.begin(target, mode)
    try:
        yield job
    except BaseException:
        job.abort()
        raise


def schema_of(rows: InputRows, columns: Sequence[str]) -> pa.Schema:
    """Return columns of the rows in the types that tasks get."""
    if isinstance(rows, parquet_rows.ParquetRows):
        return pa.schema([rows.schema.field(name) for name in columns])
    return versions.to_arrow_schema(StructType([rows.schema[name] for name in columns]))


def files_or_table(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    source: Sequence[listing.DataFile],
    columns: Sequence[str],
    target: StoragePath,
) -> parquet_rows.ParquetFiles | DataFrame:
    """Return the Parquet files ``source`` at ``paths``; their rows if schemas differ, so that only Spark can read them.

    Raises:
        ScoringError: ``target`` contains the files or lies among them, or Spark cannot read them as one table.
        ParquetError: A file is not Parquet, or has two columns of one name.
    """
    refuse_own_input([file.path for file in source], [paths] if isinstance(paths, Location) else paths, target)
    files = parquet_rows.ParquetFiles.of(source)
    return read_together(spark, paths, files, columns) if len(files.of_each_schema(columns)) > 1 else files


def find_source(paths: Location | Sequence[Location], input_format: str | None) -> SparkSource | list[listing.DataFile]:
    """Return the Parquet files at ``paths``, or a source that Spark has to read.

    Args:
        paths: Files, folders or globs, or the name of a table of the catalog.
        input_format: Spark's name of the format; by default that of the files' suffixes, or the format of the table
            whose log is found there.

    Raises:
        FileNotFoundError: There are no files.
        ScoringError: Only some of the files belong to a table with a log, or the files have several formats.
    """
    locations = [paths] if isinstance(paths, Location) else list(paths)
    if input_format == "table" and len(locations) != 1:
        raise ScoringError(f"a table has one name, {len(locations)} are given: {locations}; score them one by one")
    named = SparkSource(input_format or _format_by_name(locations), tuple(str(location) for location in locations))
    if named.format != "parquet":
        return named
    try:
        files = parquet_rows.parquet_files(locations)
    except lakes.LakeTableError as error:
        return _source_of_lake(locations, error)
    if input_format is not None:
        return files
    try:
        kind, files = of_one_kind(files, None, ", ".join(map(str, locations)))
    except TableError as error:
        raise ScoringError(str(error)) from error
    return files if kind == "parquet" else SparkSource(kind, named.paths)


def _format_by_name(locations: Sequence[Location]) -> str:
    """Return the format of files that their names give, ``table`` for a name of the catalog; else Parquet."""
    name = locations[0]
    if len(locations) == 1 and not is_path(name) and not StoragePath.of(name).exists():
        return "table"
    kinds = {_TFRECORD_SUFFIXES.get(suffix_of(location), KINDS.get(suffix_of(location))) for location in locations}
    return (kinds.pop() or "parquet") if len(kinds) == 1 else "parquet"


def _source_of_lake(locations: Sequence[Location], error: lakes.LakeTableError) -> SparkSource:
    """Return the table with a log that a location names.

    Raises:
        ScoringError: The locations name a part of it, or more than it.
    """
    table = error.table
    if [_resolved(StoragePath.of(location)) for location in locations] != [table.folder]:
        raise ScoringError(f"{table}; give that folder alone, or read it with Spark and score the DataFrame") from error
    _LOGGER.warning(
        "%s is not a folder of plain files (%s): Spark reads it, which is slower", table.folder, table.format.log
    )
    return SparkSource(table.format.name, (hadoop_uri(table.folder, locations[0]),))


def refuse_own_input(places: Sequence[StoragePath], locations: Sequence[Location], target: StoragePath) -> None:
    """Reject an output that would replace its own input, or be read as input next time.

    Args:
        places: Files or folders that are read.
        locations: Folders, files and globs that the caller named; they are listed again next time.
        target: The folder of the scores.

    Raises:
        ScoringError: The output contains one of the places, or lies in a location.
    """
    output = _resolved(target)
    within = [place for place in places if _resolved(place).is_in(output)]
    if within:
        raise ScoringError(f"the output {target} holds the input {within[0]}; write the scores elsewhere")
    file = output / file_name("00000-00000000")
    for location in map(StoragePath.of, locations):
        if listing.reads(_resolved(location), file):
            raise ScoringError(
                f"the output {target} lies in the input {location}, and would be read with it next time; write the "
                f"scores elsewhere"
            )


def _resolved(path: StoragePath) -> StoragePath:
    # Leaves out the options of a store, which are not part of the location, and resolves links.
    return StoragePath(str(path.local.resolve()) if path.is_local else path.uri)


def save_mode_of(mode: str) -> SaveMode:
    """Return the mode of a write of scores; raise :class:`ScoringError` for one that scores cannot have."""
    try:
        found = SaveMode.of(mode)
    except ValueError:
        raise ScoringError(f"mode '{mode}' is unknown; use error, overwrite or append") from None
    if found is SaveMode.IGNORE:
        raise ScoringError("mode 'ignore' would keep the old scores; use error, overwrite or append")
    return found


def check_task_seconds(task_seconds: float) -> None:
    """Reject a target that no task can meet.

    Raises:
        ScoringError: It is not above 0.
    """
    if not task_seconds > 0:
        raise ScoringError(f"task_seconds {task_seconds} is not above 0; use what a lost machine may cost, such as 120")
