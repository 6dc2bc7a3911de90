"""Scoring of files into Parquet files with one model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import progress_bar
from mirrorspark.scoring.file_job import (
    FileTasks,
    FileWriter,
    InputRows,
    Read,
    ScoredOutput,
    TaskScoring,
    begun_write,
    check_task_seconds,
    files_or_table,
    find_source,
    refuse_own_input,
    save_mode_of,
    schema_of,
)
from mirrorspark.scoring.input import NullRule, SparkSource, tfrecord_table
from mirrorspark.scoring.model.loading import DEFAULT_BATCH_SIZE
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import AS_COLUMNS, DEFAULT_COLUMNS, BadRows, Form, check_same_columns
from mirrorspark.scoring.plan import ScoringPlan
from mirrorspark.scoring.task import (
    ASSUMED_ROWS_PER_SECOND,
    DEFAULT_TASK_SECONDS,
    JobCounters,
    OtherVersions,
    Scorer,
    ScoringCounts,
    ScoringOptions,
    Speed,
    regrouped,
    speed_of,
)
from mirrorspark.spark_session import on_running_session
from mirrorspark.storage import Location, StoragePath, hadoop_path, lakes, listing
from mirrorspark.storage.publish import SaveMode

_LOGGER = logging.getLogger(__name__)

NAN_ADVICE = "look at these rows' columns, and at the model's weights"


@dataclass(frozen=True)
class ScoredFiles(ScoredOutput):
    """Result of :func:`score_files`.

    Attributes:
        model: Value of the column ``model_version``, such as ``flights/3``.
        predicted_task_seconds: Predicted duration of the longest task; None where the speed was not measured.
    """

    model: str
    counters: JobCounters
    predicted_task_seconds: float | None = None


@on_running_session
def score_files(  # noqa: D417 - the others are those of score
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
        paths: Files, folders or globs that executors can read, or the name of a table of the catalog; partition folders
            become columns. A path means the same as to :func:`data_pipelines.read_table`. Spark reads what is not plain
            Parquet files of one schema, and the log says so: files of another format; a Delta, Hudi, Iceberg or
            streaming table; and files that lack a column or have numbers of another width, if Spark reads them as one
            table.
        model: URI of the model, or the result of :func:`scoring.model.stored.resolve`.
        output: Folder of the scores.
        keys: Columns that identify a row; they pass through unchanged.
        input_format: Format of ``paths`` for ``spark.read.format``, if their names do not give it; ``table`` for a
            table of Spark's catalog. Columns of ``tfrecord`` get the types of the training.
        mode: Spark's save mode for existing data at ``output``: ``error``, ``overwrite`` or ``append``.
        task_seconds: Longest duration of a task, which is the work that a lost machine costs. If one might take longer,
            the speed of the model is measured, and the files are split among more tasks. Rows that Spark reads are not.

    The other arguments are those of :func:`scoring.score`.

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
    options = ScoringOptions.of(outputs, batch_size, with_columns, nulls, bad_rows, other_versions)
    save_mode, target = save_mode_of(mode), StoragePath.of(output)
    lakes.refuse_lake_write(target)
    plan = ScoringPlan.of(model, keys, options, tracking_uri, trust=trust)
    rows = _rows(spark, paths, input_format, target, plan)
    of_keys = schema_of(rows, plan.keys)
    if save_mode is SaveMode.APPEND:
        check_same_columns(target, pa.schema([*of_keys, *plan.results]))
    scorer = plan.scorer(spark)
    with begun_write(target, save_mode) as job:
        writer = ScoreWriter(job, of_keys, scorer, plan.results)

        def speed(source: parquet_rows.ParquetRows, groups_per_task: Sequence[int]) -> Speed | None:
            may_be_long = may_take_longer(source.group_rows, groups_per_task, task_seconds)
            return speed_of(spark, source, writer) if may_be_long else None

        tasks = FileTasks.of(spark, rows, writer, speed, task_seconds)
    with progress_bar(spark, "score"):
        result = tasks.run(job)
    counters = JobCounters.of(result.reports)
    scored = ScoredFiles(
        output=str(job.target),
        files=result.files,
        rows=result.rows,
        bytes=result.bytes,
        model=plan.pinned.label,
        counters=replace(counters, loads=counters.loads + tasks.loads),
        predicted_task_seconds=tasks.predicted_seconds,
    )
    _LOGGER.info("%s scored %d rows of %s: %s", scored.model, scored.rows, paths, scored.counters)
    if scored.counters.nans:
        _LOGGER.warning("%d scores of %s are NaN: %s", scored.counters.nans, scored.model, NAN_ADVICE)
    return scored


@dataclass(frozen=True)
class ScoreWriter(FileWriter[ScoringCounts]):
    """Scores rows with a model and writes the scores into one file.

    Attributes:
        results: The columns after the keys: the scores, then the added columns.
    """

    scorer: Scorer
    results: pa.Schema

    def counts(self) -> ScoringCounts:
        """Return the counters of a new task."""
        return ScoringCounts()

    def scoring(self, read: Read, counts: ScoringCounts) -> TaskScoring:
        """Return the scoring of a task's rows, which counts them."""
        # The model is loaded with the first row and not earlier because an empty share does not need it.
        load, options = cache(lambda: self.scorer.load(counts)), self.scorer.options
        return TaskScoring(
            pa.schema([*self.keys, *self.results]),
            # A multiple of 1: a model takes any number of rows, and parts that are read may be small.
            regrouped(read(1)),
            lambda rows: self.scorer.scored_parts(load(), rows, counts, self.keys.names),
            options.outputs.keeps_rows,
            [column.name for column in options.added if column.repeats],
        )


def _rows(
    spark: SparkSession,
    paths: Location | Sequence[Location],
    input_format: str | None,
    target: StoragePath,
    plan: ScoringPlan,
) -> InputRows:
    """Find the rows and check their columns. Tasks read Parquet files of one schema; Spark reads everything else."""
    source = find_source(paths, input_format)
    if isinstance(source, SparkSource):
        return plan.table(_table_of(spark, source, target, plan))
    try:
        found = files_or_table(spark, paths, source, plan.columns, target)
    except parquet_rows.NotParquetError as error:
        raise parquet_rows.NotParquetError(f"{error}, or name their format, for example input_format='csv'") from error
    if not isinstance(found, parquet_rows.ParquetFiles):
        return plan.table(found)
    plan.check_names(found.schema.names)
    plan.check_types(found.schema)
    return found.rows(plan.columns)


def may_take_longer(group_rows: Sequence[int], groups_per_task: Sequence[int], task_seconds: float) -> bool:
    """Return whether a task may exceed the target, so that measuring the speed is worthwhile."""
    return parquet_rows.largest_share(group_rows, groups_per_task) > ASSUMED_ROWS_PER_SECOND * task_seconds


def _table_of(spark: SparkSession, source: SparkSource, target: StoragePath, plan: ScoringPlan) -> DataFrame:
    """Return the DataFrame of a source that Spark reads."""
    if source.format in ("tfrecord", "tfrecords"):
        refuse_own_input([file.path for file in listing.list_files(source.paths)], source.paths, target)
        return tfrecord_table(spark, source.paths, plan)
    if source.format != "table":
        # Checked here because Spark reads all files next to infer types.
        refuse_own_input([StoragePath.of(path) for path in source.paths], (), target)
    table = source.read(spark)
    # The table of a catalog, a view and a glob name their files only now.
    refuse_own_input([hadoop_path(uri) for uri in table.inputFiles()], (), target)
    return table
