"""The main job, stage by stage: preflight, convert, train, score, parity. Returns what it found out."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from data_pipelines.convert import (
    DatasetExistsError,
    convert,
    dataset_address,
    read_profile,
)
from data_pipelines.dataset import Dataset
from data_pipelines.manifest import is_published
from data_pipelines.quality.dataset_page import PAGE_FILE
from data_pipelines.quality.profile import DatasetProfile
from data_pipelines.spark_errors import task_message
from data_pipelines.tables import find_tables, package_folder, query, register_tables, source_identity
from scoring.batch import score
from scoring.model_uri import PinnedModel
from scoring.parity import ParityReport, join_on_keys, parity, ranking_parity
from training.config import SQL_FILE, ConfigError, RunConfig
from training.live.view import LiveView
from training.readiness import preflight
from training.records.run_folder import finished_for_date
from training.records.run_history import SUMMARY_FILE, read_curves
from training.results import delivery
from training.results.delivery import ExportAhead, ResultLostError, Trained
from training.results.export import ExportProcess
from training.results.summary import CHALLENGER, Summary, findings_in_words
from training.spark_session import open_session
from training.supervision.failure_policy import Attempt
from training.supervision.supervisor import TrainingFailedError, TrainingStoppedError
from training.train import cluster_checks
from training.training_job import TrainingJob, open_job, tracking_uri
from training.warm_start import find_model

SCORED_TABLE = "scores.parquet"


class ScoringFailedError(RuntimeError):
    """The test split could not be scored; the message is that of the first task that failed."""


class ParityFailedError(RuntimeError):
    """Spark's scores differ from the training framework's; the version stays in the registry without an alias."""


def dry_run(config: RunConfig) -> list[preflight.Check]:
    """Return the preflight's answers; start nothing but a Spark session."""
    checks = preflight.check_driver(Path(config.output), tracking_uri(config), config.master)
    if all(check.passed for check in checks):
        _source_files(config)
        find_model(config, tracking_uri(config))
        spark = open_session(config.master, config.slots, verbose=config.verbose)
        checks += cluster_checks(spark, config)
    return checks


@dataclass(frozen=True)
class Prepared:
    """What a training starts from.

    Attributes:
        spark: The session.
        table: The recipe's table.
        dataset: Its examples.
        is_reused: Whether an earlier run converted them.
        warm_start: The model that the training begins from, where one was looked for.
    """

    spark: SparkSession
    table: DataFrame
    dataset: Dataset
    is_reused: bool
    warm_start: PinnedModel | None = None


def run(config: RunConfig, tell: Callable[[Summary], None] = lambda summary: None) -> Summary:
    """Do the main job and return its summary; that of the run that has finished, where ``config`` has its run date.

    Args:
        config: The run.
        tell: Gets what is known of the run so far, whenever that is more, and last before an error comes out of here:
            whoever waits for the summary wants to know which run it was that failed. Of a run that had finished before
            all is known at once.

    Raises:
        Exception: The first error of the stage that failed. The MLflow run is then marked as failed, and the same
            command goes on from the last commit.
    """
    view = LiveView(epochs=config.epochs)
    # Where the data has been converted, Spark need not start for it.
    if (finished := _finished_for_date(config, _converted(config), view)) is not None:
        tell(finished)
        return finished
    prepared = prepare(config, view)
    if (finished := _finished_for_date(config, prepared.dataset, view)) is not None:
        tell(finished)
        return finished
    with (
        ExportAhead(config) as ahead,
        open_job(
            prepared.dataset,
            config,
            prepared.spark,
            view,
            listener=ahead.on_event,
            warm_start=prepared.warm_start,
        ) as job,
    ):
        tell(_begun(config, prepared, job))
        attempts: tuple[Attempt, ...] = ()
        try:
            job.tracked.log_text((prepared.dataset.path / PAGE_FILE).read_text(encoding="utf-8"), PAGE_FILE)
            attempts = job.train()
            summary = deliver(job, attempts, prepared, config, ahead.process)
            if config.run_date is not None:
                # Before the run counts as finished: whoever asks for its date again gets this.
                summary.save(job.folder.path / SUMMARY_FILE)
        except BaseException as error:
            if isinstance(error, TrainingFailedError | TrainingStoppedError):
                attempts = error.attempts
            tell(_with_attempts(_begun(config, prepared, job), attempts, job))
            raise
    # What MLflow could not be told is known only when the run has ended.
    return replace(summary, replay=job.run.replay)


