"""A dataset becomes a registered model: supervise the workers, export the best epoch, judge it. For notebooks, too."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from callbacks import commit
from callbacks.fetch import fetch
from data_pipelines.dataset import Dataset
from data_pipelines.storage import StoragePath
from models.settings import check_candidates
from scoring.model_uri import PinnedModel, resolve
from training import preflight, tracking
from training.config import SQL_FILE, TrainingConfig
from training.evaluate_run import Verdict, curves_of, judge_binary, judge_retrieval
from training.events import Event
from training.export import EVALUATED_SPLITS, ExportPlan, ExportResult, export
from training.failure_policy import Attempt, Budgets
from training.launcher import SparkLauncher
from training.live_view import LiveView
from training.plan import PROGRESS_STATE, TrainingPlan
from training.run_folder import RunFolder, open_run_folder
from training.signals import on_stop_signals
from training.spark_session import bind_address, driver_address, open_session, task_slots
from training.summary import CHALLENGER
from training.supervisor import Supervisor, TrainingStoppedError
from training.watchdog import Limits


@dataclass(frozen=True)
class Trained:
    """A trained, exported and registered model.

    Attributes:
        run_id: MLflow run.
        model_uri: The model in that run.
        registered_model: Its name in the registry.
        model_version: Its version there.
        attempts: Every launch; the last one finished.
        examples_per_second: Median over the epochs, all workers together; None when a resumed run had none left.
        verdict: Metrics per split, baseline and plots.
        predictions: Per evaluated split what the training framework itself predicts, with keys and label.
        run_folder: Configuration, events, checkpoints and results.
        tracking_uri: MLflow store.
    """

    run_id: str
    model_uri: str
    registered_model: str
    model_version: str
    attempts: tuple[Attempt, ...]
    examples_per_second: float | None
    verdict: Verdict
    predictions: dict[str, pa.Table]
    run_folder: Path
    tracking_uri: str

    @cached_property
    def model(self) -> PinnedModel:
        """The registered version, pinned and fetched: what the scorers take."""
        return resolve(self.version_uri, tracking_uri=self.tracking_uri)

    @property
    def version_uri(self) -> str:
        """The registered version, which no later training moves."""
        return f"models:/{self.registered_model}/{self.model_version}"


def train(dataset: Dataset, config: TrainingConfig, spark: SparkSession | None = None) -> Trained:
    """Train on ``dataset``, export the best epoch, register it as challenger and judge it.

    Args:
        dataset: What :func:`data_pipelines.convert.convert` returned, on storage that every worker reads.
        config: How to train.
        spark: The session; by default the active one, or a local one with a slot per worker.

    Raises:
        ConfigError: The model does not fit the dataset's label.
        PreflightError: The session cannot run a barrier job of that many workers, or a store cannot be reached.
        TrainingFailedError: A fault of the model's code, or one lost worker too many.
    """
    checks = preflight.check_driver(Path(config.output), tracking_uri(config))
    preflight.require(checks)
    spark = spark or open_session(None, config.slots, verbose=config.verbose)
    preflight.require(cluster_checks(spark, config))
    view = LiveView(epochs=config.epochs)
    with open_job(dataset, config, spark, view) as job:
        trained = job.run()
        job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
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
    """
    config.require_label(dataset.spec)
    if config.task == "retrieval":
        check_candidates(dataset.features, config.top_k)
    folder = folder or open_run_folder(config, dataset.manifest.content_hash)
    config.save(folder.config)
    experiment = config.experiment or config.name
    tracked = tracking.TrackedRun(
        tracking_uri(config), experiment, Path(config.output), folder.continues, folder.path.name
    )
    folder.save_state("running", tracked.run_id)
    try:
        job = TrainingJob(dataset, config, spark, view, folder, tracked, slots or _slots(spark, config), listener)
        for event in folder.past_events():
            job.keep_epoch(event)
            # A killed driver may not have sent its last metrics; what is there already is skipped.
            tracked.on_event(event)
        yield job
    except BaseException as error:
        is_stopped = isinstance(error, TrainingStoppedError | KeyboardInterrupt)
        folder.save_state("stopped" if is_stopped else "failed", tracked.run_id)
        tracked.finish("KILLED" if is_stopped else "FAILED")
        raise
    job.replay = tracked.finish("FINISHED")
    folder.save_state("finished", tracked.run_id)


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
        view: Shows it.
        folder: Keeps it.
        tracked: Its MLflow run.
        slots: Returns how many workers there is room for.
        listener: Gets every event, too.
        epochs: What the chief said at the end of each epoch.
        replay: Command that sends MLflow what it could not be told; None while the run goes on, and when it knows all.
    """

    dataset: Dataset
    config: TrainingConfig
    spark: SparkSession
    view: LiveView
    folder: RunFolder
    tracked: tracking.TrackedRun
    slots: Callable[[], int]
    listener: Callable[[Event], None] | None = None
    epochs: dict[int, Event] = dataclasses.field(default_factory=dict)
    replay: str | None = None

    def run(self) -> Trained:
        """Train, export, register and judge. The alias is the caller's to give, once he is content."""
        return self.deliver(self.train())

    def train(self) -> tuple[Attempt, ...]:
        """Train under supervision and return the attempts.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: Somebody asked for a stop.
        """
        self._log_start()
        with self.view.stage("train") as stage:
            with on_stop_signals(self.request_stop, self.stop_now):
                attempts = self._supervisor.supervise(self._training_plan())
            if self.config.profile:
                self.tracked.log_folder(self.folder.profile, "profile")
            tries = f", {len(attempts)} attempts" if len(attempts) > 1 else ""
            stage.note = f"{attempts[-1].epochs} epochs, best was {self._best_checkpoint().epoch}{tries}"
        return attempts

    def request_stop(self, reason: str) -> None:
        """Let the ranks save a checkpoint and stop; from any thread or signal handler."""
        self._supervisor.request_stop(reason)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """Stop without another checkpoint; from any thread or signal handler."""
        self._supervisor.stop_now(reason)

    def deliver(self, attempts: tuple[Attempt, ...]) -> Trained:
        """Export the best epoch, register and judge it."""
        best = self._fetched(self._best_checkpoint())
        # A run that began without its tracking server has an id by now, which the export needs.
        self.folder.save_state("running", self.tracked.require_run_id())
        with self.view.stage("export") as stage:
            exported = export(self._export_plan(best), verbose=self.config.verbose)
            stage.note = f"registered as models:/{self.config.name}/{exported.model_version}"
        with self.view.stage("evaluate") as stage:
            predictions = {
                split: pq.read_table(self.folder.predictions / f"{split}.parquet") for split in EVALUATED_SPLITS
            }
            verdict = self._judge(predictions, best, attempts)
            self._log_verdict(verdict)
            stage.note = f"compared with {verdict.baseline['name']}" if verdict.baseline else ""
        return self._trained(attempts, exported, verdict, predictions)

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
        tracked.log_tags(tags | ({"mlflow.source.git.commit": commit_id} if commit_id else {}))

    @cached_property
    def _supervisor(self) -> Supervisor:
        config = self.config
        return Supervisor(
            launch=SparkLauncher(self.spark, config.gpus_per_worker),
            host=bind_address(self.spark),
            advertised=driver_address(self.spark),
            elastic=config.elastic,
            slots=self.slots,
            on_event=self._on_event,
            budgets=Budgets(config.max_restarts, config.max_preemptions, config.max_start_failures),
            limits=Limits(
                start_seconds=config.start_limit_seconds,
                first_step_seconds=config.first_step_limit_seconds,
                step_seconds=config.step_limit_seconds,
                checkpoint_seconds=config.checkpoint_limit_seconds,
            ),
        )

    def _on_event(self, event: Event) -> None:
        if event["event"] == "attempt":
            self._recover_epochs()
        self.keep_epoch(event)
        self.tracked.on_event(event)
        self.view.on_event(event)
        if self.listener is not None:
            self.listener(event)
        # Last: a full disk must not keep the others from hearing it.
        self.folder.append_event(event)

    def _recover_epochs(self) -> None:
        """Hear from the checkpoint what the ranks told while no driver listened: those epochs are not repeated."""
        newest = commit.latest_committed(self._checkpoints)
        told = newest.states()[PROGRESS_STATE]["told"] if newest else []
        for event in told:
            if event["epoch"] not in self.epochs:
                self._on_event({**event, "rank": 0, "recovered": True})

    def keep_epoch(self, event: Event) -> None:
        """Remember what the chief said of an epoch; one that a restart repeats says the same again."""
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            self.epochs.setdefault(event["epoch"], event)

    @property
    def _checkpoints(self) -> str:
        """Where checkpoints go: on a store of one's own, into a folder with the name of the run's."""
        if self.config.checkpoints is None:
            return str(self.folder.checkpoints)
        return f"{self.config.checkpoints.rstrip('/')}/{self.folder.path.name}"

    def _training_plan(self) -> TrainingPlan:
        return TrainingPlan(
            config=self.config.for_ranks(),
            dataset=str(self.dataset.path),
            checkpoints=self._checkpoints,
            workers=self.config.worker_range.most,
            global_batch_size=self.config.global_batch_size,
            profile=str(self.folder.profile) if self.config.profile else None,
        )

    def _best_checkpoint(self) -> commit.CommittedCheckpoint:
        best = commit.best_committed(self._checkpoints, self.config.monitor, self.config.mode)
        if best is None:
            raise commit.CheckpointDamagedError(
                StoragePath.of(self._checkpoints), "no committed checkpoint holds the best epoch"
            )
        return best

    def _fetched(self, checkpoint: commit.CommittedCheckpoint) -> commit.CommittedCheckpoint:
        return fetch(checkpoint, self.folder.path / "fetched")

    def _export_plan(self, best: commit.CommittedCheckpoint) -> ExportPlan:
        return ExportPlan(
            dataset=str(self.dataset.path),
            checkpoint=str(best.path),
            model=self.config.model["name"],
            model_options=self.config.model_options,
            seed=self.config.seed,
            top_k=self.config.top_k,
            folder=str(self.folder.model),
            predictions=str(self.folder.predictions),
            tracking_uri=self.tracked.uri,
            mlflow_run_id=self.tracked.require_run_id(),
            registered_model=self.config.name,
            threads=self.config.threads_per_worker or os.cpu_count() or 1,
        )

    def _judge(
        self, predictions: dict[str, pa.Table], best: commit.CommittedCheckpoint, attempts: tuple[Attempt, ...]
    ) -> Verdict:
        steps = self.dataset.steps("train", self.config.global_batch_size)
        history = [self.epochs[epoch]["logs"] for epoch in sorted(self.epochs)]
        curves = curves_of(history, best.epoch, tuple(attempt.resumed_from / steps for attempt in attempts[1:]))
        if self.config.task == "retrieval":
            return judge_retrieval(self.dataset, predictions, self.config.baseline, self.config.top_k, curves)
        return judge_binary(self.dataset, predictions, self.config.baseline, self.config.seed, curves)

    def _log_verdict(self, verdict: Verdict) -> None:
        values = {f"{split}_{name}": value for split, of in verdict.metrics.items() for name, value in of.items()}
        values |= {f"baseline_{name}": value for name, value in verdict.baseline.get("metrics", {}).items()}
        self.log_metrics(values)
        for name, figure in verdict.figures.items():
            self.tracked.log_figure(figure, name)

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Log what holds for the whole run, beside its last epoch."""
        self.tracked.log_metrics(metrics, max(self.epochs, default=1))

    def _trained(
        self,
        attempts: tuple[Attempt, ...],
        exported: ExportResult,
        verdict: Verdict,
        predictions: dict[str, pa.Table],
    ) -> Trained:
        rates = [event["examples_per_second"] for event in self.epochs.values() if event["examples_per_second"]]
        return Trained(
            run_id=self.tracked.require_run_id(),
            model_uri=exported.model_uri,
            registered_model=self.config.name,
            model_version=exported.model_version,
            attempts=attempts,
            examples_per_second=round(median(rates), 1) if rates else None,
            verdict=verdict,
            predictions=predictions,
            run_folder=self.folder.path,
            tracking_uri=self.tracked.uri,
        )
