"""Ties a sweep to Spark, the training and MLflow: the one place that knows :mod:`training.train` and the pipeline."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

from mirrorspark.storage.atomic_file import write_atomically
from mirrorspark.training import pipeline
from mirrorspark.training.config import RunConfig
from mirrorspark.training.driver.errors import TrainingStoppedError
from mirrorspark.training.live.view import LiveView
from mirrorspark.training.protocol.cause import Attempt
from mirrorspark.training.protocol.names import SUMMARY_FILE
from mirrorspark.training.records.run_folder import RunFolder
from mirrorspark.training.records.run_state import read_state
from mirrorspark.training.records.tracking import TrackedRun
from mirrorspark.training.results.summary import Summary
from mirrorspark.training.spark_session import task_slots
from mirrorspark.training.sweep.folder import SweepPlace
from mirrorspark.training.sweep.trial import PRUNED, TrialControl, TrialOrder
from mirrorspark.training.training_job import TrainingJob, open_job
from mirrorspark.training.warm_start import WarmStart, settle_warm_start

logger = logging.getLogger(__name__)

ATTEMPTS_FILE = "attempts.json"


class SparkEngine:
    """Trains trials on one Spark session and one dataset."""

    def __init__(self, config: RunConfig, view: LiveView) -> None:
        """Keep what all trials share."""
        self._config = config
        self._view = view
        self._begin: WarmStart | None = None

    def prepare(self, slots: int) -> str:
        """Check everything, open a session with that many slots, convert or find the dataset; return its hash."""
        self._prepared = pipeline.prepare(self._config, self._view, slots=slots)
        return self._prepared.dataset.manifest.content_hash

    def slots(self) -> int:
        """Return how many barrier tasks can run side by side now."""
        return task_slots(self._prepared.spark)

    def open_parent(self, label: str, run_id: str | None) -> TrackedRun:
        """Open the sweep's own MLflow run."""
        config = self._config
        return TrackedRun(
            self._prepared.store, config.experiment or config.name, Path(config.output), run_id, run_name=label
        )

    def settle(self, place: SweepPlace) -> None:
        """Keep the model that all trials begin from in the sweep's folder, whatever its name means to a later command.

        Raises:
            ConfigError: There is no such model, or trials began from one that is gone.
            TrackingError: The store cannot be asked.
            OSError: It cannot be copied.
        """
        config, model = self._config, self._prepared.warm_start
        self._begin = settle_warm_start(
            config, self._prepared.store, place.warm_start, model, has_begun=place.has_trials
        )

    def train(self, order: TrialOrder, control: TrialControl, place: SweepPlace) -> None:
        """Train a trial under a supervisor of its own, as an MLflow run below the sweep's."""
        config = order.config
        folder = self._folder(order, place)
        # One screen for several trainings would be no screen: each has its lines, with its number before them.
        view = LiveView(epochs=config.epochs, is_interactive=False, write=control.say)
        prepared = self._prepared
        with open_job(
            replace(prepared, config=config, warm_start=self._begin),
            view,
            folder=folder,
            # The supervisor counts workers, the sweep slots.
            slots=lambda: control.slots() - config.ranks_beside_workers,
            listener=control.on_event,
        ) as job:
            job.tracked.log_tags(tags(order, place))
            _note(job, control)
            control.connect(job.request_stop, job.stop_now)
            # What an earlier driver has heard, and may not have kept in the study. It knows the epochs that it has.
            _tell_epochs(job, control)
            try:
                attempts = job.train()
            except TrainingStoppedError:
                job.tracked.log_tags({"trial_state": "pruned" if control.reason == PRUNED else "stopped"})
                raise
            save_attempts(folder.path, attempts)
            _tell_epochs(job, control)
            # The sweep's run, and the trial's, may have got their ids meanwhile.
            job.tracked.log_tags({**tags(order, place), "trial_state": "complete"})
            _note(job, control)

    def deliver(self, order: TrialOrder, place: SweepPlace) -> Summary:
        """Export, register, judge and score a trained trial as a run does, in its own MLflow run."""
        folder, prepared = self._folder(order, place), self._prepared
        ready = replace(prepared, config=order.config, warm_start=self._begin)
        with open_job(ready, self._view, folder=folder) as job:
            job.tracked.log_tags({"sweep_best": "yes"})
            summary = pipeline.deliver(job, read_attempts(folder.path), prepared, order.config)
        # What MLflow could not be told is known only when the run has ended.
        summary = replace(summary, replay=job.run.replay)
        summary.save(folder.path / SUMMARY_FILE)
        return summary

    def _folder(self, order: TrialOrder, place: SweepPlace) -> RunFolder:
        path = place.run_folder(order.number)
        path.mkdir(parents=True, exist_ok=True)
        identity = f"{order.config.identity}-{self._prepared.dataset.manifest.content_hash}"
        state = read_state(path)
        return RunFolder(path, identity, state.mlflow_run_id if state else None)


def _note(job: TrainingJob, control: TrialControl) -> None:
    control.note("run_folder", str(job.folder.path))
    if job.tracked.run_id is not None:
        control.note("run_id", job.tracked.run_id)


def _tell_epochs(job: TrainingJob, control: TrialControl) -> None:
    try:
        for epoch in sorted(job.epochs):
            control.on_event(job.epochs[epoch])
    except Exception:
        # As while it trains: whatever the study stumbles over, the training is worth more.
        logger.exception("the study does not take the epochs of a trial")


def tags(order: TrialOrder, place: SweepPlace) -> dict[str, str]:
    """Return the tags by which MLflow shows a trial's run below the sweep's."""
    parent = place.parent_run_id()
    found = {"sweep": place.folder.name, "trial": str(order.number)}
    return found if parent is None else {**found, "mlflow.parentRunId": parent}


def save_attempts(path: Path, attempts: tuple[Attempt, ...]) -> None:
    """Keep the attempts of a trained trial: its export may be the work of another command."""
    write_atomically(path / ATTEMPTS_FILE, json.dumps([asdict(attempt) for attempt in attempts]))


def read_attempts(path: Path) -> tuple[Attempt, ...]:
    """Read what :func:`save_attempts` wrote."""
    return tuple(map(Attempt.from_document, json.loads((path / ATTEMPTS_FILE).read_text(encoding="utf-8"))))
