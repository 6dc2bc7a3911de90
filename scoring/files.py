"""Score Parquet files into Parquet files: tasks read and write them with pyarrow, and no row passes through the JVM.

On the way of :func:`scoring.batch.score` every row goes from the JVM to Python and its score back, which takes longer
than the model. Here Spark only deals row groups to tasks and starts them.
"""

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from data_pipelines.file_writes import outcome, write_files
from data_pipelines.parquet_rows import BATCH_BYTES, ParquetRows, RowGroups, parquet_files, parquet_schema
from data_pipelines.publish import SaveMode, WriteJob, WrittenFile
from data_pipelines.raw_columns import ColumnError
from data_pipelines.storage import Location, StoragePath
from scoring.checks import ScoringError, check_batch_size, check_columns, check_types, input_columns
from scoring.counters import JobCounters, Tally
from scoring.loaded_model import DEFAULT_BATCH_SIZE
from scoring.model_directory import ARROW_TYPES, ModelDirectory
from scoring.model_uri import PinnedModel
from scoring.regroup import regrouped
from scoring.scorer import VERSION_COLUMN, Scorer, pinned_model
from scoring.shipping import portable, ship

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
    mode: str = "error",
    tracking_uri: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    with_version: bool = True,
) -> ScoredFiles:
    """Write the keys of every row of Parquet files with the model's outputs and the version that gave them.

    The scores appear all at once or not at all, one file per task, their rows in the order of the input. A task that is
    tried again, or twice at the same time, leaves no row twice.

    Args:
        spark: Starts the tasks.
        paths: Files, folders or globs of Parquet files; partition folders become columns. Executors read them, so they
            have to reach them.
        model: URI of the model, or what :func:`scoring.model_uri.resolve` made of it.
        output: Folder of the scores.
        keys: Columns that name a row; they pass through unchanged.
        mode: What becomes of data at ``output``, by its name in Spark: ``error``, ``overwrite`` or ``append``.
        tracking_uri: MLflow store of the URI; by default the one that MLflow is set to.
        batch_size: Rows per call of the model.
        with_version: Add the column ``model_version``.

    Raises:
        ModelNotFoundError: The URI leads to no model.
        FileNotFoundError: There are no Parquet files.
        ParquetError: A file is not Parquet, or has other columns than the first.
        ScoringError: A key is missing, a column would stand in the result twice, the files are those of a table format
            that alone knows which of them count, or ``output`` holds some of them.
        ColumnError: A raw column is missing, or has a type or a value that its feature cannot take.
        TargetExistsError: The mode is ``error``, and there is data at ``output``.
        WriteError: A task failed; the message says why. Nothing of the scores is visible.
        OSError: The scores were written whole and cannot be published; the message says what is visible.
    """
    check_batch_size(batch_size)
    save_mode = _save_mode(mode)
    pinned = pinned_model(model, tracking_uri)
    directory = ModelDirectory.open(pinned.path)
    key_names = (keys,) if isinstance(keys, str) else tuple(keys)
    target = StoragePath.of(output)
    files = parquet_files(paths)
    places = [file.path for file in files]
    _refuse_tables(places)
    _refuse_own_input(places, target)
    found = parquet_schema(files)
    outputs = _outputs(directory, with_version=with_version)
    check_columns(found.names, key_names, directory.inputs, outputs.names)
    check_types(found, directory.inputs, directory.features.column_types)
    source = ParquetRows.of_files(files, tuple(dict.fromkeys([*key_names, *input_columns(directory.inputs)])))
    # Files without a row have no row groups; one file of scores tells their columns.
    shares = source.dealt(spark.sparkContext.defaultParallelism) or ((),)
    scorer = Scorer(ship(spark, pinned), batch_size, with_version=with_version)
    schema = pa.schema([*(source.schema.field(name) for name in key_names), *outputs])
    job = WriteJob.begin(target, save_mode)
    task = FilesTask(job, source, shares, key_names, schema, scorer)
    one_row_each = spark.range(0, len(shares), 1, len(shares))
    result = write_files(one_row_each, job, portable(task), lambda: source.rows, refusal=ColumnError)
    counters = JobCounters.of(result.reports)
    _LOGGER.info("%s scored %d rows of %s: %s", pinned.label, result.rows, paths, counters)
    return ScoredFiles(str(job.target), pinned.label, result.files, result.rows, result.bytes, counters)


