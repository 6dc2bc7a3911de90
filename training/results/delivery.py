"""The delivery of a trained model: export, registration, predictions, metrics, baseline, plots."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.utils.autologging_utils import disable_autologging

from mirrorspark.callbacks.mlflow import metric_requests
from mirrorspark.clear_error import ClearError
from mirrorspark.models import decisions
from mirrorspark.pages import beside_the_result
from mirrorspark.pages.figures import figure_of_image
from mirrorspark.scoring.model.stored import PinnedModel, resolve
from mirrorspark.storage import atomic_file, clean
from mirrorspark.training.configuration import RunConfig, TrainingConfig
from mirrorspark.training.job import LearntModel, TrainingJob
from mirrorspark.training.protocol import SUMMARY_FILE
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.calibrate import CalibrationResult
from mirrorspark.training.results.decide import with_costs
from mirrorspark.training.results.evaluation import (
    EXPLANATION_FILE,
    NETWORK,
    Choice,
    Explanation,
    RecommenderChoice,
    evaluate_run,
)
from mirrorspark.training.results.export import ExportProcess, export_once
from mirrorspark.training.results.export_plan import ExportPlan, ExportResult
from mirrorspark.training.results.predictions import EVALUATED_SPLITS
from mirrorspark.training.results.report import (
    CHALLENGER,
    REPORT_FILE,
    Cost,
    Leaderboard,
    PagePath,
    Reservation,
    Summary,
    as_baseline,
    better_baseline,
    cost_of,
    each_baseline,
    leaderboard_rows,
    model_card,
    report_facts,
    report_of,
    trained_html,
    trained_text,
    write_report,
)
from mirrorspark.training.results.verdict import evaluate, log_verdict
from mirrorspark.training.run_records import RunFolder, run_history

# An epoch of so few rows takes seconds.
_FEW_ROWS = 20_000


class ResultLostError(ClearError, RuntimeError):
    """A run has finished, but its summary or result is missing or damaged."""


@dataclass(frozen=True, repr=False)
class Trained:
    """A trained, exported and registered model.

    Attributes:
        run_id: MLflow run.
        model_uri: The model in that run.
        registered_model: Its name in the registry.
        attempts: Every launch; the last one finished.
        examples_per_second: Median over the epochs, all workers together; None when a resumed run had none left.
        verdict: Metrics per split, baseline and plots.
        predictions: The training framework's own predictions of each evaluated split, with keys and label.
        run_folder: Configuration, events, checkpoints and results.
        seconds: Seconds per stage, with the start and the time between stages; empty until :func:`keep_report`.
        cost: Core-seconds per stage, and money where the price of a core is known; likewise.
        chosen: Why this one was registered, in words, where ``register`` is ``better``.
        calibration: The calibration and its effect, in words, where there is one.
        decisions: The rule of decisions by cost and its cost, in words, where there is one.
        run_page: Address of the run in MLflow's pages; None for a store that serves none.
        explanation: The features' influence on the predictions, measured on some test rows; None if it was switched off
            or the model cannot be explained quickly.
        rows: Rows per split; empty in the results of earlier versions.
        withheld: The reason, with the remedy, why the version has no alias; None where it gets one.
        leaderboard: The models that this one was chosen from or compared with, and itself; empty in the results of
            earlier versions.
    """

    run_id: str
    model_uri: str
    registered_model: str
    model_version: str
    attempts: tuple[Attempt, ...]
    examples_per_second: float | None
    verdict: evaluate_run.BaselineComparison
    predictions: dict[str, pa.Table]
    run_folder: Path
    tracking_uri: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None
    chosen: str | None = None
    calibration: str | None = None
    decisions: str | None = None
    run_page: str | None = None
    explanation: Explanation | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    withheld: str | None = None
    leaderboard: Leaderboard = field(default_factory=list)

    @cached_property
    def model(self) -> PinnedModel:
        """The registered version, pinned and downloaded, for the scorers."""
        return resolve(self.version_uri, tracking_uri=self.tracking_uri)

    @property
    def version_uri(self) -> str:
        """The URI of the registered version, which later trainings do not change."""
        return f"models:/{self.registered_model}/{self.model_version}"

    @property
    def report(self) -> PagePath:
        """The run on one HTML page, which is also in MLflow: a path, and in a notebook a link."""
        return report_of(self.run_folder)

    def __repr__(self) -> str:
        return trained_text(self)

    def _repr_html_(self) -> str:
        return trained_html(self)


class ExportAhead:
    """An export process that starts as the training ends, so that its imports overlap with the workers' end.

    It does not start earlier, since it takes 0.8 GB of memory, and its imports on the driver's machine would compete
    with the training. A training of few rows, which ends soon, and leaves it a core, is the exception: the process
    imports its libraries while the workers import theirs.
    """

    def __init__(self, config: TrainingConfig, rows: int | None = None) -> None:
        """Start nothing yet.

        Args:
            config: The training's settings.
            rows: Training rows, if they are known.
        """
        self._config = config
        busy = config.worker_range.most * (config.threads_per_worker or 1)
        self._is_short = rows is not None and rows <= _FEW_ROWS and busy < len(os.sched_getaffinity(0))
        self.process: ExportProcess | None = None

    def __enter__(self) -> Self:
        """Return it; for a short training its process has started."""
        if self._is_short:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process in any state."""
        if self.process is not None:
            self.process.close()

    def on_event(self, event: Event) -> None:
        """Start the process, if it has not started, when the chief reports the end of its training."""
        if self.process is None and event["event"] == "train_end" and event.get("rank") == 0:
            self._start()

    def _start(self) -> None:
        self.process = ExportProcess(_threads(self._config), verbose=self._config.verbose)


