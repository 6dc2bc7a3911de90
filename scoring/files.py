"""Score files into Parquet files, which appear all at once: tasks read and write them with pyarrow where they can.

On the way of :func:`scoring.batch.score` every row goes from the JVM to Python and its score back, which takes longer
than the model. Here, where the rows are in plain Parquet files, Spark only deals row groups to tasks and starts them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from data_pipelines.file_listing import DataFile
from data_pipelines.file_writes import write_files
from data_pipelines.parquet_rows import ParquetRows, parquet_schema
from data_pipelines.publish import SaveMode, WriteJob
from data_pipelines.raw_columns import ColumnError
from data_pipelines.storage import Location, StoragePath
from scoring.bad_rows import BadRows, NullPolicy, NullRule
from scoring.batch import checked_table
from scoring.call import ScoringCall
from scoring.checks import ScoringError
from scoring.counters import JobCounters
from scoring.forms import AS_COLUMNS, Form
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_uri import PinnedModel
from scoring.score_writer import FilesTask, RowsTask, ScoreWriter
from scoring.scorer import OtherVersions, Settings
from scoring.shipping import portable
from scoring.sources import SparkSource, find_source
from scoring.tfrecord_input import tfrecord_table

_LOGGER = logging.getLogger(__name__)


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
    """

    output: str
    model: str
    files: tuple[str, ...]
    rows: int
    bytes: int
    counters: JobCounters


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
    outputs: Form = AS_COLUMNS,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
    nulls: Mapping[str, NullRule] | None = None,
    bad_rows: BadRows = "fail",
    other_versions: OtherVersions = "refuse",
) -> ScoredFiles:
    """Write the keys of every row of some files with the model's outputs and the version that gave them, as Parquet.

    The scores appear all at once or not at all, one file per task, their rows in the order of the input. A task that is
    tried again, or twice at the same time, leaves no row twice.

    Args:
        spark: Starts the tasks.
        paths: Files, folders or globs of Parquet files; partition folders become columns. Executors read them, so they
            have to reach them. What is no plain file is read by Spark, and the log says so: the folder of a Delta,
            Hudi, Iceberg or streaming table, whose log says which of its files count.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        output: Folder of the scores.
        keys: Columns that name a row; they pass through unchanged.
        input_format: What ``paths`` hold, where that is not Parquet, as ``spark.read.format`` knows it; ``table`` for a
            table of Spark's catalog. Spark reads it; of ``tfrecord`` the types are those of the training.
        mode: What becomes of data at ``output``, by its name in Spark: ``error``, ``overwrite`` or ``append``.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        outputs: The form of the scores, as for :func:`scoring.batch.score`.
        batch_size: Rows per call of the model.
        with_version: Add the column ``model_version``.
        nulls: As there.
        bad_rows: As there.
        other_versions: As there.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        FileNotFoundError: There are no Parquet files.
        ParquetError: A file is not Parquet, or has other columns than the first.
        ScoringError: A key is missing, a column would stand in the result twice, the model's outputs cannot take the
            form, some of the files are those of a table that only Spark can read, Spark cannot, or ``output`` holds
            some of them.
        ColumnError: A raw column is missing, or has a type or a value that its feature cannot take.
        TargetExistsError: The mode is ``error``, and there is data at ``output``.
        WriteError: A task failed; the message says why. Nothing of the scores is visible.
        OSError: The scores were written whole and cannot be published; the message says what is visible.
    """
    settings = Settings(outputs, batch_size, with_version, NullPolicy(nulls or {}), bad_rows, other_versions)
    save_mode = _save_mode(mode)
    call = ScoringCall.of(model, tracking_uri, keys, settings)
    target = StoragePath.of(output)
    source = find_source(paths, input_format)
    if isinstance(source, SparkSource):
        rows = _read_by_spark(spark, source, target, call)
    else:
        rows = _read_by_tasks(spark, source, target, call)
    scorer = call.scorer(spark)
    job = WriteJob.begin(target, save_mode)
    writer = ScoreWriter(job, call.keys, pa.schema([*rows.keys, *call.added]), scorer)
    result = write_files(rows.partitions, job, portable(rows.task(writer)), rows.count, refusal=ColumnError)
    counters = JobCounters.of(result.reports)
    label = call.pinned.label
    _LOGGER.info("%s scored %d rows of %s: %s", label, result.rows, paths, counters)
    return ScoredFiles(str(job.target), label, result.files, result.rows, result.bytes, counters)


@dataclass(frozen=True)
class _Rows:
    """Rows to score, and how tasks come by them.

    Attributes:
        keys: The key columns as they are read.
        partitions: Has a partition for each task.
        task: Returns the body of the tasks, which hands rows to a writer.
        count: Returns how many rows there are.
    """

    keys: pa.Schema
    partitions: DataFrame
    task: Callable[[ScoreWriter], FilesTask | RowsTask]
    count: Callable[[], int]


def _read_by_tasks(spark: SparkSession, files: Sequence[DataFile], target: StoragePath, call: ScoringCall) -> _Rows:
    """Check the files, and deal them to tasks that read them."""
    _refuse_own_input([file.path for file in files], target)
    found = parquet_schema(files)
    call.check_names(found.names)
    call.check_types(found)
    source = ParquetRows.of_files(files, call.columns)
    # Files without a row have no row groups; one file of scores tells their columns.
    shares = source.dealt(spark.sparkContext.defaultParallelism) or ((),)
    one_row_each = spark.range(0, len(shares), 1, len(shares))
    keys = pa.schema([source.schema.field(name) for name in call.keys])
    return _Rows(keys, one_row_each, lambda writer: FilesTask(source, shares, writer), lambda: source.rows)


def _read_by_spark(spark: SparkSession, source: SparkSource, target: StoragePath, call: ScoringCall) -> _Rows:
    """Check what Spark reads, and let it hand the rows to the tasks."""
    if source.format != "table":
        _refuse_own_input([StoragePath.of(path) for path in source.paths], target)
    is_tfrecord = source.format == "tfrecord"
    table = checked_table(tfrecord_table(spark, source.paths, call) if is_tfrecord else source.read(spark), call)
    if table.isEmpty():
        # Spark would start no task, and one file of scores tells their columns.
        table = spark.createDataFrame(spark.sparkContext.parallelize([], 1), table.schema)
    keys = to_arrow_schema(StructType([table.schema[name] for name in call.keys]), timezone="UTC")
    return _Rows(keys, table, RowsTask, table.count)


def _save_mode(mode: str) -> SaveMode:
    found = SaveMode.of(mode)
    if found is SaveMode.IGNORE:
        raise ScoringError("mode 'ignore' would leave older scores for new ones; use error, overwrite or append")
    return found


def _refuse_own_input(places: Sequence[StoragePath], target: StoragePath) -> None:
    """Refuse to write among the rows that are read: they would be replaced, or be read with their scores next time."""
    output = _settled(target)
    within = [place for place in places if f"{_settled(place)}/".startswith(f"{output}/")]
    if within:
        raise ScoringError(f"the output {target} holds the input {within[0]}; write the scores elsewhere")


def _settled(path: StoragePath) -> str:
    return str(StoragePath.of(path.local.resolve()) if path.is_local else path)
