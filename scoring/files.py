"""Score files into Parquet files, which appear all at once: tasks read and write them with pyarrow where they can.

On the way of :func:`scoring.batch.score` every row goes from the JVM to Python and its score back, which takes longer
than the model. Here, where the rows are in plain Parquet files, Spark only deals row groups to tasks and starts them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from data_pipelines.file_listing import DataFile, list_files
from data_pipelines.file_writes import counted, write_files
from data_pipelines.parquet_rows import NotParquetError, ParquetFiles, ParquetRows
from data_pipelines.publish import SaveMode, WriteJob
from data_pipelines.raw_columns import ColumnError
from data_pipelines.spark_schema import with_plain_names
from data_pipelines.storage import Location, StoragePath, hadoop_path
from scoring.bad_rows import BadRows
from scoring.batch import checked_table
from scoring.call import ScoringCall
from scoring.checks import ScoringError
from scoring.counters import JobCounters
from scoring.forms import AS_COLUMNS, Form
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.mixed_parquet import read_together
from scoring.model_uri import PinnedModel
from scoring.null_policy import NullRule
from scoring.older_scores import check_same_columns
from scoring.own_input import refuse_own_input
from scoring.planner import DEFAULT_TASK_SECONDS, Plan, check_task_seconds, may_take_longer, plan_tasks
from scoring.probe import Speed, speed_of
from scoring.score_writer import FilesTask, RowsTask, ScoreWriter
from scoring.scorer import OtherVersions, Settings
from scoring.shares import Shares
from scoring.shipping import NamedTask, portable
from scoring.sources import SparkSource, find_source
from scoring.tfrecord_input import tfrecord_table

_LOGGER = logging.getLogger(__name__)

NAN_ADVICE = "look at these rows' columns, and at the model's weights"


@dataclass(frozen=True)
class ScoredFiles:
    """What :func:`score_files` has made.

    Attributes:
        output: Folder of the scores.
        model: What stands on every row, such as ``flights/3``.
        files: Paths of the files, relative to ``output``, in the order of the rows.
        rows: Rows scored, as many as there were.
        bytes: Size of the files.
        counters: What the tasks did.
        predicted_task_seconds: What the longest task was predicted to take, where that was worth a measurement.
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
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
    task_seconds: float = DEFAULT_TASK_SECONDS,
) -> ScoredFiles:
    """Write the keys of every row of some files with the model's outputs and the version that gave them, as Parquet.

    The scores appear all at once or not at all, one file per task, their rows in the order of the input. A task that is
    tried again, or twice at the same time, leaves no row twice.

    Args:
        spark: Starts the tasks.
        paths: Files, folders or globs of Parquet files; partition folders become columns. Executors read them, so they
            have to reach them. What is more than plain files of one schema is read by Spark, and the log says so: the
            folder of a Delta, Hudi, Iceberg or streaming table, whose log says which of its files count, and files
            that lack a column or have numbers of another width, as far as Spark reads them as one table.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        output: Folder of the scores.
        keys: Columns that name a row; they pass through unchanged.
        input_format: What ``paths`` hold, where that is not Parquet, as ``spark.read.format`` knows it; ``table`` for a
            table of Spark's catalog. Spark reads it; of ``tfrecord`` the types are those of the training.
        mode: What becomes of data at ``output``, by its name in Spark: ``error``, ``overwrite`` or ``append``.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        outputs: The form of the scores, as for :func:`scoring.batch.score`.
        batch_size: Rows per call of the model, unless it takes a number of its own.
        with_version: Add the column ``model_version``.
        nulls: As there.
        bad_rows: As there.
        other_versions: As there.
        task_seconds: What a task may take, in seconds: what is lost with a machine that is taken away. Where a task
            might take longer, how fast the model scores is measured first, and the files are dealt to more tasks if
            need be. Of what Spark reads the tasks are as Spark makes them.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        FileNotFoundError: There are no Parquet files.
        ParquetError: A file is not Parquet, or has two columns of one name.
        ScoringError: A key is missing, a column would stand in the result twice, the model's outputs cannot take the
            form, ``task_seconds`` is not above 0, some of the files are those of a table that only Spark can read, it
            cannot, files have a column of types that it does not read as one, ``output`` holds some of them or lies
            among them, or the scores there, to which these are to be added, have other columns.
        ColumnError: A raw column is missing, or has a type or a value that its feature cannot take.
        TargetExistsError: The mode is ``error``, and there is data at ``output``.
        WriteError: A task failed; the message says why. Nothing of the scores is visible.
        OSError: The scores were written whole and cannot be published; the message says what is visible.
    """
    check_task_seconds(task_seconds)
    settings = Settings.of(outputs, batch_size, with_version, nulls, bad_rows, other_versions)
    save_mode = _save_mode(mode)
    call = ScoringCall.of(model, tracking_uri, keys, settings)
    target = StoragePath.of(output)
    source = find_source(paths, input_format)
    if isinstance(source, SparkSource):
        rows = _read_by_spark(spark, _table_of(spark, source, target, call), call)
    else:
        refuse_own_input([file.path for file in source], [paths] if isinstance(paths, Location) else paths, target)
        rows = _of_files(spark, paths, _parquet_files(source), call, task_seconds)
    schema = pa.schema([*rows.keys, *call.added])
    if save_mode is SaveMode.APPEND:
        check_same_columns(target, schema)
    scorer = call.scorer(spark)
    job = WriteJob.begin(target, save_mode)
    writer = ScoreWriter(job, call.keys, schema, scorer)
    try:
        tasks = rows.tasks(writer)
    except BaseException:
        job.abort()
        raise
    result = write_files(tasks.partitions, job, portable(tasks.body), rows.count, refusal=ColumnError)
    told = JobCounters.of(result.reports)
    counters = replace(told, loads=told.loads + tasks.loads)
    label = call.pinned.label
    _LOGGER.info("%s scored %d rows of %s: %s", label, result.rows, paths, counters)
    if counters.nans:
        _LOGGER.warning("%d scores of %s are NaN: %s", counters.nans, label, NAN_ADVICE)
    return ScoredFiles(
        str(job.target), label, result.files, result.rows, result.bytes, counters, tasks.predicted_seconds
    )