def deliver(job: TrainingJob, attempts: tuple[Attempt, ...], process: ExportProcess | None = None) -> Trained:
    """Export the best epoch, register and evaluate it; the alias is left to the caller.

    A repetition after an interruption goes on with the version that the run has registered.

    Args:
        job: The training.
        attempts: Every launch; the last one finished.
        process: The export process, if it has been started; the caller ends it.
    """
    # The export needs the server and the run's id, which a run that began without its server may get only now.
    job.folder.save_state("running", job.tracked.require_server())
    if job.most_epochs is not None:
        job.tracked.log_tags({"epochs_of_time_limit": str(job.most_epochs)})
    with job.view.stage("export") as stage:
        best = job.fetch_best(job.folder.path / "fetched")
        plan = _export_plan(job, best)
        stage.report("loading TensorFlow")
        exported = export_once(
            plan, job.folder.exported, verbose=job.config.verbose, process=process, on_progress=stage.report
        )
        choice = _choice(job)
        stage.note = f"registered as models:/{job.config.registry_name}/{exported.model_version}"
        if choice is not None:
            stage.note += f": {choice.in_words()}"
            job.tracked.log_tags({"registered": choice.registered})
    with job.view.stage("evaluate") as stage:
        predictions = _predictions(job.folder)
        # The notebook's mlflow.autolog() would open a run for the baseline.
        with disable_autologging():
            verdict = evaluate(job, predictions, best, attempts, choice, stage.report)
            metrics = with_costs(verdict.metrics, predictions, job.dataset, job.folder.model)
            verdict = replace(verdict, metrics=metrics)
        stage.report("logging the metrics and plots")
        log_verdict(job, verdict, exported.model_uri)
        _describe_model(job, exported, verdict, choice)
        baselines = [str(entry["name"]) for entry in each_baseline(verdict.baseline)]
        stage.note = f"compared with {', '.join(baselines)}" if baselines else "without a baseline"
    return _trained(job, attempts, exported, verdict, predictions, choice)


def keep_report(job: TrainingJob, trained: Trained, *, parity: str | None = None) -> Trained:
    """Write the report into the run's folder and into MLflow; return the result with the time and the cost so far."""
    seconds = job.view.all_seconds()
    cost = _cost(job, trained.attempts, seconds)
    trained = replace(trained, seconds=seconds, cost=cost)
    values = {f"seconds_{name.replace(' ', '_')}": value for name, value in seconds.items()}
    values |= {"core_seconds": cost.total_core_seconds} | ({} if cost.money is None else {"cost": cost.money})
    job.log_work(values)
    with beside_the_result(f"the page {REPORT_FILE} of run {job.folder.path.name}"):
        facts = report_facts(trained, job.dataset, job.config, parity=parity)
        write_report(facts, job.folder.path / REPORT_FILE)
        job.tracked.log_file(job.folder.path / REPORT_FILE)
    return trained


