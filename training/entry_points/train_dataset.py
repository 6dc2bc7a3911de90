"""Training on a dataset, in a command or a notebook: supervise the workers, export the best epoch, evaluate it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.dataset import DatasetError
from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import own_model
from mirrorspark.training.configuration import ConfigError, TrainingConfig
from mirrorspark.training.job import open_job, prepare_training
from mirrorspark.training.results import (
    ExportAhead,
    Trained,
    deliver,
    keep_delivery,
    keep_report,
    name_version,
    recall_delivery,
)
from mirrorspark.training.run_records import RunFinishedError, Tracking, require_unfinished
from mirrorspark.training.run_records.live import LiveView

__all__ = ["Trained", "train"]


def train(
    dataset: Dataset | str | Path,
    config: TrainingConfig,
    spark: SparkSession | None = None,
    *,
    model: Callable[[FittedFeatures], Any] | None = None,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Train on ``dataset``, export the best epoch, register it as challenger and evaluate it.

    If the configuration's ``run_date`` has been finished on the same dataset, nothing is trained or registered: the
    former result is returned, with the images of its figures. A version that a baseline, or without one the base rate,
    beats beyond the noise on the test rows gets no alias, unless ``register`` is ``always``.

    Args:
        dataset: A dataset from :func:`data_pipelines.convert`, or its path; on storage that every worker reads.
        config: The training's settings.
        spark: The session; by default the active one, or a local one with a slot per worker.
        model: A function or Keras class of your own that builds the model, instead of ``config.model``; see
            :func:`models.own_model.own_model`.
        callbacks: Keras callbacks of your own for each worker, with a ``model``.

    Raises:
        DatasetError: There is no dataset at that path.
        ConfigError: The model does not fit the dataset's label, or there is no model to begin from.
        PreflightError: The session cannot run a barrier job of that many workers, or a store cannot be reached.
        TrainingFailedError: A fault of the model's code, or one lost worker too many.
        TrainingStoppedError: The run was asked to stop.
        NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        TrackingError: The MLflow store cannot be opened.
        RunUnderWayError: Another driver is running the run of that date.
        ResultLostError: That run has finished, but its result can no longer be read.
    """
    if isinstance(dataset, str | Path):
        dataset = Dataset.open(dataset)
    if not isinstance(dataset, Dataset):
        raise DatasetError(
            f"a {type(dataset).__name__} is not a dataset; give the result of ms.convert, or its path, or call ms.fit "
            f"with a table"
        )
    if not isinstance(config, TrainingConfig):
        raise ConfigError(f"a {type(config).__name__} is not a configuration; give ms.TrainingConfig(name=…, epochs=…)")
    if model is not None:
        config = replace(config, model=own_model.own_model(model, dataset.spec.label.form, callbacks))
    elif callbacks:
        raise ConfigError("callbacks go with a model of your own; give model, too")
    return train_in_view(LiveView(epochs=config.epochs), dataset, config, spark)


def train_in_view(
    view: LiveView, dataset: Dataset, config: TrainingConfig, spark: SparkSession | None, *, needs_session: bool = True
) -> Trained:
    """Train as :func:`train` does, shown in a view that may have shown earlier stages.

    Without ``needs_session`` one worker trains on this machine, and none is started.
    """
    config, tracking = config.fitted_to(dataset.manifest.rows("train")), Tracking.find(config)
    try:
        if config.only_once:  # Checked before a session is started, which may take minutes.
            require_unfinished(config, dataset)
        prepared = prepare_training(dataset, config, tracking, spark, needs_session=needs_session)
        rows = dataset.manifest.rows("train")
        with ExportAhead(config, rows) as ahead, open_job(prepared, view, listener=ahead.on_event) as job:
            attempts = job.train()
            trained = deliver(job, attempts, ahead.process)
            name_version(job, trained)
            trained = keep_report(job, trained)
            keep_delivery(trained, job.folder)
    except RunFinishedError as finished:
        view.log(finished.in_words(config.run_date))
        return recall_delivery(finished.folder, tracking.store)
    return trained
