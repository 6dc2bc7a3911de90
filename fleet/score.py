"""Scoring of files and DataFrames with a fleet, into Parquet files that appear all at once."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from mirrorspark.data_pipelines.features import kinds, raw_columns
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import (
    BatchFunction,
    NamedTask,
    Shares,
    counted,
    portable,
    progress_bar,
    with_plain_names,
    write_files,
)
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.packages import check_trust
from mirrorspark.fleet.scorer import ASSUMED_INFERENCES_PER_SECOND, FleetScorer
from mirrorspark.fleet.task import MODELS_KEY, FleetFilesTask, FleetRowsTask, FleetWriter
from mirrorspark.scoring import (
    ScoringError,
    SentColumns,
    check_keys,
    check_task_seconds,
    column_named,
    find_source,
    refuse_own_input,
    save_mode_of,
)
from mirrorspark.scoring.input import Reader, SparkSource, read_together, rows_of
from mirrorspark.scoring.model import PinnedModel
from mirrorspark.scoring.output import check_same_columns
from mirrorspark.scoring.task import DEFAULT_TASK_SECONDS, ShippedModel, Speed, log_plan, plan_tasks, ship
from mirrorspark.spark_session import session_of
from mirrorspark.storage import Location, StoragePath, hadoop_path, lakes, listing
from mirrorspark.storage.publish import SaveMode, WriteJob

_LOGGER = logging.getLogger(__name__)

_LARGEST = ("peak_memory_bytes",)


@dataclass(frozen=True)
class FleetCounters:
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

    tasks: int
    processes: int
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
    def of(cls, reports: Iterable[Mapping[str, Any]]) -> "FleetCounters":
        """Merge the reports of :class:`fleet.task.FleetTally`."""
        every = list(reports)
        seconds = [report["seconds"] for report in every] or [0.0]
        of_tasks = {"task_seconds": sum(seconds), "slowest_seconds": max(seconds), "median_seconds": median(seconds)}
        merged: dict[str, Any] = {
            name: (max if name in _LARGEST else sum)(report[name] for report in every) if every else 0
            for name in cls.__annotations__
            if name not in ("tasks", "processes", *of_tasks)
        }
        processes = len({report["process"] for report in every})
        return cls(tasks=len(every), processes=processes, **of_tasks, **merged)


@dataclass(frozen=True)
class ScoredFleet:
    """Result of :func:`score_fleet`.

    Attributes:
        output: Folder of the scores.
        fleet: Digest of the fleet.
        models: The names of the models, in the order of a packed list's elements.
        files: Paths of the files, relative to ``output``, in the order of the rows.
        rows: Rows of the input.
        bytes: Total size of the files.
    """

    output: str
    fleet: str
    models: tuple[str, ...]
    files: tuple[str, ...]
    rows: int
    bytes: int
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
    check_task_seconds(task_seconds)
    save_mode, target = save_mode_of(mode), StoragePath.of(output)
    lakes.refuse_lake_write(target)
    fleet = fleet if isinstance(fleet, Fleet) else Fleet.load(fleet)
    check_trust(fleet, trust=trust)
    keys = (keys,) if isinstance(keys, str) else tuple(keys)
    outputs = (outputs,) if isinstance(outputs, str) else outputs
    planned = Layout.of(fleet, layout, outputs)
    planned.check_outputs(set(planned.models))
    session = session_for(rows, spark)
    columns = tuple(dict.fromkeys([*keys, *fleet.columns]))
    source = _source(session, rows, columns, target, reader)
    _check(FleetScorer(fleet, planned), source, keys)
    key_fields = pa.schema([source.schema.field(name) for name in keys])
    if save_mode is SaveMode.APPEND:
        _check_same_scores(target, pa.schema([*key_fields, *planned.fields]), planned)
    shipped = ship_fleet(session, fleet)
    job = WriteJob.begin(target, save_mode)
    writer = FleetWriter(job, key_fields, shipped, planned.name, planned.outputs)
    try:
        partitions, body, count = _tasks(session, source, writer, len(fleet), task_seconds)
    except BaseException:
        job.abort()
        raise
    with progress_bar(session, "score"):
        result = write_files(partitions, job, portable(body), count, refusal=raw_columns.ColumnError)
    counters = FleetCounters.of(result.reports)
    scored = ScoredFleet(str(job.target), fleet.digest, fleet.names, result.files, result.rows, result.bytes, counters)
    _LOGGER.info("%d models scored %d rows: %s", len(fleet), scored.rows, counters)
    return scored


def ship_fleet(spark: SparkSession, fleet: Fleet) -> ShippedModel:
    """Make ``fleet`` available to the tasks of ``spark``, as it is now: later changes to its folder do not matter."""
    # Spark's own folder for files exists as the application.
    folder = session_of(spark).files_folder / f"mirrorspark-fleet-{fleet.digest}"
    fleet.save(folder)
    return ship(spark, PinnedModel(str(folder), "fleet", fleet.digest[:12], fleet.digest, folder))


@dataclass(frozen=True)
class _Source:
    """Rows that tasks read, or that Spark reads, and their columns."""

    rows: parquet_rows.ParquetRows | DataFrame
    schema: pa.Schema


def session_for(rows: Any, spark: SparkSession | None) -> SparkSession:
    """Return the session of a DataFrame; for files the given one, by default the active one."""
    session = rows.sparkSession if hasattr(rows, "sparkSession") else spark or SparkSession.getActiveSession()
    if session is None:
        raise ScoringError("there is no active Spark session; start one, or give it as spark=")
    return session


def _source(spark: SparkSession, rows: Any, columns: Sequence[str], target: StoragePath, reader: Reader) -> _Source:
    """Find the rows. Tasks read Parquet files of one schema; Spark reads everything else."""
    if hasattr(rows, "sparkSession"):
        return _of_table(rows, columns, target, reader)
    found = find_source(rows, None)
    if isinstance(found, SparkSource):
        return _of_table(found.read(spark), columns, target, reader)
    locations = [rows] if isinstance(rows, Location) else list(rows)
    refuse_own_input([file.path for file in found], locations, target)
    files = parquet_rows.ParquetFiles.of(found)
    known = set(files.schema.names)
    present = [name for name in columns if name in known]
    if len(files.of_each_schema(present)) > 1:
        return _of_table(read_together(spark, rows, files, present), columns, target, "spark")
    of_columns = files.rows(present)
    return _Source(of_columns, of_columns.schema)


def _of_table(table: DataFrame, columns: Sequence[str], target: StoragePath, reader: Reader) -> _Source:
    refuse_own_input([hadoop_path(uri) for uri in table.inputFiles()], (), target)
    found = SentColumns.of(table.schema)
    present = [name for name in columns if name in found.names]
    if ambiguous := [name for name in kinds.repeated_names(found.names) if name in present]:
        raise ScoringError(f"the table has the columns {ambiguous} twice; drop or rename one of each")
    chosen = table.select(*(column_named(name) for name in present))
    found.schema(present)  # types that no model takes are refused by their names in Spark
    rows = rows_of(chosen, reader)
    if rows is None:
        return _Source(chosen, to_arrow_schema(chosen.schema, timezone="UTC"))
    return _Source(rows, rows.schema)


def _check(scorer: FleetScorer, source: _Source, keys: Sequence[str]) -> None:
    check_result(scorer.layout, source.schema, keys)
    scorer.check(source.schema)


def check_result(layout: Layout, columns: pa.Schema, keys: Sequence[str]) -> None:
    """Check that the input has the keys, and that the result has no column twice.

    Raises:
        ScoringError: It is not so.
    """
    check_keys(columns.names, keys)
    if twice := kinds.repeated_names([name.lower() for name in [*keys, *(field.name for field in layout.fields)]]):
        raise ScoringError(f"the result would have the columns {twice[:5]} twice; rename or leave out such keys")


def _tasks(
    spark: SparkSession, source: _Source, writer: FleetWriter, models: int, task_seconds: float
) -> tuple[DataFrame, BatchFunction, Callable[[], int]]:
    """Return partitions, the body of their tasks, and a function that returns the number of rows once they have run."""
    rows = source.rows
    if isinstance(rows, parquet_rows.ParquetRows):
        slots, total = session_of(spark).default_parallelism, rows.rows
        groups = rows.groups_per_task(slots)
        if rows.group_rows:
            speed = Speed(ASSUMED_INFERENCES_PER_SECOND / models)
            plan = plan_tasks(rows.group_rows, groups, speed.rows_per_second, slots, task_seconds)
            log_plan(plan, speed, task_seconds)
            groups = plan.groups_per_task
        shares = Shares.of(rows, groups)
        return shares.partitions(spark), FleetFilesTask(shares, writer), lambda: total
    table = rows
    if table.isEmpty():
        # Without partitions Spark starts no task, and one file is needed to hold the columns.
        table = session_of(spark).empty_table(table.schema)
    names = tuple(table.columns)
    observed, count = counted(with_plain_names(table))
    return observed, NamedTask(names, FleetRowsTask(writer)), count


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
