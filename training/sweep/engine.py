"""Connects a sweep to Spark, the training and MLflow: the only module that uses the pipeline."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

from mlflow.exceptions import MlflowException

from mirrorspark.callbacks.mlflow import metric_requests, tracking_store
from mirrorspark.spark_session import session_of
from mirrorspark.storage import atomic_file, without_credentials
from mirrorspark.training import pipeline
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.driver import TrainingStoppedError
from mirrorspark.training.job import PreparedRun, TrainingJob, open_job, prepare, resolve_warm_start
from mirrorspark.training.protocol import RUNS_FOLDER, SUMMARY_FILE
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.report import Summary
from mirrorspark.training.run_records import OuterRun, RunFolder, TrackedRun, Tracking, TrackingError, run_state
from mirrorspark.training.run_records.live import LiveView
from mirrorspark.training.sweep.space import value_in_words
from mirrorspark.training.sweep.trials import PRUNED, TrialControl, TrialPlan

logger = logging.getLogger(__name__)

ATTEMPTS_FILE = "attempts.json"


class SparkEngine:
    """Trains trials on one Spark session and one dataset."""

    def __init__(self, config: RunConfig, view: LiveView) -> None:
        """Take the settings that all trials share."""
        self._config = config
        self._view = view

    def prepare(self, slots: int) -> str:
        """Check everything, open a session with ``slots`` slots, convert or find the dataset; return its hash."""
        self._prepared = prepare(self._config, Tracking.find(self._config), self._view, slots=slots)
        self._of_trials = self._prepared
        return self._prepared.dataset.manifest.content_hash

    def slots(self) -> int:
        """Return the number of workers that can run side by side now; one in local mode, which has this machine."""
        if self._config.local_mode or self._prepared.spark is None:
            return 1
        return session_of(self._prepared.spark).task_slots()

    def open_parent(self, sweep: RunFolder, label: str, experiment: str | None = None) -> TrackedRun:
        """Open the sweep's own MLflow run: that of an earlier command, the active one, or a new one.

        Args:
            sweep: The sweep's folder, whose ``runs`` get the trials.
            label: Names the MLflow runs; unique in the experiment.
            experiment: Name of an earlier command's experiment.

        Raises:
            TrackingError: The store cannot be opened, or does not say which experiment that of the active run is.
        """
        tracking = self._prepared.tracking
        if (elsewhere := tracking.goes_on_elsewhere(f"sweep {label}", sweep.continues)) is not None:
            self._view.log(elsewhere)
        if experiment is None and tracking.outer is not None:
            experiment = _experiment_of(tracking.outer, tracking.store)
        placed = replace(tracking, experiment=experiment or tracking.experiment)
        tracked = placed.open_run(Path(self._config.output), sweep.continues, label)
        self._of_trials = replace(self._of_trials, tracking=Tracking(tracking.store, tracked.experiment))
        self._sweep, self._label, self._parent = sweep, label, tracked
        return tracked

    def prepare_warm_start(self) -> None:
        """Copy the model that all trials begin from into the sweep's folder: its name may mean another model later.

        Raises:
            ConfigError: The model does not exist, or the one that earlier trials began from is lost.
            TrackingError: The store does not answer.
            OSError: The model cannot be copied.
        """
        prepared, has_trials = self._prepared, (self._sweep.path / RUNS_FOLDER).is_dir()
        begin = resolve_warm_start(
            self._config,
            prepared.tracking.store,
            self._sweep.warm_start,
            prepared.warm_start,
            has_begun=has_trials,
        )
        self._of_trials = replace(self._of_trials, warm_start=begin)

    def train(self, plan: TrialPlan, control: TrialControl) -> None:
        """Train a trial with its own supervisor, as a child of the sweep's MLflow run."""
        prepared, folder = self._trial(plan), self._folder(plan)
        config = prepared.config
        # Parallel trainings cannot share a block: each writes lines, which begin with its number.
        view = LiveView(epochs=config.epochs, is_interactive=False, write=control.say)
        with open_job(
            prepared,
            view,
            folder=folder,
            # The supervisor counts workers, the sweep slots.
            slots=lambda: control.slots() - config.ranks_beside_workers,
            listener=control.on_event,
            title=(f"trial {plan.number}", *(f"{name} {value_in_words(of)}" for name, of in plan.values.items())),
        ) as job:
            self._store_ids(job, control, plan)
            control.connect(job.request_stop, job.stop_now)
            # Epochs from before a restart, which the study may lack; it ignores those that it has.
            _report_epochs(job, control)
            try:
                attempts = job.train()
            except TrainingStoppedError:
                job.tracked.log_tags({"trial_state": "pruned" if control.reason == PRUNED else "stopped"})
                raise
            save_attempts(folder.path, attempts)
            _report_epochs(job, control)
            # The MLflow runs of the sweep and of the trial may have got their ids meanwhile.
            self._store_ids(job, control, plan)
            job.tracked.log_tags({"trial_state": "complete"})

    def deliver(self, plan: TrialPlan) -> Summary:
        """Export, register, evaluate and score a trained trial as a run does, in its own MLflow run."""
        folder = self._folder(plan)
        prepared = self._trial(plan)
        with open_job(prepared, self._view, folder=folder) as job:
            job.tracked.log_tags({"sweep_best": "yes"})
            summary = pipeline.deliver_and_score(job, read_attempts(folder.path), prepared)
        # Metrics that MLflow has not got are known only after the end of the run.
        summary = replace(summary, replay=job.run.replay)
        summary.save(folder.path / SUMMARY_FILE)
        return summary

    def _trial(self, plan: TrialPlan) -> PreparedRun:
        """Return a trial's run: a child of the sweep's in MLflow, next to it, even if another run is active."""
        prepared = self._of_trials
        config = replace(plan.config, mlflow_run="new", experiment=prepared.tracking.experiment)
        return replace(prepared, config=config.fitted_to(prepared.dataset.manifest.rows("train")))

    def _folder(self, plan: TrialPlan) -> RunFolder:
        """Return a trial's run folder; ``mirrorspark runs list --output`` with the sweep's folder lists them."""
        path = self._sweep.path / RUNS_FOLDER / f"{self._label}-{plan.number:04}"
        path.mkdir(parents=True, exist_ok=True)
        identity = f"{self._trial(plan).config.identity}-{self._prepared.dataset.manifest.content_hash}"
        state = run_state.read_state(path)
        return RunFolder(path, identity, state.mlflow_run_id if state else None)

    def _store_ids(self, job: TrainingJob, control: TrialControl, plan: TrialPlan) -> None:
        """Make the trial's MLflow run a child of the sweep's, and note its id and its folder in the study."""
        tags = {"sweep": self._sweep.path.name, "trial": str(plan.number), "mlflow.parentRunId": self._parent.run_id}
        job.tracked.log_tags({name: value for name, value in tags.items() if value is not None})
        control.set_attribute("run_folder", str(job.folder.path))
        if job.tracked.run_id is not None:
            control.set_attribute("run_id", job.tracked.run_id)