def _finished_for_date(config: RunConfig, dataset: Dataset | None, view: LiveView) -> Summary | None:
    """Return the summary of the run of this configuration, date included, that has finished on ``dataset``.

    Raises:
        RunUnderWayError: Another driver is at work on it.
        ResultLostError: What it found out cannot be read any more.
    """
    folder = finished_for_date(config, dataset, view)
    if folder is None:
        return None
    file = folder.path / SUMMARY_FILE
    try:
        summary = Summary.load(file)
        if summary.status != "finished":
            raise ValueError(f"it tells of a run that {summary.status}")  # noqa: TRY301 - as lost as a damaged one
    except (OSError, ValueError, TypeError) as error:
        raise ResultLostError(
            f"run {folder.path.name} of {config.run_date} has finished, but {file} cannot be read ({error}); "
            f"--no-resume trains anew"
        ) from error
    # Where the folder lies now; and a password of the store is in no file.
    return replace(summary, run_folder=str(folder.path), tracking_uri=tracking_uri(config))


def _converted(config: RunConfig) -> Dataset | None:
    """Return the dataset of a run with a date where it is there already, which takes no Spark to see."""
    if not config.only_once:
        return None
    path = _inputs(config, _source_files(config)).path
    return Dataset.open(path) if is_published(path) else None


def prepare(config: RunConfig, view: LiveView, *, slots: int | None = None) -> Prepared:
    """Check everything, open the session, and convert the recipe's table, or find what an earlier run converted.

    Args:
        config: The run.
        view: Shows it.
        slots: Size of a local session; by default a slot for each of the most workers.
    """
    spark, files, warm_start = _checked(config, view, slots or config.slots)
    with view.stage("convert", spark=spark) as stage:
        table = recipe_table(spark, config)
        dataset, is_reused = _dataset(config, table, files)
        rows = ", ".join(f"{dataset.manifest.rows(split):,} {split}" for split in dataset.manifest.splits)
        stage.note = f"{'reused the dataset of an earlier run:' if is_reused else 'wrote'} {rows} rows"
        if dataset.manifest.findings:
            stage.note += f"; validation: {findings_in_words(dataset.manifest.findings)}"
    return Prepared(spark, table, dataset, is_reused, warm_start)


def deliver(
    job: TrainingJob,
    attempts: tuple[Attempt, ...],
    prepared: Prepared,
    config: RunConfig,
    process: ExportProcess | None = None,
) -> Summary:
    """Export, register and judge what was trained, score the test split with it and compare."""
    trained = delivery.deliver(job, attempts, process)
    report = _score_and_compare(job, trained, prepared.table, config)
    begun = _with_attempts(_begun(config, prepared, job), trained.attempts, job)
    return _finished(begun, trained, report)


def _checked(config: RunConfig, view: LiveView, slots: int) -> tuple[SparkSession, dict[str, Path], PinnedModel | None]:
    """Return the session, the source files and the model to begin from, once every check has passed."""
    with view.stage("preflight") as stage:
        driver_checks = preflight.check_driver(Path(config.output), tracking_uri(config), config.master)
        preflight.require(driver_checks)
        files = _source_files(config)
        warm_start = find_model(config, tracking_uri(config))
        spark = open_session(config.master, slots, verbose=config.verbose)
        checks = cluster_checks(spark, config)
        preflight.require(checks)
        warnings = [f"{check.name}: {check.detail}" for check in (*driver_checks, *checks) if check.is_warning]
        stage.note = "; ".join([f"{checks[0].name}: {checks[0].detail}", *warnings])
    return spark, files, warm_start


