"""The training of a model between its preflight and its export: its program, its events, and its MLflow log."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mirrorspark.callbacks.checkpoints import checkpoint_store, commit, fetch
from mirrorspark.callbacks.mlflow import WORK_PREFIX
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import check_candidates, classical, sparse_features
from mirrorspark.spark_session import session_of
from mirrorspark.storage import StoragePath
from mirrorspark.training.configuration import (
    SQL_FILE,
    TrainingConfig,
    class_factors,
    cost_matrix,
    default_strategy,
    few_updates,
)
from mirrorspark.training.driver import StoreReader
from mirrorspark.training.job.prepared_run import PreparedRun
from mirrorspark.training.job.program import Cluster, Program, epochs_in_words, supervisor_of
from mirrorspark.training.job.warm_start import WarmStart, resolve_warm_start
from mirrorspark.training.programs.keras_fit import interaction_graph
from mirrorspark.training.protocol import PROGRESS_STATE, Budgets, PhaseLimits, TrainingPlan
from mirrorspark.training.protocol.messages import Event, StopSignal
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.run_records import (
    COMMIT_TAG,
    OpenRun,
    RunFolder,
    TrackedRun,
    environment,
    open_run,
    settings_in_words,
    source_tags,
)
from mirrorspark.training.run_records.live import LiveView, Monitored

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_job(
    prepared: PreparedRun,
    view: LiveView,
    *,
    folder: RunFolder | None = None,
    slots: Callable[[], int] | None = None,
    listener: Callable[[Event], None] | None = None,
    title: Sequence[str] = (),
) -> Iterator["TrainingJob"]:
    """Check the settings by the dataset, open the run's folder and its MLflow run, and mark both as ended at the end.

    Args:
        prepared: The run.
        view: Shows the run's progress.
        folder: The run's folder; by default that of the unfinished run to continue, or a new one.
        slots: Returns the number of workers that fit; by default all slots of the session.
        listener: Gets every event, too.
        title: Settings in words for its name in MLflow; by default model, step size and batch.

    Raises:
        ConfigError: The model does not fit the dataset's label, or the model to begin from is missing.
        ModelSettingsError: The model or its settings do not fit the dataset's features or candidates, or its number of
            steps.
        RunUnderWayError: Another driver is running the run of ``folder``, or that of the configuration's run date.
        RunFinishedError: The run of that date has finished.
    """
    config, dataset = prepared.config, prepared.dataset
    _check_settings(config, dataset)
    factors, costs = class_factors(config.class_weights, dataset), cost_matrix(config.costs, dataset)
    with open_run(
        *(config, dataset.manifest.content_hash, prepared.tracking, view),
        folder=folder,
        listener=listener,
        only_once=config.only_once,
        title=title or settings_in_words(config),
    ) as run:
        begin = resolve_warm_start(
            config, prepared.tracking.store, run.folder.warm_start, prepared.warm_start, has_begun=run.folder.has_begun
        )
        cluster = Cluster(prepared.spark, slots or prepared.worker_slots, prepared.events_by_files)
        job = TrainingJob(dataset, config, cluster, run, warm_start=begin, class_factors=factors, costs=costs)
        run.recall(job.remember)
        view.expect(config.epochs, Monitored(config.monitor, config.mode), job.epochs.values())
        yield job


def _check_settings(config: TrainingConfig, dataset: Dataset) -> None:
    """Check the settings by the dataset. Each trial of a sweep has settings of its own, so they are checked here."""
    config.require_features(dataset.spec)
    if config.calibration == "centroids":
        sparse_features(dataset.spec, dataset.features.classes)
    interaction_graph.check(config)
    if config.task == "retrieval":
        check_candidates(dataset.features, config.top_k)
        classical.check_recommenders(config.recommenders, dataset.features)
        if config.is_fitted:
            classical.check_recommenders([config.as_recommender], dataset.features)
    config.require_steps(dataset.steps("train", config.global_batch_size))


@dataclass(frozen=True)
class LearntModel:
    """A run's trained model on this machine: the best epoch's checkpoint, or the file of a fitted recommender.

    Attributes:
        epoch: Epochs that the checkpoint has learnt; None for a model that is fitted without epochs.
    """

    path: Path | StoragePath
    epoch: int | None


@dataclass
class TrainingJob:
    """The run of a model between its preflight and its end.

    Attributes:
        run: Its folder, its MLflow run and its view.
        epochs: The chief's ``epoch_end`` event of each epoch.
        warm_start: The model to begin from; None for random initial weights.
        warm_start_event: The chief's ``warm_start`` event.
        most_epochs: The number of epochs that a time limit has become; None without one.
        class_factors: Factor of a training row's weight by the number of its class; empty without class weights.
        costs: Cost of each decision, by the actual class and the one decided for; empty without costs.
    """

    dataset: Dataset
    config: TrainingConfig
    cluster: Cluster
    run: OpenRun
    epochs: dict[int, Event] = dataclasses.field(default_factory=dict)
    warm_start: WarmStart | None = None
    warm_start_event: Event | None = None
    most_epochs: int | None = None
    class_factors: tuple[float, ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()
    _signal: StopSignal = dataclasses.field(default_factory=StopSignal, init=False)

    def __post_init__(self) -> None:
        # It reads after the training, when signals end the process directly, and only a sweep still stops its trial
        # through it.
        self._store = StoreReader(
            self.config.checkpoint_limit_seconds,
            self._signal,
            on_event=lambda event: self.run.on_event({"time": time.time(), **event}),
        )

    @property
    def folder(self) -> RunFolder:
        """The run's folder, with configuration, events, checkpoints and results."""
        return self.run.folder

    @property
    def tracked(self) -> TrackedRun:
        """The MLflow run."""
        return self.run.tracked

    @property
    def view(self) -> LiveView:
        """The live view."""
        return self.run.view

    @property
    def warnings(self) -> list[str]:
        """The findings about the settings for this number of rows, each with its remedy."""
        apart = classical.items_apart(self.config.recommenders, self.dataset.features)
        found = (few_updates(self.config, self.dataset.manifest.rows("train")), apart)
        return [one for one in found if one is not None]

    def train(self) -> tuple[Attempt, ...]:
        """Train under supervision and return the attempts.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: The run was asked to stop.
            NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        """
        self._log_start()
        for warning in self.warnings:
            self.view.log(f"warning: {warning}")
        if self.config.strategy is None and self.config.strategy_name != default_strategy(self.config.gpus_per_worker):
            self.view.log("the model is of Keras 3, which trains by the strategy ring alone")
        if self.config.is_fitted:
            return self._fit()
        with self.view.stage("train") as stage:
            program = self.program()
            supervisor = supervisor_of(program, self.cluster, self.run, on_event=self.on_event, stop=self._signal)
            attempts = self.run.run_to_end(supervisor, program.plan)
            if self.config.profile:
                self.tracked.log_folder(self.folder.profile, "profile")
            stage.note = epochs_in_words(attempts, self._best_in_words(attempts[-1].epochs))
        return attempts

    def _graph(self) -> str | None:
        """Return the file of the model's graph, which an earlier driver may have written; None for other models."""
        if not interaction_graph.is_needed(self.config):
            return None
        known = next(iter(sorted(self.folder.fitted.glob("graph-*.npy"))), None)
        if known is not None:
            return str(known)
        from mirrorspark.training.programs.recommenders import Interactions

        return str(interaction_graph.write(Interactions(self.dataset).pairs, self.folder.fitted))

    def _fit(self) -> tuple[Attempt, ...]:
        """Fit a classical recommender, unless an earlier driver has, and return an attempt without epochs."""
        # They import Numba and Spark ML.
        from mirrorspark.training.programs.recommenders import Interactions, fitting

        asked = self.config.as_recommender
        spark = self.cluster.session()
        with self.view.stage("train", spark=spark) as stage:
            if self._fitted is None:
                if asked.name == "als":
                    session_of(spark).give_checkpoints(self.folder.spark_checkpoints)
                arrays = fitting.fit(asked, Interactions(self.dataset), self.config.seed, spark)
                fitting.save(arrays, self.folder.fitted, asked.name)
            stage.note = f"fitted {asked.name}"
        return (Attempt(1, epochs=0, errors=(), resumed_from=0),)

    @property
    def _fitted(self) -> Path | None:
        """The file of a fitted classical recommender; None before the fit."""
        return next(iter(sorted(self.folder.fitted.glob("*.npz"))), None)

    def request_stop(self, reason: str) -> None:
        """Ask the ranks to save a checkpoint and stop; from any thread or signal handler."""
        self._signal.request(reason)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """Stop without another checkpoint; from any thread or signal handler."""
        self._signal.request_now(reason)

    def remember(self, event: Event) -> None:
        """Remember the chief's events that the run's summary needs."""
        self.keep_epoch(event)
        if event["event"] == "warm_start":
            self.warm_start_event = event
        if event["event"] == "time_limit":
            self.most_epochs = event["epochs"]

    def keep_epoch(self, event: Event) -> None:
        """Remember the chief's event of an epoch; an epoch that a restart repeats sends the same event again."""
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            self.epochs.setdefault(event["epoch"], event)

    def fetch_best(self, folder: Path) -> LearntModel:
        """Return the best epoch's checkpoint on this machine, the original or a copy in ``folder``, or the fitted file.

        A store that fails is retried for five minutes.

        Raises:
            CheckpointDamagedError: All checkpoints are damaged.
            OSError: The store does not answer, or the disk is full.
            StorageError: The store cannot be opened.
        """
        if (fitted := self._fitted) is not None:
            return LearntModel(fitted, epoch=None)

        def fetched(beat: Callable[[], None]) -> commit.CommittedCheckpoint:
            return fetch(self._best(beat), folder, progress=lambda done, total: beat())

        best = self._store.read_with_retries(self._checkpoints, fetched)
        return LearntModel(best.path, best.epoch)

    def _best(self, beat: Callable[[], None], *, verify: bool = True) -> commit.CommittedCheckpoint:
        monitor, mode = self.config.monitor, self.config.mode
        best = commit.best_committed(self._checkpoints, monitor, mode, verify=verify, beat=beat)
        if best is None:
            raise commit.CheckpointDamagedError(
                StoragePath.of(self._checkpoints), "no committed checkpoint holds the best epoch"
            )
        return best

    def _best_in_words(self, epochs: int | None) -> str:
        """Return the best one of the epochs in words.

        It is empty if the store cannot be read, which fails no finished training.
        """
        read = partial(self._best, verify=False)
        try:
            best = self._store.read_with_retries(self._checkpoints, read, retry_seconds=0)
        except (*checkpoint_store.STORE_ERRORS, commit.CheckpointDamagedError) as error:
            logger.warning("which epoch was the best is not known yet: %s", error)
            return ""
        most = self.most_epochs or self.config.epochs
        is_cut_off = 1 < best.epoch == epochs == most and (self.config.patience or self.config.time_limit)
        return f", best was {best.epoch}" + (", still improving at the limit" if is_cut_off else "")

    def log_metrics(self, metrics: dict[str, float], model_uri: str | None = None) -> None:
        """Log metrics of the whole run, at its last epoch; with ``model_uri`` they are that model's as well."""
        step = max(self.epochs, default=1)
        if model_uri is None:
            self.tracked.log_metrics(metrics, step)
        else:
            self.tracked.log_model_metrics(model_uri, metrics, step)

    def log_work(self, values: Mapping[str, float]) -> None:
        """Log metrics of the work, such as times and costs, apart from those of the quality."""
        self.log_metrics({f"{WORK_PREFIX}{name}": value for name, value in values.items()})

    def _log_start(self) -> None:
        # Defaults are logged as well, so that runs can be compared.
        strategy = None if self.config.is_fitted else self.config.strategy_name
        settings = self.config.public() | {"model": self.config.model_settings, "strategy": strategy}
        tracked = self.tracked
        # Long documents are artifacts; settings that distinguish runs in a table are parameters.
        documents = {name: settings.pop(name) for name in ("sql", "tables", "features") if name in settings}
        tracked.log_params(settings | {"features_hash": self.dataset.features.hash})
        tracked.log_input(self.dataset)
        tracked.log_file(self.folder.config)
        if "sql" in documents:
            tracked.log_text(documents["sql"], SQL_FILE)
        tracked.log_document(dataclasses.asdict(self.dataset.manifest), "dataset/manifest.json")
        tracked.log_document(self.dataset.spec.to_dict(), "dataset/features.json")
        tracked.log_document(environment(), "environment.json")
        tags = {"recipe": self.config.name, "dataset": self.dataset.path.name}
        tags |= {"run_date": self.config.run_date} if self.config.run_date else {}
        tags |= {"warm_start": self.warm_start.uri} if self.warm_start else {}
        source = source_tags(getattr(self.config, "recipe", None))
        if tracked.is_users:  # MLflow has set its commit.
            source.pop(COMMIT_TAG, None)
        tracked.log_tags(tags | source)

    def program(self) -> Program:
        """Return the program of the job."""
        config = self.config
        return Program(
            plan=self._training_plan(),
            elastic=config.elastic,
            budgets=Budgets(
                max_restarts=config.max_restarts,
                max_preemptions=config.max_preemptions,
                max_start_failures=config.max_start_failures,
            ),
            limits=PhaseLimits(
                start_seconds=config.start_limit_seconds,
                first_step_seconds=config.first_step_limit_seconds,
                step_seconds=config.step_limit_seconds,
                checkpoint_seconds=config.checkpoint_limit_seconds,
                end_seconds=config.end_limit_seconds,
            ),
            gpus_per_worker=config.gpus_per_worker,
            local_mode=config.local_mode,
        )

    def on_event(self, event: Event) -> None:
        """Keep an event of the ranks or of the supervisor, and pass it on."""
        if event["event"] == "attempt":
            for missed in self._missed_epochs(event.get("resumed_from") or 0):
                self.on_event(missed)
        self.remember(event)
        if event["event"] == "warm_start" and self.warm_start is not None:
            self.view.log(f"warm start from {self.warm_start.uri}: {event['message']}")
        self.run.on_event(event)

    def _missed_epochs(self, step: int) -> list[Event]:
        """Return events of epochs before ``step`` that were sent while no driver listened; the epochs are not repeated.

        The supervisor has just found the checkpoint of that step whole.
        """
        if not step:
            return []
        try:
            checkpoint = commit.checkpoint_of_step(self._checkpoints, step)
            sent = checkpoint.states()[PROGRESS_STATE]["told"]
        except (OSError, LookupError, ValueError) as error:
            logger.warning("events of earlier epochs cannot be read from the checkpoint of step %d: %s", step, error)
            return []
        return [{**event, "rank": 0, "recovered": True} for event in sent if event["epoch"] not in self.epochs]

    @property
    def _checkpoints(self) -> str:
        """The place of the checkpoints: on a store of their own, a folder with the run folder's name."""
        if self.config.checkpoints is None:
            return str(self.folder.checkpoints)
        # StoragePath puts the name before the options of a store, with which a URI ends.
        return str(StoragePath.of(self.config.checkpoints) / self.folder.path.name)

    def _training_plan(self) -> TrainingPlan:
        return TrainingPlan(
            config=self.config.for_ranks(),
            dataset=str(self.dataset.path),
            checkpoints=self._checkpoints,
            workers=self.config.worker_range.most,
            threads=self.config.threads_per_worker or (os.cpu_count() if self.config.local_mode else None),
            verbose=self.config.verbose,
            global_batch_size=self.config.global_batch_size,
            profile=str(self.folder.profile) if self.config.profile else None,
            warm_start=str(self.warm_start.folder) if self.warm_start else None,
            graph=self._graph(),
            class_weights=self.class_factors,
        )
