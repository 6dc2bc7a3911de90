"""The delivery of a trained model: it is exported, registered, evaluated and reported."""

import os
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import pyarrow as pa
from mlflow.utils.autologging_utils import disable_autologging

from mirrorspark.callbacks.mlflow import metric_requests
from mirrorspark.models import decisions
from mirrorspark.pages import beside_the_result
from mirrorspark.training.job import TrainingJob
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.alias import reason_for_no_alias
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
from mirrorspark.training.results.export_plan import ExportResult, plan_export
from mirrorspark.training.results.predictions import read_predictions
from mirrorspark.training.results.report import (
    REPORT_FILE,
    Cost,
    Reservation,
    cost_of,
    each_baseline,
    leaderboard_rows,
    model_card,
    report_facts,
    write_report,
)
from mirrorspark.training.results.trained import Trained
from mirrorspark.training.results.verdict import evaluate, log_verdict
from mirrorspark.training.run_records import run_history


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
        plan = plan_export(job, best)
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
        predictions = read_predictions(job.folder.predictions)
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
    beside, spark = job.config.ranks_beside_workers, job.cluster.spark
    reservation = Reservation(
        launches=run_history.read_curves(job.folder.events).launches,
        attempts=attempts,
        slots=job.cluster.slots() + beside,
        driver_cores=len(os.sched_getaffinity(0)),
        beside=beside,
        cores_per_slot=1 if spark is None else int(spark.conf.get("spark.task.cpus", "1") or 1),
    )
    return cost_of(seconds, reservation, job.config.price_per_core_hour)


def _choice(job: TrainingJob) -> Choice | None:
    """Return the export's choice between the model and others; None where it had no choice."""
    if job.config.register != "better":
        return None
    return (RecommenderChoice if job.config.task == "retrieval" else Choice).load(job.folder.predictions)


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
        withheld=reason_for_no_alias(job.config, verdict, choice),
        rows={split: job.dataset.manifest.rows(split) for split in job.dataset.manifest.splits},
        leaderboard=leaderboard_rows(
            *(verdict, choice),
            name=str(job.config.model["name"]),
            monitor=job.config.monitor,
            seconds=sum(event.get("seconds", 0.0) for event in job.epochs.values()) or None,
        ),
    )
