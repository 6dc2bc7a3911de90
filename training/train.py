"""A dataset becomes a registered model: supervise the workers, export the best epoch, judge it. For notebooks, too."""

from pathlib import Path

from pyspark.sql import SparkSession

from data_pipelines.dataset import Dataset
from training.config import TrainingConfig
from training.live.view import LiveView
from training.readiness import preflight
from training.records.run_folder import finished_for_date
from training.results.delivery import ExportAhead, Trained, deliver, keep_delivery, recall_delivery
from training.results.summary import CHALLENGER
from training.spark_session import open_session
from training.training_job import open_job, tracking_uri
from training.warm_start import find_model

__all__ = ["Trained", "cluster_checks", "train"]


def train(dataset: Dataset, config: TrainingConfig, spark: SparkSession | None = None) -> Trained:
    """Train on ``dataset``, export the best epoch, register it as challenger and judge it.

    With a ``run_date`` for which that has been done, on the same dataset, nothing is trained or registered: what was
    delivered then comes back, without the figures, which are in MLflow.

    Args:
        dataset: What :func:`data_pipelines.convert.convert` returned, on storage that every worker reads.
        config: How to train.
        spark: The session; by default the active one, or a local one with a slot per worker.

    Raises:
        ConfigError: The model does not fit the dataset's label, or there is no model to begin from.
        PreflightError: The session cannot run a barrier job of that many workers, or a store cannot be reached.
        TrainingFailedError: A fault of the model's code, or one lost worker too many.
        TrainingStoppedError: Somebody asked for a stop.
        NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        TrackingError: The MLflow store cannot be opened.
        RunUnderWayError: Another driver is at work on the run of that date.
        ResultLostError: That run has finished, and what it delivered cannot be read any more.
    """
    view = LiveView(epochs=config.epochs)
    if (finished := finished_for_date(config, dataset, view)) is not None:
        return recall_delivery(finished, tracking_uri(config))
    checks = preflight.check_driver(Path(config.output), tracking_uri(config))
    preflight.require(checks)
    begin = find_model(config, tracking_uri(config))
    spark = spark or open_session(None, config.slots, verbose=config.verbose)
    preflight.require(cluster_checks(spark, config))
    # The session may have taken minutes to start, in which an equal call has done that day.
    if (finished := finished_for_date(config, dataset, view)) is not None:
        return recall_delivery(finished, tracking_uri(config))
    with (
        ExportAhead(config) as ahead,
        open_job(dataset, config, spark, view, listener=ahead.on_event, warm_start=begin) as job,
    ):
        attempts = job.train()
        trained = deliver(job, attempts, ahead.process)
        job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
        keep_delivery(trained, job.folder)
    return trained


def cluster_checks(spark: SparkSession, config: TrainingConfig) -> list[preflight.Check]:
    """Return the preflight's answers about the cluster, for the fewest workers that may train."""
    return preflight.check_cluster(
        spark,
        config.worker_range.fewest + config.ranks_beside_workers,
        Path(config.output),
        checkpoints=config.checkpoints,
        gpus_per_worker=config.gpus_per_worker,
    )