@dataclass(frozen=True)
class FilesTask:
    """The body of a Spark task of :func:`score_files`: its share of the row groups becomes one file of scores.

    Attributes:
        job: Where the files go.
        source: The rows.
        shares: The row groups of each task.
        keys: Columns that pass through.
        schema: The columns of the scores.
        scorer: Where the model is and how to call it.
    """

    job: WriteJob
    source: ParquetRows
    shares: tuple[tuple[RowGroups, ...], ...]
    keys: tuple[str, ...]
    schema: pa.Schema
    scorer: Scorer

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what became of each share that ``batches`` number."""
        for batch in batches:
            for number in batch.column(0).to_pylist():
                tally = Tally()
                score = functools.partial(self._score, number, tally)
                yield outcome(score, refusals=(ColumnError,), report=tally.report)

    def _score(self, number: int, tally: Tally) -> list[WrittenFile]:
        with self.job.attempt(number) as attempt:
            path = f"part-{attempt}.parquet"
            file = self.job.attempt_file(attempt, path)
            with file.open_write() as sink, self._writer(sink) as writer:
                # A batch that is written becomes a row group, of which readers like large ones.
                for scored in regrouped(self._scored(number, tally), _ROW_GROUP_ROWS, BATCH_BYTES):
                    writer.write_batch(scored)
            return [WrittenFile(attempt, path, tally.rows, tally.rows, file.size())]

    def _writer(self, sink: Any) -> pq.ParquetWriter:
        # To look for repetitions among keys and scores takes longer than to write them. Readers are to see texts, not
        # Arrow's own types.
        repeated = [VERSION_COLUMN] if VERSION_COLUMN in self.schema.names else False
        return pq.ParquetWriter(sink, self.schema, use_dictionary=repeated, store_schema=False)

    def _scored(self, number: int, tally: Tally) -> Iterator[pa.RecordBatch]:
        model = self.scorer.load(tally)
        for rows in regrouped(self.source.batches(self.shares[number], 1)):
            # Keys leave in the batch that they came in, so no row can get another's score.
            columns = {key: rows.column(key) for key in self.keys} | self.scorer.outputs(model, rows, tally)
            yield pa.RecordBatch.from_arrays(list(columns.values()), schema=self.schema)


_ROW_GROUP_ROWS = 2**20


def _save_mode(mode: str) -> SaveMode:
    found = SaveMode.of(mode)
    if found is SaveMode.IGNORE:
        raise ScoringError("mode 'ignore' would leave older scores for new ones; use error, overwrite or append")
    return found


def _refuse_own_input(files: Sequence[StoragePath], target: StoragePath) -> None:
    """Refuse to write among the rows that are read: they would be replaced, or be read with their scores next time."""
    place = _settled(target)
    within = [file for file in files if f"{_settled(file)}/".startswith(f"{place}/")]
    if within:
        raise ScoringError(f"the output {target} holds the input {within[0]}; write the scores elsewhere")


def _settled(path: StoragePath) -> str:
    return str(StoragePath.of(path.local.resolve()) if path.is_local else path)


def _refuse_tables(files: Sequence[StoragePath]) -> None:
    """Refuse files of tables whose log says which of them count: some may have been replaced or deleted."""
    roots = {_outside_partitions(file.parent) for file in files}
    for folder in sorted({*roots, *(root.parent for root in roots)}, key=str):
        log = _table_log(folder)
        if log is not None:
            raise ScoringError(
                f"{folder} is a table whose log ({log}) says which of its files count; read it with Spark, and score "
                f"that with scoring.batch.score"
            )


def _outside_partitions(folder: StoragePath) -> StoragePath:
    while "=" in folder.name:
        folder = folder.parent
    return folder


def _table_log(folder: StoragePath) -> str | None:
    """Return what makes the folder a table of Delta, Hudi, Iceberg or Spark's streams; None where nothing does."""
    for name in ("_delta_log", ".hoodie", "_spark_metadata"):
        if (folder / name).is_folder():
            return name
    metadata = folder / "metadata"
    if metadata.is_folder() and any(f.path.name.endswith(".metadata.json") for f in metadata.files(recursive=False)):
        return "metadata"
    return None


def _outputs(directory: ModelDirectory, *, with_version: bool) -> pa.Schema:
    fields = [(name, ARROW_TYPES[type_]) for name, type_ in directory.description.outputs.items()]
    return pa.schema([*fields, *([(VERSION_COLUMN, pa.string())] if with_version else [])])
