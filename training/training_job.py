"""A training of ours between its preflight and its export: what is logged of it, what its ranks do, what they said."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from pyspark.sql import SparkSession

from callbacks import commit
from callbacks.checkpoint_store import STORE_ERRORS
from callbacks.fetch import fetch
from data_pipelines.dataset import Dataset
from data_pipelines.storage import StoragePath
from models.settings import check_candidates
from scoring.model_uri import PinnedModel
from training.channel.events import Event
from training.config import SQL_FILE, TrainingConfig
from training.live.view import LiveView
from training.ranks.launcher import SparkLauncher
from training.ranks.plan import PROGRESS_STATE, TrainingPlan
from training.records import tracking
from training.records.open_run import OpenRun, open_run
from training.records.run_folder import RunFolder
from training.spark_session import bind_address, driver_address, task_slots
from training.supervision.failure_policy import Attempt, Budgets
from training.supervision.running_attempt import StopSignal
from training.supervision.store_reads import StoreReader
from training.supervision.supervisor import Supervisor
from training.supervision.watchdog import Limits
from training.warm_start import WarmStart, settle_warm_start

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_job(
    dataset: Dataset,
    config: TrainingConfig,
    spark: SparkSession,
    view: LiveView,
    *,
    folder: RunFolder | None = None,
    slots: Callable[[], int] | None = None,
    listener: Callable[[Event], None] | None = None,
    warm_start: PinnedModel | WarmStart | None = None,
) -> Iterator["TrainingJob"]:
    """Open the run's folder and its MLflow run, and leave both finished, stopped or failed.

    Args:
        dataset: What to learn from.
        config: How.
        spark: Where.
        view: Shows it.
        folder: The run's folder; by default that of the unfinished run which ``config`` continues, or a new one.
        slots: Returns how many workers there is room for; by default all that the session has.
        listener: Gets every event, too.
        warm_start: What :func:`training.warm_start.find_model` found, or a sweep keeps for all its trials; without it
            that is looked for here.

    Raises:
        ConfigError: The model does not fit the dataset's label, or there is no model to begin from, or not any more.
        ModelSettingsError: The model or its settings do not fit the dataset's features or candidates, or its number of
            steps.
        RunUnderWayError: Another driver is at work on ``folder``, or on the day of ``config``.
    """
    config.require_features(dataset.spec)
    if config.task == "retrieval":
        check_candidates(dataset.features, config.top_k)
    config.require_steps(dataset.steps("train", config.global_batch_size))
    content = dataset.manifest.content_hash
    with open_run(
        config,
        content,
        tracking_uri(config),
        view,
        folder=folder,
        listener=listener,
        only_once=config.only_once,
    ) as run:
        if not isinstance(warm_start, WarmStart):
            warm_start = settle_warm_start(
                config, tracking_uri(config), run.folder.warm_start, warm_start, has_begun=run.folder.was_fenced
            )
        job = TrainingJob(dataset, config, spark, run, slots or _slots(spark, config), warm_start=warm_start)
        run.recall(job.remember)
        yield job


def _slots(spark: SparkSession, config: TrainingConfig) -> Callable[[], int]:
    """Return what tells how many workers there is room for."""
    return lambda: task_slots(spark) - config.ranks_beside_workers


def tracking_uri(config: TrainingConfig) -> str:
    """Return the MLflow store of a run."""
    return config.tracking_uri or tracking.default_uri(Path(config.output))


@dataclass
class TrainingJob:
    """One run between its preflight and its end.

    Attributes:
        dataset: What it learns from.
        config: How.
        spark: Where.
        run: Its folder, its MLflow run and its view.
        slots: Returns how many workers there is room for.
        epochs: What the chief said at the end of each epoch.
        warm_start: What it begins from; None where its weights are drawn.
        taken: What the chief said of that.
    """

    dataset: Dataset
    config: TrainingConfig
    spark: SparkSession
    run: OpenRun
    slots: Callable[[], int]
    epochs: dict[int, Event] = dataclasses.field(default_factory=dict)
    warm_start: WarmStart | None = None
    taken: Event | None = None
    _signal: StopSignal = dataclasses.field(default_factory=StopSignal, init=False)

    @property
    def folder(self) -> RunFolder:
        """Configuration, events, checkpoints and results."""
        return self.run.folder

    @property
    def tracked(self) -> tracking.TrackedRun:
        """Its MLflow run."""
        return self.run.tracked

    @property
    def view(self) -> LiveView:
        """Shows it."""
        return self.run.view

    def train(self) -> tuple[Attempt, ...]:
        """Train under supervision and return the attempts.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: Somebody asked for a stop.
            NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        """
        self._log_start()
        with self.view.stage("train") as stage:
            attempts = self.run.supervise(self._supervisor, self._training_plan())
            if self.config.profile:
                self.tracked.log_folder(self.folder.profile, "profile")
            tries = f", {len(attempts)} attempts" if len(attempts) > 1 else ""
            stage.note = f"{attempts[-1].epochs} epochs{self._best_in_words()}{tries}"
        return attempts

    def request_stop(self, reason: str) -> None:
        """Let the ranks save a checkpoint and stop; from any thread or signal handler."""
        self._supervisor.request_stop(reason)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """Stop without another checkpoint; from any thread or signal handler."""
        self._supervisor.stop_now(reason)

    def remember(self, event: Event) -> None:
        """Remember what the chief said that is told of the run at its end."""
        self.keep_epoch(event)
        if event["event"] == "warm_start":
            self.taken = event

    def keep_epoch(self, event: Event) -> None:
        """Remember what the chief said of an epoch; one that a restart repeats says the same again."""
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            self.epochs.setdefault(event["epoch"], event)

    def fetch_best(self, folder: Path) -> commit.CommittedCheckpoint:
        """Return the committed checkpoint of the best epoch on this machine: as it lies here, or a copy in ``folder``.

        A store that fails is asked again for five minutes.

        Raises:
            CheckpointDamagedError: None is whole.
            OSError: The store does not answer, or the disk is full.
            StorageError: It cannot be opened.
        """

        def fetched(beat: Callable[[], None]) -> commit.CommittedCheckpoint:
            return fetch(self._best(beat), folder, progress=lambda done, total: beat())

        return self._store.read_with_retries(self._checkpoints, fetched)

    def _best(self, beat: Callable[[], None], *, verify: bool = True) -> commit.CommittedCheckpoint:
        monitor, mode = self.config.monitor, self.config.mode
        best = commit.best_committed(self._checkpoints, monitor, mode, verify=verify, beat=beat)
        if best is None:
            raise commit.CheckpointDamagedError(
                StoragePath.of(self._checkpoints), "no committed checkpoint holds the best epoch"
            )
        return best

    def _best_in_words(self) -> str:
        """Return which epoch was the best; nothing where the store cannot tell, which ends no training that is done."""
        read = partial(self._best, verify=False)
        try:
            best = self._store.read_with_retries(self._checkpoints, read, retry_seconds=0)
        except (*STORE_ERRORS, commit.CheckpointDamagedError) as error:
            logger.warning("which epoch was the best is not known yet: %s", error)
            return ""
        return f", best was {best.epoch}"

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Log what holds for the whole run, beside its last epoch."""
        self.tracked.log_metrics(metrics, max(self.epochs, default=1))

    def _log_start(self) -> None:
        # A setting that is left out counts as well: two runs are compared by what they used.
        knobs = self.config.public() | {"model": {"name": self.config.model["name"], **self.config.model_settings}}
        tracked = self.tracked
        # Long documents are artifacts; what tells two runs apart in a table is a parameter.
        documents = {name: knobs.pop(name) for name in ("sql", "tables", "features") if name in knobs}
        tracked.log_params(knobs | {"features_hash": self.dataset.features.hash})
        tracked.log_text(self.folder.config.read_text(encoding="utf-8"), "config.yaml")
        if "sql" in documents:
            tracked.log_text(documents["sql"], SQL_FILE)
        tracked.log_document(dataclasses.asdict(self.dataset.manifest), "dataset/manifest.json")
        tracked.log_document(self.dataset.spec.to_dict(), "dataset/features.json")
        tracked.log_document(tracking.environment(), "environment.json")
        commit_id = tracking.git_commit(Path(__file__).parent)
        tags = {"recipe": self.config.name, "dataset": self.dataset.path.name}
        tags |= {"run_date": self.config.run_date} if self.config.run_date else {}
        tags |= {"warm_start": self.warm_start.uri} if self.warm_start else {}
        tracked.log_tags(tags | ({"mlflow.source.git.commit": commit_id} if commit_id else {}))

    @cached_property
    def _store(self) -> StoreReader:
        """Reads behind the training, where a signal ends a run by itself, and a sweep asks its trials to stop."""
        tell: Callable[[Event], None] = lambda event: self.run.on_event({"time": time.time(), **event})  # noqa: E731
        return StoreReader(self.config.checkpoint_limit_seconds, self._signal, tell)

    @cached_property
    def _supervisor(self) -> Supervisor:
        config = self.config
        return Supervisor(
            launch=SparkLauncher(self.spark, config.gpus_per_worker),
            host=bind_address(self.spark),
            advertised=driver_address(self.spark),
            elastic=config.elastic,
            slots=self.slots,
            on_event=self.on_event,
            stop=self._signal,
            has_checkpoints=self.folder.was_fenced,
            budgets=Budgets(config.max_restarts, config.max_preemptions, config.max_start_failures),
            limits=Limits(
                start_seconds=config.start_limit_seconds,
                first_step_seconds=config.first_step_limit_seconds,
                step_seconds=config.step_limit_seconds,
                checkpoint_seconds=config.checkpoint_limit_seconds,
                end_seconds=config.end_limit_seconds,
            ),
        )

    def on_event(self, event: Event) -> None:
        """Keep an event of the ranks or of the supervisor, and pass it on."""
        if event["event"] == "attempt":
            for told in self._told_without_a_driver(event.get("resumed_from") or 0):
                self.on_event(told)
        self.remember(event)
        if event["event"] == "warm_start" and self.warm_start is not None:
            self.view.say(f"warm start from {self.warm_start.uri}: {event['message']}")
        self.run.on_event(event)

    def _told_without_a_driver(self, step: int) -> list[Event]:
        """Return what the ranks told, while no driver listened, of the epochs before ``step``: they are not repeated.

        The supervisor has just found the checkpoint of that step whole.
        """
        if not step:
            return []
        try:
            checkpoint = commit.read_committed(commit.folder(self._checkpoints, step))
            told = checkpoint.states()[PROGRESS_STATE]["told"]
        except (OSError, LookupError, ValueError) as error:
            logger.warning("what earlier epochs told could not be read from the checkpoint of step %d: %s", step, error)
            return []
        return [{**event, "rank": 0, "recovered": True} for event in told if event["epoch"] not in self.epochs]

    @property
    def _checkpoints(self) -> str:
        """Where checkpoints go: on a store of one's own, into a folder with the name of the run's."""
        if self.config.checkpoints is None:
            return str(self.folder.checkpoints)
        # Not behind the options of a store, with which a URI ends.
        return str(StoragePath.of(self.config.checkpoints) / self.folder.path.name)

    def _training_plan(self) -> TrainingPlan:
        return TrainingPlan(
            config=self.config.for_ranks(),
            dataset=str(self.dataset.path),
            checkpoints=self._checkpoints,
            workers=self.config.worker_range.most,
            global_batch_size=self.config.global_batch_size,
            profile=str(self.folder.profile) if self.config.profile else None,
            warm_start=str(self.warm_start.folder) if self.warm_start else None,
        )