def _experiment_of(outer: OuterRun, store: str) -> str:
    """Return the name of the active run's experiment, by which the trials' runs are put into it.

    Raises:
        TrackingError: The store does not answer.
    """
    tracking_store.limit_requests()
    client = tracking_store.store_client(store)
    try:
        id_ = outer.run.experiment_id or client.get_run(outer.run.run_id).info.experiment_id
        return str(client.get_experiment(id_).name)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"the MLflow store {without_credentials(store)} does not say which experiment the active run "
            f"{outer.run.run_id} is in ({metric_requests.first_line(error)}), and the trials' runs belong there, too: "
            f"start the sweep "
            f"again once the store answers, or set experiment (--experiment)"
        ) from None


def _report_epochs(job: TrainingJob, control: TrialControl) -> None:
    try:
        for epoch in sorted(job.epochs):
            control.on_event(job.epochs[epoch])
    except Exception:
        # As during training: an error of the study must not cost the training.
        logger.exception("the study could not store the epochs of a trial")


def save_attempts(path: Path, attempts: tuple[Attempt, ...]) -> None:
    """Write the attempts of a trained trial, which a later command may export."""
    atomic_file.write_atomically(path / ATTEMPTS_FILE, json.dumps([asdict(attempt) for attempt in attempts]))


def read_attempts(path: Path) -> tuple[Attempt, ...]:
    """Read the attempts from :func:`save_attempts`."""
    return tuple(map(Attempt.from_document, json.loads((path / ATTEMPTS_FILE).read_text(encoding="utf-8"))))
