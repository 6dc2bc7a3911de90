"""The preparation of a run: its session, cluster, stores and dataset are resolved and checked once, also for a sweep.

The settings of each training are checked by the dataset when its job is opened (:func:`training.job.open_job`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.scoring.model.stored import PinnedModel
from mirrorspark.spark_session import open_session, session_of
from mirrorspark.training.configuration import EventWay, RunConfig, TrainingConfig
from mirrorspark.training.job.readiness import preflight
from mirrorspark.training.job.source_tables import SourceTables
from mirrorspark.training.job.warm_start import WarmStart, find_model
from mirrorspark.training.run_records import Tracking
from mirrorspark.training.run_records.live import LiveView, add_findings


class SessionSettings(Protocol):
    """The fields of a configuration that decide its session, and its required abilities."""

    @property
    def slots(self) -> int:
        """The number of slots that the most workers take."""

    @property
    def fewest_ranks(self) -> int:
        """The number of ranks of the fewest workers."""

    @property
    def output(self) -> str:
        """The folder with all runs."""

    @property
    def checkpoints(self) -> str | None:
        """The place of the checkpoints; by default the run's folder."""

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of a worker."""

    @property
    def local_mode(self) -> bool:
        """True if the training needs no task of the cluster."""

    @property
    def open_servers(self) -> str | None:
        """The strategy, if it starts TensorFlow's unauthenticated servers."""

    @property
    def allow_open_servers(self) -> bool:
        """True if such servers may run outside one machine."""

    @property
    def events(self) -> EventWay:
        """The way of the workers' events."""

    @property
    def verbose(self) -> bool:
        """True if Spark may log."""


@dataclass(frozen=True)
class PreparedRun:
    """A run whose place is resolved and checked, with the dataset that it trains on; read-only.

    Attributes:
        spark: The session; None if one worker trains on the driver's machine without one.
        tracking: Its place in MLflow.
        warm_start: The model to begin from: as it was found, or a sweep's copy for all its trials.
        table: The recipe's table; None for a training from Python, which has a dataset alone.
        is_reused: True if an earlier run converted the dataset.
        events_by_files: The workers' events go by files in the run's folder.
    """

    config: TrainingConfig
    dataset: Dataset
    spark: SparkSession | None
    tracking: Tracking
    warm_start: PinnedModel | WarmStart | None = None
    table: DataFrame | None = None
    is_reused: bool = False
    events_by_files: bool = False

    def worker_slots(self) -> int:
        """Return the number of workers that fit now; one in local mode, or without a session."""
        if self.spark is None or self.config.local_mode:
            return 1
        return session_of(self.spark).task_slots() - self.config.ranks_beside_workers


def prepare(
    config: RunConfig,
    tracking: Tracking,
    view: LiveView,
    *,
    slots: int | None = None,
    sources: SourceTables | None = None,
) -> PreparedRun:
    """Check driver and cluster, open the session, and convert the recipe's table or reuse an earlier run's dataset.

    Args:
        config: The run.
        tracking: Its place in MLflow.
        view: Shows it.
        slots: Size of a local session; by default a slot for each of the most workers.
        sources: The sources of ``config``, if they are known already.
    """
    with view.stage("preflight") as stage:
        sources = sources or SourceTables.find(config)
        spark, warm_start, checks = _checked(config, tracking, slots=slots)
        # The cluster's checks come first, and the first of these is that of its slots; in local mode there are none.
        warnings = [f"{check.name}: {check.detail}" for check in checks if check.is_warning]
        stage.note = "; ".join([f"{checks[0].name}: {checks[0].detail}", *warnings])
    with view.stage("convert", spark=spark) as stage:
        table = sources.table(spark, config)
        dataset, is_reused = sources.dataset(table, config)
        rows = ", ".join(f"{dataset.manifest.rows(split):,} {split}" for split in dataset.manifest.splits)
        stage.note = f"{'reused the dataset of an earlier run:' if is_reused else 'wrote'} {rows} rows"
        add_findings(stage, dataset)
    fitted = config.fitted_to(dataset.manifest.rows("train"))
    by_files = preflight.events_by_files(config.events, checks)
    return PreparedRun(fitted, dataset, spark, tracking, warm_start, table, is_reused, by_files)