@dataclass(frozen=True)
class _Tasks:
    """Tasks that score rows, before they are started.

    Attributes:
        partitions: Has a partition for each.
        body: Hands its rows to a writer.
        predicted_seconds: What the longest is to take, where that was worth a measurement.
        loads: How often the model was loaded for the measurement.
    """

    partitions: DataFrame
    body: FilesTask | NamedTask
    predicted_seconds: float | None = None
    loads: int = 0


@dataclass(frozen=True)
class _Rows:
    """Rows to score, and how tasks come by them.

    Attributes:
        keys: The key columns as they are read.
        tasks: Returns the tasks, which hand rows to a writer; may run some to measure how fast that goes.
        count: Returns how many rows there are; asked after the tasks.
    """

    keys: pa.Schema
    tasks: Callable[[ScoreWriter], _Tasks]
    count: Callable[[], int]


def _parquet_files(source: Sequence[DataFile]) -> ParquetFiles:
    try:
        return ParquetFiles.of(source)
    except NotParquetError as error:
        raise NotParquetError(f"{error}, or say what the files are: input_format='csv', for example") from error


def _of_files(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    files: ParquetFiles,
    call: ScoringCall,
    task_seconds: float,
) -> _Rows:
    """Let tasks read files of one schema, and Spark those of several."""
    if len(files.of_each_schema(call.columns)) == 1:
        return _read_by_tasks(spark, files, call, task_seconds)
    return _read_by_spark(spark, read_together(spark, paths, files, call.columns), call)


def _read_by_tasks(spark: SparkSession, files: ParquetFiles, call: ScoringCall, task_seconds: float) -> _Rows:
    """Check the files, and deal them to tasks that read them."""
    found = files.schema
    call.check_names(found.names)
    call.check_types(found)
    source = files.rows(call.columns)
    keys = pa.schema([source.schema.field(name) for name in call.keys])
    return _Rows(keys, lambda writer: _file_tasks(spark, source, writer, task_seconds), lambda: source.rows)


def _file_tasks(spark: SparkSession, source: ParquetRows, writer: ScoreWriter, task_seconds: float) -> _Tasks:
    """Deal the files to tasks; where one might take too long, measure first how fast the model scores."""
    slots = spark.sparkContext.defaultParallelism
    groups, loads = source.groups_per_task(slots), 0
    predicted_seconds: float | None = None
    if may_take_longer(source.group_rows, groups, task_seconds):
        speed = speed_of(spark, source, writer)
        if speed is not None:
            plan = plan_tasks(source.group_rows, groups, speed.rows_per_second, slots, task_seconds)
            _log_plan(plan, speed, task_seconds)
            groups, predicted_seconds, loads = plan.groups_per_task, plan.longest_seconds, speed.loads
    shares = Shares.of(source, groups)
    return _Tasks(shares.partitions(spark), FilesTask(shares, writer), predicted_seconds, loads)


def _log_plan(plan: Plan, speed: Speed, task_seconds: float) -> None:
    _LOGGER.info(
        "%d tasks, the longest of some %.1f s: a core scores %.0f rows a second",
        plan.tasks,
        plan.longest_seconds,
        speed.rows_per_second,
    )
    if plan.has_large_groups:
        _LOGGER.warning(
            "a row group of %d rows takes a task %.0f s, above task_seconds %g, and no task reads a part of one; write "
            "the files with row groups of at most %d rows",
            plan.largest_group_rows,
            plan.largest_group_rows / speed.rows_per_second,
            task_seconds,
            max(1, plan.fitting_group_rows),
        )


def _table_of(spark: SparkSession, source: SparkSource, target: StoragePath, call: ScoringCall) -> DataFrame:
    """Return what Spark reads at a source."""
    if source.format == "tfrecord":
        refuse_own_input([file.path for file in list_files(source.paths)], source.paths, target)
        return tfrecord_table(spark, source.paths, call)
    if source.format != "table":
        # Before Spark reads them all to find their types.
        refuse_own_input([StoragePath.of(path) for path in source.paths], (), target)
    table = source.read(spark)
    # Those of a catalog's table, of a view, or of a glob.
    refuse_own_input([hadoop_path(uri) for uri in table.inputFiles()], (), target)
    return table


def _read_by_spark(spark: SparkSession, table: DataFrame, call: ScoringCall) -> _Rows:
    """Check what Spark reads, and let it hand the rows to the tasks."""
    table = checked_table(table, call)
    if table.isEmpty():
        # Spark would start no task, and one file of scores tells their columns.
        table = spark.createDataFrame(spark.sparkContext.parallelize([], 1), table.schema)
    keys = to_arrow_schema(StructType([table.schema[name] for name in call.keys]), timezone="UTC")
    names = tuple(table.columns)
    rows, count = counted(with_plain_names(table))
    return _Rows(keys, lambda writer: _Tasks(rows, NamedTask(names, RowsTask(writer))), count)


def _save_mode(mode: str) -> SaveMode:
    try:
        found = SaveMode.of(mode)
    except ValueError:
        raise ScoringError(f"mode '{mode}' is unknown; use error, overwrite or append") from None
    if found is SaveMode.IGNORE:
        raise ScoringError("mode 'ignore' would leave older scores for new ones; use error, overwrite or append")
    return found