def _cost(job: TrainingJob, attempts: tuple[Attempt, ...], seconds: Mapping[str, float]) -> Cost:
    beside = job.config.ranks_beside_workers
    reservation = Reservation(
        launches=run_history.read_curves(job.folder.events).launches,
        attempts=attempts,
        slots=job.cluster.slots() + beside,
        driver_cores=len(os.sched_getaffinity(0)),
        beside=beside,
        cores_per_slot=int(job.cluster.spark.conf.get("spark.task.cpus", "1") or 1),
    )
    return cost_of(seconds, reservation, job.config.price_per_core_hour)


def keep_delivery(trained: Trained, folder: RunFolder) -> None:
    """Write the result of a training to a file; its predictions and figures are in the same folder."""
    document = {
        "run_id": trained.run_id,
        "model_uri": trained.model_uri,
        "registered_model": trained.registered_model,
        "model_version": trained.model_version,
        "attempts": [asdict(attempt) for attempt in trained.attempts],
        "examples_per_second": trained.examples_per_second,
        "metrics": trained.verdict.metrics,
        "baseline": trained.verdict.baseline,
        "seconds": dict(trained.seconds),
        "cost": trained.cost and trained.cost.to_dict(),
        "chosen": trained.chosen,
        "calibration": trained.calibration,
        "decisions": trained.decisions,
        "run_page": trained.run_page,
        "base_rate": trained.verdict.base_rate,
        "withheld": trained.withheld,
        "leaderboard": list(trained.leaderboard),
        "rows": dict(trained.rows),
    }
    atomic_file.write_atomically(folder.delivered, json.dumps(clean(document), indent=2, default=float))


def recall_delivery(folder: RunFolder, store: str) -> Trained:
    """Return the result that :func:`keep_delivery` wrote; its figures show the images that were saved with it.

    Args:
        folder: Folder of a finished run.
        store: Its MLflow store.

    Raises:
        ResultLostError: A part of the result can no longer be read.
    """
    try:
        document = json.loads(folder.delivered.read_text(encoding="utf-8"))
        figures = {file.stem: figure_of_image(file.read_bytes()) for file in sorted(folder.plots.glob("*.png"))}
        compared = document.pop("metrics"), document.pop("baseline"), figures, document.pop("base_rate", {})
        verdict = evaluate_run.BaselineComparison(*compared)
        cost = document.pop("cost", None)
        attempts = tuple(map(Attempt.from_document, document.pop("attempts")))
        return Trained(
            **document,
            attempts=attempts,
            cost=Cost(**cost) if cost else None,
            verdict=verdict,
            predictions=_predictions(folder),
            run_folder=folder.path,
            tracking_uri=store,
            explanation=Explanation.load(folder.predictions / EXPLANATION_FILE),
        )
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ResultLostError(
            f"run {folder.path.name} has finished, but its results cannot be read ({error}); resume=False trains anew"
        ) from error


def recall_summary(folder: RunFolder, config: RunConfig, store: str) -> Summary:
    """Return the saved summary of a finished run, whose MLflow store is ``store``.

    Raises:
        ResultLostError: The summary can no longer be read.
    """
    file = folder.path / SUMMARY_FILE
    try:
        summary = Summary.load(file)
        if summary.status != "finished":
            raise ValueError(f"it describes a run that {summary.status}")  # noqa: TRY301 - as a damaged one
    except (OSError, ValueError, TypeError) as error:
        raise ResultLostError(
            f"run {folder.path.name} of {config.run_date} has finished, but {file} cannot be read ({error}); "
            f"--no-resume trains anew"
        ) from error
    # The folder may have moved since, and the file has no password of the store.
    return replace(summary, run_folder=str(folder.path), tracking_uri=store)


def _predictions(folder: RunFolder) -> dict[str, pa.Table]:
    return {split: pq.read_table(folder.predictions / f"{split}.parquet") for split in EVALUATED_SPLITS}


def _choice(job: TrainingJob) -> Choice | None:
    """Return the export's choice between the model and others; None where it had no choice."""
    if job.config.register != "better":
        return None
    return (RecommenderChoice if job.config.task == "retrieval" else Choice).load(job.folder.predictions)