def prepare_training(
    dataset: Dataset,
    config: TrainingConfig,
    tracking: Tracking,
    spark: SparkSession | None = None,
    *,
    needs_session: bool = True,
) -> PreparedRun:
    """Check driver and cluster, and open a session, for a training from Python on an existing dataset.

    Args:
        dataset: The dataset.
        config: The training's settings.
        tracking: Its place in MLflow.
        spark: The session; by default the active or a new one.
        needs_session: False for one worker on the driver's machine, without a session.
    """
    config.require_features(dataset.spec)  # as open_job does, but before a session is started, which may take minutes
    if not needs_session:
        preflight.require(check_driver(config, tracking, needs_session=False))
        fitted, begin = config.fitted_to(dataset.manifest.rows("train")), find_model(config, tracking.store)
        return PreparedRun(fitted, dataset, None, tracking, begin)
    spark, warm_start, checks = _checked(config, tracking, spark)
    fitted = config.fitted_to(dataset.manifest.rows("train"))
    by_files = preflight.events_by_files(config.events, checks)
    return PreparedRun(fitted, dataset, spark, tracking, warm_start, events_by_files=by_files)


def _checked(
    config: TrainingConfig, tracking: Tracking, spark: SparkSession | None = None, *, slots: int | None = None
) -> tuple[SparkSession, PinnedModel | None, list[preflight.Check]]:
    """Return the session, the model to begin from, and the results of the preflight, those of the cluster first."""
    preflight.require(driver := check_driver(config, tracking))
    warm_start = find_model(config, tracking.store)
    spark, cluster = open_checked_session(config, spark, slots=slots)
    return spark, warm_start, [*cluster, *driver]


def open_checked_session(
    config: SessionSettings,
    spark: SparkSession | None = None,
    *,
    slots: int | None = None,
    gpu_resource_name: str = "gpu",
) -> tuple[SparkSession, list[preflight.Check]]:
    """Return the session of a training, by default the active or a new one, and the checks that it has passed."""
    spark = spark or open_session(_master(config), slots or config.slots, verbose=config.verbose)
    preflight.require(checks := check_cluster(spark, config, gpu_resource_name))
    return spark, checks


def dry_run(config: RunConfig) -> list[preflight.Check]:
    """Return the results of the preflight; start nothing but a Spark session, and read no rows.

    Raises:
        ConfigError: The recipe's table cannot be built, or lacks a column.
    """
    tracking = Tracking.find(config)
    checks = check_driver(config, tracking)
    if all(check.passed for check in checks):
        sources = SourceTables.find(config)
        find_model(config, tracking.store)
        spark = open_session(config.master, config.slots, verbose=config.verbose)
        sources.table(spark, config)
        checks += check_cluster(spark, config)
    return checks


def check_driver(config: TrainingConfig, tracking: Tracking, *, needs_session: bool = True) -> list[preflight.Check]:
    """Return the results of the preflight's checks on the driver, before Spark starts.

    Raises:
        ConfigError: MLflow will not take a name.
    """
    tracking.require_names(config.registry_name)
    return preflight.check_driver(Path(config.output), tracking.store, _master(config), needs_session=needs_session)


def check_cluster(
    spark: SparkSession, config: SessionSettings, gpu_resource_name: str = "gpu"
) -> list[preflight.Check]:
    """Return the results of the preflight's checks of the cluster, for the fewest workers that may train."""
    if config.local_mode:
        return preflight.check_driver_gpus(spark, config.gpus_per_worker, gpu_resource_name)
    return preflight.check_cluster(
        spark,
        config.fewest_ranks,
        Path(config.output),
        checkpoints=config.checkpoints,
        gpus_per_worker=config.gpus_per_worker,
        gpu_resource_name=gpu_resource_name,
        open_servers=None if config.allow_open_servers else config.open_servers,
        events=config.events,
    )


def _master(config: SessionSettings) -> str | None:
    return config.master if isinstance(config, RunConfig) else None
