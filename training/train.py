"""Training on a dataset, in a command or a notebook: supervise the workers, export the best epoch, evaluate it."""

from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.training.config import TrainingConfig
from mirrorspark.training.live.view import LiveView
from mirrorspark.training.prepared_run import prepare_training
from mirrorspark.training.records.find_run import RunFinishedError, require_unfinished
from mirrorspark.training.records.tracking import store_of
from mirrorspark.training.results.delivery import ExportAhead, Trained, deliver, keep_delivery, recall_delivery
from mirrorspark.training.results.summary import CHALLENGER
from mirrorspark.training.training_job import open_job

__all__ = ["Trained", "train"]


def train(dataset: Dataset, config: TrainingConfig, spark: SparkSession | None = None) -> Trained:
    """Train on ``dataset``, export the best epoch, register it as challenger and evaluate it.

    If the configuration's ``run_date`` has been finished on the same dataset, nothing is trained or registered: the
    former result is returned, without its figures, which are in MLflow.

    Args:
        dataset: A dataset from :func:`data_pipelines.convert.convert`, on storage that every worker reads.
        config: The training's settings.
        spark: The session; by default the active one, or a local one with a slot per worker.

    Raises:
        ConfigError: The model does not fit the dataset's label, or there is no model to begin from.
        PreflightError: The session cannot run a barrier job of that many workers, or a store cannot be reached.
        TrainingFailedError: A fault of the model's code, or one lost worker too many.
        TrainingStoppedError: The run was asked to stop.
        NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        TrackingError: The MLflow store cannot be opened.
        RunUnderWayError: Another driver is running the run of that date.
        ResultLostError: That run has finished, but its result can no longer be read.
    """
    view = LiveView(epochs=config.epochs)
    try:
        if config.only_once:  # Checked before a session is started, which may take minutes.
            require_unfinished(config, dataset)
        prepared = prepare_training(dataset, config, spark)
        with ExportAhead(config) as ahead, open_job(prepared, view, listener=ahead.on_event) as job:
            attempts = job.train()
            trained = deliver(job, attempts, ahead.process)
            job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
            keep_delivery(trained, job.folder)
    except RunFinishedError as finished:
        view.say(finished.in_words(config.run_date))
        return recall_delivery(finished.folder, store_of(config))
    return trained