def _score_and_compare(job: TrainingJob, trained: Trained, table: DataFrame, config: RunConfig) -> ParityReport:
    """Score the test split, hold it against the training framework's own scores, and give the version its alias.

    Raises:
        ScoringFailedError: A task failed.
        ParityFailedError: The scores differ.
    """
    with job.view.stage("score", spark=job.spark) as stage:
        scores = _scored(job.spark, table, trained, job.dataset, config)
        stage.note = f"{scores.num_rows:,} rows of the test split"
    with job.view.stage("parity") as stage:
        report = _parity(config.task, job.dataset, trained.predictions["test"], scores)
        _log_parity(job, report)
        stage.note = f"max difference {report.max:.1e}"
    require_parity(report)
    job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
    return report


def recipe_table(spark: SparkSession, config: RunConfig) -> DataFrame:
    """Return the table that the recipe's query builds from its source tables.

    Raises:
        SourceError: A table has no file, cannot be read, or the query cannot be run.
    """
    unpacked = Path(config.output).absolute() / "sources"
    register_tables(spark, _source_files(config), config.tables, unpacked=unpacked, csv_null=config.csv_null)
    return query(spark, config.sql, SQL_FILE)


def _source_files(config: RunConfig) -> dict[str, Path]:
    if config.data is None and config.data_package is None:
        raise ConfigError(f"recipe '{config.name}' brings no data; give the folder with its tables as --data")
    if config.data is not None:
        return find_tables(Path(config.data), config.tables)
    return find_tables(package_folder(str(config.data_package), config.data_package_folder), config.tables)


def _dataset(config: RunConfig, table: DataFrame, files: Mapping[str, Path]) -> tuple[Dataset, bool]:
    """Return the dataset of these inputs, converted now or by an earlier run, and whether it was there already."""
    given = _inputs(config, files)
    if is_published(given.path):
        return Dataset.open(given.path), True
    try:
        converted = convert(
            table, config.spec, given.path, source=given.source, options=config.conversion, reference=given.reference
        )
    except DatasetExistsError:  # an equal command was quicker
        return Dataset.open(given.path), True
    return converted, False


@dataclass(frozen=True)
class _Inputs:
    """What a dataset is made of, and the place that follows from it."""

    path: Path
    source: Mapping[str, Any]
    reference: DatasetProfile | None


def _inputs(config: RunConfig, files: Mapping[str, Path]) -> _Inputs:
    how = {"tables": config.tables, "csv_null": config.csv_null}
    source: dict[str, Any] = {**how, **source_identity(files, config.sql)}
    reference = read_profile(config.reference_dataset) if config.reference_dataset else None
    if reference is not None:
        # What is reported of drift is part of the dataset, so another reference makes another one.
        document = json.dumps(reference.to_dict(), sort_keys=True)
        source["reference"] = hashlib.sha256(document.encode()).hexdigest()[:16]
    address = dataset_address(source, config.spec, config.conversion)
    return _Inputs(Path(config.output).absolute() / "datasets" / f"{config.name}-{address}", source, reference)


def _scored(spark: SparkSession, table: DataFrame, trained: Trained, dataset: Dataset, config: RunConfig) -> pa.Table:
    """Score the test split with the registered version, write the table and return it."""
    target = trained.run_folder / SCORED_TABLE
    test = table.where(F.col(config.conversion.split_column) == "test")
    scored = score(test, trained.model, keys=list(dataset.spec.keys), batch_size=config.scoring_batch_size)
    try:
        scored.write.mode("overwrite").parquet(str(target))
    except PySparkException as error:
        raise ScoringFailedError(f"scoring failed: {task_message(error)}") from error
    return spark.read.parquet(str(target)).toArrow()


