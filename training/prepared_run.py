"""The preparation of a run: everything is resolved and checked once, on the driver, before it trains."""

from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.scoring.model.directory import PinnedModel
from mirrorspark.training.config import RunConfig, TrainingConfig
from mirrorspark.training.live.view import LiveView
from mirrorspark.training.readiness import preflight
from mirrorspark.training.records.tracking import store_of
from mirrorspark.training.results.report.summary import findings_in_words
from mirrorspark.training.sources import Sources
from mirrorspark.training.spark_session import open_session
from mirrorspark.training.warm_start import WarmStart, find_model


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to train: resolved, checked, and read-only.

    Attributes:
        store: MLflow store.
        warm_start: The model to begin from: as it was found, or a sweep's copy for all its trials.
        table: The recipe's table; None for a training from Python, which has a dataset alone.
        is_reused: Whether an earlier run converted the dataset.
    """

    config: TrainingConfig
    dataset: Dataset
    spark: SparkSession
    store: str
    warm_start: PinnedModel | WarmStart | None = None
    table: DataFrame | None = None
    is_reused: bool = False


def prepare(
    config: RunConfig, view: LiveView, *, slots: int | None = None, sources: Sources | None = None
) -> PreparedRun:
    """Check everything, open the session, and convert the recipe's table or reuse an earlier run's dataset.

    Args:
        config: The run.
        view: Shows it.
        slots: Size of a local session; by default a slot for each of the most workers.
        sources: The sources of ``config``, if they are known already.
    """
    store = store_of(config)
    with view.stage("preflight") as stage:
        preflight.require(checks := check_driver(config))
        sources = sources or Sources.find(config)
        warm_start = find_model(config, store)
        spark = open_session(config.master, slots or config.slots, verbose=config.verbose)
        preflight.require(cluster := check_cluster(spark, config))
        warnings = [f"{check.name}: {check.detail}" for check in (*checks, *cluster) if check.is_warning]
        stage.note = "; ".join([f"{cluster[0].name}: {cluster[0].detail}", *warnings])
    with view.stage("convert", spark=spark) as stage:
        table = sources.table(spark, config)
        dataset, is_reused = sources.dataset(table, config)
        rows = ", ".join(f"{dataset.manifest.rows(split):,} {split}" for split in dataset.manifest.splits)
        stage.note = f"{'reused the dataset of an earlier run:' if is_reused else 'wrote'} {rows} rows"
        if dataset.manifest.findings:
            stage.note += f"; validation: {findings_in_words(dataset.manifest.findings)}"
    return PreparedRun(config, dataset, spark, store, warm_start, table, is_reused)


def prepare_training(dataset: Dataset, config: TrainingConfig, spark: SparkSession | None = None) -> PreparedRun:
    """Check everything and open a session, for a training from Python on an existing dataset."""
    store = store_of(config)
    preflight.require(check_driver(config))
    warm_start = find_model(config, store)
    spark = spark or open_session(None, config.slots, verbose=config.verbose)
    preflight.require(check_cluster(spark, config))
    return PreparedRun(config, dataset, spark, store, warm_start)


def dry_run(config: RunConfig) -> list[preflight.Check]:
    """Return the results of the preflight; start nothing but a Spark session."""
    checks = check_driver(config)
    if all(check.passed for check in checks):
        Sources.find(config)
        find_model(config, store_of(config))
        checks += check_cluster(open_session(config.master, config.slots, verbose=config.verbose), config)
    return checks


def check_driver(config: TrainingConfig) -> list[preflight.Check]:
    """Return the results of the preflight's checks on the driver, before Spark starts."""
    master = config.master if isinstance(config, RunConfig) else None
    return preflight.check_driver(Path(config.output), store_of(config), master)


def check_cluster(spark: SparkSession, config: TrainingConfig) -> list[preflight.Check]:
    """Return the results of the preflight's checks of the cluster, for the fewest workers that may train."""
    return preflight.check_cluster(
        spark,
        config.worker_range.fewest + config.ranks_beside_workers,
        Path(config.output),
        checkpoints=config.checkpoints,
        gpus_per_worker=config.gpus_per_worker,
        open_servers=None if config.allow_open_servers else config.open_servers,
    )
