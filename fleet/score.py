"""Scoring of files and DataFrames with a fleet, into Parquet files that appear all at once."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.features import quoted, repeated_names
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import progress_bar
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.packages import check_trust
from mirrorspark.fleet.scorer import ASSUMED_INFERENCES_PER_SECOND, FleetScorer
from mirrorspark.fleet.task import MODELS_KEY, FleetWriter
from mirrorspark.scoring import ScoringError, SentColumns, check_keys, file_job
from mirrorspark.scoring.input import Reader, SparkSource, rows_of
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.scoring.output import check_same_columns
from mirrorspark.scoring.task import DEFAULT_TASK_SECONDS, MergedCounters, ShippedModel, Speed, ship
from mirrorspark.spark_session import on_running_session, session_of
from mirrorspark.storage import Location, StoragePath, hadoop_path, lakes, listing
from mirrorspark.storage.publish import SaveMode

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetCounters(MergedCounters):
    """Merged counters of the tasks of a job.

    Attributes:
        processes: Number of Python workers.
        nulls: Rows of models without outputs, because a value is missing.
        read_seconds: Seconds in which tasks read rows, added up; as are the next two.
        score_seconds: Seconds in which tasks scored rows.
        write_seconds: Seconds in which tasks encoded and wrote outputs.
        task_seconds: Seconds of the tasks, added up: reading, scoring and writing, and little else.
        slowest_seconds: Seconds of the slowest task.
        median_seconds: Seconds of the median task.
        peak_memory_bytes: Largest resident memory of a process.
    """

    rows: int
    nulls: int
    read_seconds: float
    score_seconds: float
    write_seconds: float
    task_seconds: float
    slowest_seconds: float
    median_seconds: float
    peak_memory_bytes: int

    @classmethod
    def of(cls, reports: Iterable[Mapping[str, Any]]) -> Self:
        """Merge the reports of :class:`fleet.task.FleetCounts`."""
        every = list(reports)
        seconds = [report["seconds"] for report in every] or [0.0]
        return replace(
            super().of(every),
            task_seconds=sum(seconds),
            slowest_seconds=max(seconds),
            median_seconds=median(seconds),
        )


@dataclass(frozen=True)
class ScoredFleet(file_job.ScoredOutput):
    """Result of :func:`score_fleet`.

    Attributes:
        fleet: Digest of the fleet.
        models: The names of the models, in the order of a packed list's elements.
    """

    fleet: str
    models: tuple[str, ...]
    counters: FleetCounters

    @property
    def inferences(self) -> int:
        """Rows times models."""
        return self.rows * len(self.models)

    @property
    def bytes_per_inference(self) -> float:
        """Size of the files per row and model."""
        return self.bytes / max(1, self.inferences)

    @property
    def inferences_per_core_second(self) -> float:
        """Inferences per second in which a task read, scored or wrote."""
        counters = self.counters
        return self.inferences / max(1e-9, counters.read_seconds + counters.score_seconds + counters.write_seconds)


@on_running_session
def score_fleet(
    rows: DataFrame | Location | Sequence[Location],
    fleet: Fleet | str | Path,
    output: Location,
    *,
    keys: str | Sequence[str],
    layout: str = "wide",
    outputs: str | Sequence[str] | None = None,
    mode: str = "error",
    reader: Reader = "auto",
    task_seconds: float = DEFAULT_TASK_SECONDS,
    spark: SparkSession | None = None,
    trust: bool = False,
) -> ScoredFleet:
    """Score rows with all models of a fleet in one pass, and write keys and outputs as Parquet.

    Each row is read once, however many models there are, and only the columns that some model reads. The outputs appear
    all at once or not at all. Memory is bounded by batches of rows.

    Args:
        rows: Parquet files, folders or globs that executors can read, or a DataFrame. Tasks read plain Parquet files
            themselves; Spark reads all other input.
        fleet: The fleet, a folder of :meth:`Fleet.save`, or ``models:/<name>/<version>`` of ``register_fleet``.
        output: Folder of the outputs.
        keys: Columns that identify a row; they pass through unchanged.
        layout: ``wide``: a column per model and output, such as ``modelX_Rank``. ``packed``: a column per output, whose
            lists have an element per model, in the order of the fleet. ``long``: a row per model and row.
        outputs: Some of ``score`` (float), ``binary`` (1 from the threshold on, else 0) and ``Rank`` (from 1 for the
            best, by the cut-points). By default ``binary`` and ``Rank`` if any model has them, else ``score``.
        mode: Spark's save mode for existing data at ``output``: ``error``, ``overwrite`` or ``append``.
        reader: Reader of a DataFrame of plain Parquet files: see :data:`scoring.input.Reader`.
        task_seconds: Longest duration of a task, which is the work that a lost machine costs, at an assumed speed.
        spark: The session of files; by default the active one.
        trust: Whether Python code may run that models of ``fleet_from_models`` bring, here and on the executors.

    Raises:
        FleetError: The folder holds no fleet.
        UntrustedModelError: A model brings Python code, and ``trust`` is False.
        FileNotFoundError: There are no Parquet files.
        LakeTableError: ``output`` is, or lies in, a table that would not have the outputs.
        ParquetError: A file is not Parquet.
        ScoringError: A key is missing, the layout or an output is unknown, the result would have a column twice,
            ``output`` contains the input or lies in it, or the scores at ``output`` have other columns or models and
            the mode is ``append``.
        ColumnError: A column of the fleet is missing, or has a type that its models cannot read.
        TargetExistsError: The mode is ``error`` and ``output`` has data.
        WriteError: A task failed, for the reason in the message; no outputs are visible.
        OSError: The outputs were written completely but cannot be published; the message says what is visible.
    """
    file_job.check_task_seconds(task_seconds)
    save_mode, target = file_job.save_mode_of(mode), StoragePath.of(output)
    lakes.refuse_lake_write(target)
    fleet = fleet if isinstance(fleet, Fleet) else Fleet.load(fleet)
    check_trust(fleet, trust=trust)
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    planned = Layout.of(fleet, layout, outputs)
    planned.check_outputs(set(planned.models))
    session = session_for(rows, spark)
    found = _rows(session, rows, tuple(dict.fromkeys([*keys, *fleet.columns])), target, reader)
    schema = file_job.schema_of(found, found.schema.names)
    check_result(planned, schema, keys)
    FleetScorer(fleet, planned).check(schema)
    of_keys = file_job.schema_of(found, keys)
    if save_mode is SaveMode.APPEND:
        _check_same_scores(target, pa.schema([*of_keys, *planned.fields]), planned)
    shipped, speed = ship_fleet(session, fleet), Speed(ASSUMED_INFERENCES_PER_SECOND / len(fleet))
    with file_job.begun_write(target, save_mode) as job:
        writer = FleetWriter(job, of_keys, shipped, planned.name, planned.outputs)
        tasks = file_job.FileTasks.of(session, found, writer, lambda *_: speed, task_seconds)
    with progress_bar(session, "score"):
        result = tasks.run(job)
    counters = FleetCounters.of(result.reports)
    scored = ScoredFleet(
        output=str(job.target),
        files=result.files,
        rows=result.rows,
        bytes=result.bytes,
        fleet=fleet.digest,
        models=fleet.names,
        counters=counters,
    )
    _LOGGER.info("%d models scored %d rows: %s", len(fleet), scored.rows, counters)
    return scored


def ship_fleet(spark: SparkSession, fleet: Fleet) -> ShippedModel:
    """Make ``fleet`` available to the tasks of ``spark``, as it is now: later changes to its folder do not matter."""
    # Spark's own folder for files exists as the application.
    folder = session_of(spark).files_folder / f"mirrorspark-fleet-{fleet.digest}"
    fleet.save(folder)
    return ship(spark, PinnedModel(str(folder), "fleet", fleet.digest[:12], fleet.digest, folder))


def session_for(rows: Any, spark: SparkSession | None) -> SparkSession:
    """Return the session of a DataFrame; for files the given one, by default the active one."""
    session = rows.sparkSession if hasattr(rows, "sparkSession") else spark or SparkSession.getActiveSession()
    if session is None:
        raise ScoringError("there is no active Spark session; start one, or give it as spark=")
    return session


def _rows(
    spark: SparkSession, rows: Any, columns: Sequence[str], target: StoragePath, reader: Reader
) -> file_job.InputRows:
    """Find the rows. Tasks read Parquet files of one schema; Spark reads everything else."""
    if hasattr(rows, "sparkSession"):
        return _of_table(rows, columns, target, reader)
    source = file_job.find_source(rows, None)
    if isinstance(source, SparkSource):
        return _of_table(source.read(spark), columns, target, reader)
    found = file_job.files_or_table(spark, rows, source, columns, target)
    if not isinstance(found, parquet_rows.ParquetFiles):
        return _of_table(found, columns, target, "spark")
    return found.rows(_present(columns, found.schema.names))


def _of_table(table: DataFrame, columns: Sequence[str], target: StoragePath, reader: Reader) -> file_job.InputRows:
    file_job.refuse_own_input([hadoop_path(uri) for uri in table.inputFiles()], (), target)
    found = SentColumns.of(table.schema)
    present = _present(columns, found.names)
    if ambiguous := [name for name in repeated_names(found.names) if name in present]:
        raise ScoringError(f"the table has the columns {ambiguous} twice; drop or rename one of each")
    chosen = table.select(*(quoted(name) for name in present))
    found.schema(present)  # types that no model takes are refused by their names in Spark
    return rows_of(chosen, reader) or chosen


def _present(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the columns that are there; the scorer names those that are not."""
    known = set(names)
    return [name for name in columns if name in known]


def check_result(layout: Layout, columns: pa.Schema, keys: Sequence[str]) -> None:
    """Check that the input has the keys, and that the result has no column twice.

    Raises:
        ScoringError: It is not so.
    """
    check_keys(columns.names, keys)
    if twice := repeated_names([name.lower() for name in [*keys, *(field.name for field in layout.fields)]]):
        raise ScoringError(f"the result would have the columns {twice[:5]} twice; rename or leave out such keys")


def _check_same_scores(target: StoragePath, schema: pa.Schema, layout: Layout) -> None:
    """Check that outputs can be appended to those in ``target``: columns, and the models of packed lists."""
    check_same_columns(target, schema)
    if layout.name != "packed" or not target.exists():
        return
    older = next((file for file in listing.list_files(target) if file.path.name.endswith(".parquet")), None)
    if older is None:
        return
    with older.path.open_read() as source:
        metadata = pq.ParquetFile(source).metadata.metadata or {}
    if json.loads(metadata.get(MODELS_KEY.encode(), b"null")) != list(layout.models):
        raise ScoringError(
            f"the lists in {target} are of other models, or in another order; write to another folder, or use mode "
            f"'overwrite'"
        )