def _parity(task: str, dataset: Dataset, reference: pa.Table, scores: pa.Table) -> ParityReport:
    reference, candidate = join_on_keys(reference, scores, dataset.spec.keys)
    keys = {key: reference[key].to_numpy() for key in dataset.spec.keys}
    if task == "retrieval":
        lists = [table[name].to_pylist() for name in ("candidates", "scores") for table in (reference, candidate)]
        return ranking_parity(*lists, keys=keys)
    if task == "multi_label":
        # Among millions of probabilities some lie on a threshold's edge; who decides by one chooses one per label.
        by_label = [_by_label(table["scores"], dataset.features.class_names) for table in (reference, candidate)]
        return parity(*by_label, keys=keys, threshold=None)
    return parity(reference["score"].to_numpy(), candidate["score"].to_numpy(), keys=keys)


def _by_label(scores: pa.ChunkedArray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    columns = scores.combine_chunks().flatten().to_numpy().reshape(-1, len(labels)).T
    return dict(zip(labels, columns, strict=True))


def require_parity(report: ParityReport) -> None:
    """Raise ``ParityFailedError`` unless Spark's scores are the training framework's."""
    if not report.passed:
        worst = report.worst[0] if report.worst else "none"
        raise ParityFailedError(
            f"the scores differ by up to {report.max:.1e} from the training framework's, on {report.above_tolerance} "
            f"of {report.rows} rows by more than {report.tolerance:.0e}; worst: {worst}. The model gets no alias: see "
            f"parity.txt of its MLflow run"
        )


def _log_parity(job: TrainingJob, report: ParityReport) -> None:
    job.log_metrics({"parity_max": report.max, "parity_mean": report.mean})
    job.tracked.log_document(report.to_dict(), "parity.json")
    job.tracked.log_text(report.as_table(), "parity.txt")


def _begun(config: RunConfig, prepared: Prepared, job: TrainingJob) -> Summary:
    """Return what is known before the training."""
    dataset = prepared.dataset
    manifest = dataset.manifest
    return Summary(
        status="running",
        run_id=job.tracked.run_id,
        experiment=config.experiment or config.name,
        timings=_seconds(job.view),
        dataset={
            "path": str(dataset.path),
            "rows": {split: manifest.rows(split) for split in manifest.splits},
            "bytes": manifest.bytes,
            "layout": manifest.layout,
            "reused": prepared.is_reused,
            "page": str(dataset.path / PAGE_FILE),
            "findings": [dict(finding) for finding in manifest.findings],
        },
        run_folder=str(job.folder.path),
        tracking_uri=job.tracked.uri,
        warm_start=_warm_start(job),
    )


def _warm_start(job: TrainingJob) -> dict[str, Any]:
    """Return what the training begins from, and, once that is known, how much of it was taken."""
    if job.warm_start is None:
        return {}
    told = ("weights", "of_weights", "tokens", "of_tokens")
    found: dict[str, Any] = {name: number for name, number in (job.taken or {}).items() if name in told}
    return {"model": job.warm_start.uri} | found


def _with_attempts(summary: Summary, attempts: Sequence[Attempt], job: TrainingJob) -> Summary:
    """Return the summary with what the launches so far tell; an attempt that could not be launched had no workers."""
    workers = [attempt.workers for attempt in attempts if attempt.workers]
    # Earlier drivers have launched some, of which the events know.
    launches = max(len(attempts), read_curves(job.folder.events).attempts)
    return replace(summary, workers=workers[-1] if workers else None, attempts=launches or None)


def _finished(begun: Summary, trained: Trained, report: ParityReport) -> Summary:
    return replace(
        begun,
        status="finished",
        model_uri=trained.model_uri,
        registered_model=trained.registered_model,
        model_version=trained.model_version,
        metrics=trained.verdict.metrics,
        baseline=trained.verdict.baseline,
        parity={name: getattr(report, name) for name in ("max", "mean", "p99", "rows", "passed")},
        examples_per_second=trained.examples_per_second,
        scored_table=str(trained.run_folder / SCORED_TABLE),
    )


def _seconds(view: LiveView) -> dict[str, float]:
    return {name: round(seconds, 2) for name, seconds in view.timings.items()}
