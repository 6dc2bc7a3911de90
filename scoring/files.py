"""Scoring of files into Parquet files. The output appears all at once.

In :func:`scoring.score` every row goes from the JVM to Python and its score goes back, which takes longer than
the model. Here tasks read and write plain Parquet files with pyarrow; Spark only starts them and assigns row groups.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import (
    NamedTask,
    Shares,
    WriteResult,
    counted,
    outcome,
    portable,
    progress_bar,
    with_plain_names,
    write_files,
)
from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.input import NullRule, SparkSource, read_together, tfrecord_table
from mirrorspark.scoring.model import DEFAULT_BATCH_SIZE, LoadedModel, PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form, check_same_columns
from mirrorspark.scoring.plan import ScoringPlan
from mirrorspark.scoring.task import (
    ASSUMED_ROWS_PER_SECOND,
    DEFAULT_TASK_SECONDS,
    JobCounters,
    OtherVersions,
    Scorer,
    Settings,
    Tally,
    grouped,
    log_plan,
    plan_tasks,
    regrouped,
    speed_of,
)
from mirrorspark.spark_session import partition_id, session_of
from mirrorspark.storage import Location, StoragePath, hadoop_path, hadoop_uri, lakes, listing
from mirrorspark.storage.publish import SaveMode, WriteJob, WrittenFile

_LOGGER = logging.getLogger(__name__)

ROW_GROUP_ROWS = 2**20
ROW_GROUP_BYTES = 64 * 2**20
"""Limits of a row group of scores; it is written when it reaches one of them."""

NAN_ADVICE = "look at these rows' columns, and at the model's weights"


@dataclass(frozen=True)
class ScoredFiles:
    """Result of :func:`score_files`.

    Attributes:
        output: Folder of the scores.
        model: Value of the column ``model_version``, such as ``flights/3``.
        files: Paths of the files, relative to ``output``, in the order of the rows.
        rows: Rows of the input.
        bytes: Total size of the files.
        predicted_task_seconds: Predicted duration of the longest task; None where the speed was not measured.
    """

    output: str
    model: str
    files: tuple[str, ...]
    rows: int
    bytes: int
    counters: JobCounters
    predicted_task_seconds: float | None = None


def score_files(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    model: str | Path | PinnedModel,
    output: Location,
    *,
    keys: str | Sequence[str],
    input_format: str | None = None,
    mode: str = "error",
    tracking_uri: str | None = None,
    outputs: Form | str = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_columns: str | Sequence[str] = DEFAULT_COLUMNS,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    trust: bool = False,
    task_seconds: float = DEFAULT_TASK_SECONDS,
) -> ScoredFiles:
    """Score files and write keys, outputs and model version of every row as Parquet.

    The scores appear all at once or not at all, without duplicates of tasks that ran twice. Each task writes one file.

    Args:
        spark: The session.
        paths: Files, folders or globs of Parquet files, which executors can read; partition folders become columns.
            Spark reads what is not plain files of one schema, and the log says so: a Delta, Hudi, Iceberg or streaming
            table, and files that lack a column or have numbers of another width, if Spark reads them as one table.
        model: URI of the model, or the result of :func:`scoring.model.resolve`.
        output: Folder of the scores.
        keys: Columns that identify a row; they pass through unchanged.
        input_format: Format of ``paths`` for ``spark.read.format``, if it is not Parquet; ``table`` for a table of
            Spark's catalog. Spark then reads the rows. Columns of ``tfrecord`` get the types of the training.
        mode: Spark's save mode for existing data at ``output``: ``error``, ``overwrite`` or ``append``.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        outputs: The form of the scores, as in :func:`scoring.score`.
        batch_size: Rows per call of the model, unless the model has a fixed number.
        with_columns: Columns after the scores, out of :data:`scoring.output.ADDED_COLUMNS`.
        nulls: See :func:`scoring.score`, also for the next three.
        bad_rows: Rows that cannot be scored.
        other_versions: Executors with other library versions.
        trust: Python code of the model.
        task_seconds: Longest duration of a task, which is the work that a lost machine costs. If one might take longer,
            the speed of the model is measured, and the files are split among more tasks. Rows that Spark reads are not.

    Raises:
        ModelNotFoundError: The URI does not lead to a model.
        FileNotFoundError: There are no Parquet files.
        LakeTableError: ``output`` is, or lies in, a table that would not have the scores.
        ParquetError: A file is not Parquet, or has two columns of one name.
        ScoringError: A key is missing, the result would have a column twice, the model's outputs do not fit the form,
            ``task_seconds`` is not above 0, only some of the files belong to a table with a log, Spark cannot read the
            input, a column has types that Spark cannot read as one, ``output`` contains the input or lies in it, or the
            scores at ``output`` have other columns and the mode is ``append``.
        ColumnError: A raw column is missing, or has a type or a value that its feature does not accept.
        TargetExistsError: The mode is ``error`` and ``output`` has data.
        WriteError: A task failed, for the reason in the message; no scores are visible.
        OSError: The scores were written completely but cannot be published; the message says what is visible.
    """
    check_task_seconds(task_seconds)
    settings = Settings.of(outputs, batch_size, with_columns, nulls, bad_rows, other_versions)
    save_mode, target = save_mode_of(mode), StoragePath.of(output)
    lakes.refuse_lake_write(target)
    plan = ScoringPlan.of(model, keys, settings, tracking_uri, trust=trust)
    rows = _rows(spark, paths, input_format, target, plan, task_seconds)
    schema = pa.schema([*rows.keys, *plan.added])
    if save_mode is SaveMode.APPEND:
        check_same_columns(target, schema)
    scorer = plan.scorer(spark)
    job = WriteJob.begin(target, save_mode)
    writer = ScoreWriter(job, plan.keys, schema, scorer)
    try:
        tasks = rows.tasks(writer)
    except BaseException:
        job.abort()
        raise
    with progress_bar(spark, "score"):
        result = write_files(tasks.partitions, job, portable(tasks.body), rows.count, refusal=raw_columns.ColumnError)
    scored = _scored_files(plan, job, tasks, result)
    _LOGGER.info("%s scored %d rows of %s: %s", scored.model, scored.rows, paths, scored.counters)
    if scored.counters.nans:
        _LOGGER.warning("%d scores of %s are NaN: %s", scored.counters.nans, scored.model, NAN_ADVICE)
    return scored


def save_mode_of(mode: str) -> SaveMode:
    """Return the mode of a write of scores; raise :class:`ScoringError` for one that scores cannot have."""
    try:
        found = SaveMode.of(mode)
    except ValueError:
        raise ScoringError(f"mode '{mode}' is unknown; use error, overwrite or append") from None
    if found is SaveMode.IGNORE:
        raise ScoringError("mode 'ignore' would keep the old scores; use error, overwrite or append")
    return found


def file_name(attempt: str) -> str:
    """Return the name of the file that a task attempt writes."""
    return f"part-{attempt}.parquet"


@dataclass(frozen=True)
class ScoreWriter:
    """Scores rows and writes the scores into one file.

    Attributes:
        schema: Columns of the file: the keys and the scores.
    """

    job: WriteJob
    keys: tuple[str, ...]
    schema: pa.Schema
    scorer: Scorer

    def write(self, number: int, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
        """Score and write share ``number``, whose rows are ``batches``; return its outcome."""
        tally = Tally()
        return outcome(
            self.job,
            lambda: self._written(number, batches, tally),
            refusals=(raw_columns.ColumnError,),
            report=tally.report,
        )

    def parquet(self, sink: Any) -> pq.ParquetWriter:
        """Return a writer of scores into ``sink``."""
        # Dictionary encoding of keys and scores takes longer than writing them plainly. The Arrow schema is left out so
        # that readers get plain strings instead of Arrow's own types.
        repeated = [column.name for column in self.scorer.settings.added if column.repeats]
        return pq.ParquetWriter(sink, self.schema, use_dictionary=repeated or False, store_schema=False)

    def scored(self, model: LoadedModel, rows: pa.RecordBatch, tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yield the scores of ``rows`` in the types of the file."""
        # Batches from Spark carry the time zone of its session and other names for list elements.
        for scored in self.scorer.scored_parts(model, rows, tally, self.keys):
            yield scored.cast(self.schema)

    def _written(self, number: int, batches: Iterable[pa.RecordBatch], tally: Tally) -> list[WrittenFile]:
        with self.job.attempt(number) as attempt:
            path = file_name(attempt)
            file = self.job.attempt_file(attempt, path)
            with file.open_write() as sink, self.parquet(sink) as parquet:
                # Each write becomes a row group, and large ones are faster to read.
                written = 0
                for group in grouped(self._scored(batches, tally), ROW_GROUP_ROWS, ROW_GROUP_BYTES):
                    scored = pa.Table.from_batches(group, self.schema)
                    parquet.write_table(scored, ROW_GROUP_ROWS)
                    written += scored.num_rows
            # If a row of the input can become several or none, the rows of the input are counted.
            rows = written if self.scorer.settings.outputs.keeps_rows else tally.rows
            return [WrittenFile(attempt, path, rows, rows, file.size())]

    def _scored(self, batches: Iterable[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        model = None
        for rows in regrouped(batches):
            model = model or self.scorer.load(tally)
            yield from self.scored(model, rows, tally)


@dataclass(frozen=True)
class FilesTask:
    """Body of a task that reads its share of the row groups itself."""

    shares: Shares
    writer: ScoreWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome of each share whose number is in ``batches``."""
        for number, rows in self.shares.read(batches):
            yield self.writer.write(number, rows)


@dataclass(frozen=True)
class RowsTask:
    """Body of a task that scores the rows of its partition."""

    writer: ScoreWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome."""
        yield self.writer.write(partition_id(), batches)


@dataclass(frozen=True)
class _Tasks:
    """Tasks that score rows and have not been started yet.

    Attributes:
        partitions: One partition per task.
        predicted_seconds: Predicted duration of the longest task; None where the speed was not measured.
        loads: Loads of the model for the measurement.
    """

    partitions: DataFrame
    body: FilesTask | NamedTask
    predicted_seconds: float | None = None
    loads: int = 0


@dataclass(frozen=True)
class _Rows:
    """Rows to score, and the way they reach the tasks.

    Attributes:
        keys: Schema of the key columns.
        tasks: Returns the tasks for a writer; may run a Spark job to measure the speed of the model.
        count: Returns the number of rows; callable once the tasks have run.
    """

    keys: pa.Schema
    tasks: Callable[[ScoreWriter], _Tasks]
    count: Callable[[], int]


def _scored_files(plan: ScoringPlan, job: WriteJob, tasks: _Tasks, result: WriteResult) -> ScoredFiles:
    counters = JobCounters.of(result.reports)
    return ScoredFiles(
        output=str(job.target),
        model=plan.pinned.label,
        files=result.files,
        rows=result.rows,
        bytes=result.bytes,
        counters=replace(counters, loads=counters.loads + tasks.loads),
        predicted_task_seconds=tasks.predicted_seconds,
    )


def _rows(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    input_format: str | None,
    target: StoragePath,
    plan: ScoringPlan,
    task_seconds: float,
) -> _Rows:
    """Find the rows and check their columns. Tasks read Parquet files of one schema; Spark reads everything else."""
    source = find_source(paths, input_format)
    if isinstance(source, SparkSource):
        return _read_by_spark(spark, _table_of(spark, source, target, plan), plan)
    refuse_own_input([file.path for file in source], [paths] if isinstance(paths, Location) else paths, target)
    try:
        files = parquet_rows.ParquetFiles.of(source)
    except parquet_rows.NotParquetError as error:
        raise parquet_rows.NotParquetError(f"{error}, or name their format, for example input_format='csv'") from error
    if len(files.of_each_schema(plan.columns)) > 1:
        return _read_by_spark(spark, read_together(spark, paths, files, plan.columns), plan)
    found = files.schema
    plan.check_names(found.names)
    plan.check_types(found)
    rows = files.rows(plan.columns)
    keys = pa.schema([rows.schema.field(name) for name in plan.keys])
    return _Rows(keys, lambda writer: _file_tasks(spark, rows, writer, task_seconds), lambda: rows.rows)


def _file_tasks(
    spark: SparkSession, source: parquet_rows.ParquetRows, writer: ScoreWriter, task_seconds: float
) -> _Tasks:
    """Assign the files to tasks; if a task might take too long, measure the speed of the model first."""
    slots = session_of(spark).default_parallelism
    groups, loads = source.groups_per_task(slots), 0
    predicted_seconds: float | None = None
    if may_take_longer(source.group_rows, groups, task_seconds):
        speed = speed_of(spark, source, writer)
        if speed is not None:
            plan = plan_tasks(source.group_rows, groups, speed.rows_per_second, slots, task_seconds)
            log_plan(plan, speed, task_seconds)
            groups, predicted_seconds, loads = plan.groups_per_task, plan.longest_seconds, speed.loads
    shares = Shares.of(source, groups)
    return _Tasks(shares.partitions(spark), FilesTask(shares, writer), predicted_seconds, loads)


def check_task_seconds(task_seconds: float) -> None:
    """Reject a target that no task can meet.

    Raises:
        ScoringError: It is not above 0.
    """
    if not task_seconds > 0:
        raise ScoringError(f"task_seconds {task_seconds} is not above 0; use the cost of a lost machine, such as 120")


def may_take_longer(group_rows: Sequence[int], groups_per_task: Sequence[int], task_seconds: float) -> bool:
    """Return whether a task may exceed the target, so that measuring the speed is worthwhile."""
    return parquet_rows.largest_share(group_rows, groups_per_task) > ASSUMED_ROWS_PER_SECOND * task_seconds


def _table_of(spark: SparkSession, source: SparkSource, target: StoragePath, plan: ScoringPlan) -> DataFrame:
    """Return the DataFrame of a source that Spark reads."""
    if source.format == "tfrecord":
        refuse_own_input([file.path for file in listing.list_files(source.paths)], source.paths, target)
        return tfrecord_table(spark, source.paths, plan)
    if source.format != "table":
        # Checked here because Spark reads all files next to infer types.
        refuse_own_input([StoragePath.of(path) for path in source.paths], (), target)
    table = source.read(spark)
    # The table of a catalog, a view and a glob name their files only now.
    refuse_own_input([hadoop_path(uri) for uri in table.inputFiles()], (), target)
    return table


def _read_by_spark(spark: SparkSession, table: DataFrame, plan: ScoringPlan) -> _Rows:
    """Check a DataFrame, and have Spark pass its rows to the tasks."""
    table = plan.table(table)
    if table.isEmpty():
        # Without partitions Spark starts no task, and one file is needed to hold the columns of the scores.
        table = session_of(spark).empty_table(table.schema)
    keys = to_arrow_schema(StructType([table.schema[name] for name in plan.keys]), timezone="UTC")
    names = tuple(table.columns)
    rows, count = counted(with_plain_names(table))
    return _Rows(keys, lambda writer: _Tasks(rows, NamedTask(names, RowsTask(writer))), count)


def find_source(paths: Location | Sequence[Location], input_format: str | None) -> SparkSource | list[listing.DataFile]:
    """Return the Parquet files at ``paths``, or a source that Spark has to read.

    Args:
        paths: Files, folders or globs; for the format ``table`` its name.
        input_format: Spark's name of the format; by default Parquet, or the format of the table whose log is found
            there.

    Raises:
        FileNotFoundError: There are no files.
        ScoringError: Only some of the files belong to a table with a log.
    """
    locations = [paths] if isinstance(paths, Location) else list(paths)
    if input_format == "table" and len(locations) != 1:
        raise ScoringError(f"a table has one name, {len(locations)} are given: {locations}; score them one by one")
    if input_format not in (None, "parquet"):
        return SparkSource(input_format, tuple(str(location) for location in locations))
    try:
        return parquet_rows.parquet_files(locations)
    except lakes.LakeTableError as error:
        table = error.table
        if [_resolved(StoragePath.of(location)) for location in locations] != [table.folder]:
            raise ScoringError(
                f"{table}; give that folder alone, or read it with Spark, and score that with "
                f"mirrorspark.scoring.batch.score"
            ) from error
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