def _export_plan(job: TrainingJob, best: LearntModel) -> ExportPlan:
    config = job.config
    return ExportPlan(
        dataset=str(job.dataset.path),
        checkpoint=str(best.path),
        model=config.model["name"],
        model_options=config.model_options,
        seed=config.seed,
        top_k=config.top_k,
        folder=str(job.folder.model),
        predictions=str(job.folder.predictions),
        tracking_uri=job.tracked.uri,
        registry_uri=job.tracked.registry_uri,
        mlflow_run_id=job.tracked.require_run_id(),
        # MLflow allows no dots in it.
        model_name=job.folder.path.name.replace(".", "_"),
        registered_model=config.registry_name,
        model_tags=_model_tags(job),
        threads=_threads(config),
        monitor=config.monitor,
        register=config.register,
        candidates=[{"name": asked.name, **asked.options} for asked in config.registrable],
        calibration=config.calibration,
        explain=config.explain,
        class_weights=list(job.class_factors),
        costs=list(map(list, job.costs)),
        monotone=config.monotone,
    )


def _model_tags(job: TrainingJob) -> dict[str, str]:
    spec = job.dataset.spec
    return {
        "run": job.folder.path.name,
        "recipe": job.config.name,
        "dataset": job.dataset.path.name,
        "label": spec.label.name,
        "architecture": str(job.config.model["name"]),
    }


def _threads(config: TrainingConfig) -> int:
    """Return the number of TensorFlow threads on the driver."""
    return config.threads_per_worker or os.cpu_count() or 1


def _describe_model(
    job: TrainingJob, exported: ExportResult, verdict: evaluate_run.BaselineComparison, choice: Choice | None
) -> None:
    dataset, name = job.dataset, job.config.registry_name
    card = model_card(
        f"models:/{name}/{exported.model_version}",
        str(job.config.model["name"]) if choice is None or choice.registered == NETWORK else choice.registered,
        job.folder.path.name,
        dataset.spec,
        dataset.path.name,
        {split: dataset.manifest.rows(split) for split in dataset.manifest.splits},
        verdict.metrics,
        verdict.compared,
    )
    job.tracked.describe_model(name, exported.model_version, exported.model_uri, card)
    if not job.tracked.is_users:
        job.tracked.log_tags({metric_requests.NOTE_TAG: card})


def _trained(
    job: TrainingJob,
    attempts: tuple[Attempt, ...],
    exported: ExportResult,
    verdict: evaluate_run.BaselineComparison,
    predictions: dict[str, pa.Table],
    choice: Choice | None,
) -> Trained:
    calibrated, rule = CalibrationResult.load(job.folder.model), decisions.Decisions.load(job.folder.model)
    rates = [event["examples_per_second"] for event in job.epochs.values() if event["examples_per_second"]]
    return Trained(
        run_id=job.tracked.require_run_id(),
        model_uri=exported.model_uri,
        registered_model=job.config.registry_name,
        model_version=exported.model_version,
        attempts=attempts,
        examples_per_second=round(median(rates), 1) if rates else None,
        verdict=verdict,
        predictions=predictions,
        run_folder=job.folder.path,
        tracking_uri=job.tracked.uri,
        chosen=choice.in_words() if choice else None,
        calibration=calibrated.in_words() if calibrated else None,
        decisions=rule.in_words(verdict.metrics["test"]) if rule else None,
        run_page=job.tracked.page,
        explanation=Explanation.load(job.folder.predictions / EXPLANATION_FILE),
        withheld=_withheld(job.config, verdict, choice),
        rows={split: job.dataset.manifest.rows(split) for split in job.dataset.manifest.splits},
        leaderboard=leaderboard_rows(
            *(verdict, choice),
            name=str(job.config.model["name"]),
            monitor=job.config.monitor,
            seconds=sum(event.get("seconds", 0.0) for event in job.epochs.values()) or None,
        ),
    )


def _withheld(config: TrainingConfig, verdict: evaluate_run.BaselineComparison, choice: Choice | None) -> str | None:
    """Return the reason why a version gets no alias: something is better than it; None for one that gets it."""
    # By register='better' the validation rows have chosen among these models already: test rows do not veto them again.
    judged = choice.others if choice else ()
    rest = as_baseline([entry for entry in each_baseline(verdict.compared) if entry["name"] not in judged])
    better = better_baseline(verdict.metrics, rest, config.monitor)
    if better is None or config.register == "always":
        return None
    return (
        f"This version has no alias, because {better}: improve the model, or register it with register='always' "
        f"(--register always)"
    )


def name_version(job: TrainingJob, trained: Trained) -> None:
    """Give the registered version its alias, or say why it gets none."""
    if trained.withheld is None:
        job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
    else:
        job.view.log(f"warning: {trained.withheld}")
