"""The main job, stage by stage: preflight, convert, train, score, parity. Returns what it found out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from data_pipelines.convert import DatasetExistsError, convert, dataset_address, is_published
from data_pipelines.dataset import Dataset
from data_pipelines.spark_errors import task_message
from data_pipelines.tables import find_tables, package_folder, query, register_tables, source_identity
from scoring.batch import score
from scoring.parity import ParityReport, join_on_keys, parity, ranking_parity
from training import preflight
from training.config import SQL_FILE, ConfigError, RunConfig
from training.live_view import LiveView
from training.spark_session import open_session
from training.summary import Summary
from training.train import CHALLENGER, Trained, TrainingJob, open_job, tracking_uri

SCORED_TABLE = "scores.parquet"


class ScoringFailedError(RuntimeError):
    """The test split could not be scored; the message is that of the first task that failed."""


class ParityFailedError(RuntimeError):
    """Spark's scores differ from the training framework's; the version stays in the registry without an alias."""


def dry_run(config: RunConfig) -> list[preflight.Check]:
    """Return the preflight's answers; start nothing but a Spark session."""
    checks = preflight.check_driver(Path(config.output), tracking_uri(config))
    if all(check.passed for check in checks):
        _source_files(config)
        spark = open_session(config.master, config.workers, verbose=config.verbose)
        checks += preflight.check_cluster(spark, config.workers)
    return checks


def run(config: RunConfig) -> Summary:
    """Do the main job and return its summary.

    Raises:
        Exception: The first error of the stage that failed. The MLflow run is then marked as failed, and the same
            command goes on from the last commit.
    """
    view = LiveView(epochs=config.epochs)
    with view.stage("preflight") as stage:
        preflight.require(preflight.check_driver(Path(config.output), tracking_uri(config)))
        files = _source_files(config)
        spark = open_session(config.master, config.workers, verbose=config.verbose)
        checks = preflight.check_cluster(spark, config.workers)
        preflight.require(checks)
        stage.note = f"{checks[0].name}: {checks[0].detail}"
    with view.stage("convert", spark=spark) as stage:
        table = recipe_table(spark, config)
        dataset, is_reused = _dataset(config, table, files)
        rows = ", ".join(f"{dataset.manifest.rows(split):,} {split}" for split in dataset.manifest.splits)
        stage.note = f"{'reused the dataset of an earlier run:' if is_reused else 'wrote'} {rows} rows"
    with open_job(dataset, config, spark, view) as job:
        trained = job.run()
        scored_table = trained.run_folder / SCORED_TABLE
        with view.stage("score", spark=spark) as stage:
            scores = _scored(spark, table, trained, dataset, config, scored_table)
            stage.note = f"{scores.num_rows:,} rows of the test split"
        with view.stage("parity") as stage:
            report = _parity(config.task, dataset, trained.predictions["test"], scores)
            _log_parity(job, report)
            stage.note = f"max difference {report.max:.1e}"
        require_parity(report)
        job.tracked.name_version(trained.registered_model, trained.model_version, CHALLENGER)
    return _summary(config, dataset, is_reused, trained, report, view, scored_table)


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
    how = {"tables": config.tables, "csv_null": config.csv_null}
    source: dict[str, Any] = {**how, **source_identity(files, config.sql)}
    address = dataset_address(source, config.spec, config.conversion)
    path = Path(config.output).absolute() / "datasets" / f"{config.name}-{address}"
    if is_published(path):
        return Dataset.open(path), True
    try:
        return convert(table, config.spec, path, source=source, options=config.conversion), False
    except DatasetExistsError:  # an equal command was quicker
        return Dataset.open(path), True


def _scored(
    spark: SparkSession, table: DataFrame, trained: Trained, dataset: Dataset, config: RunConfig, target: Path
) -> pa.Table:
    """Score the test split with the registered version, write the table and return it."""
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
    return parity(reference["score"].to_numpy(), candidate["score"].to_numpy(), keys=keys)


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


def _summary(
    config: RunConfig,
    dataset: Dataset,
    is_reused: bool,
    trained: Trained,
    report: ParityReport,
    view: LiveView,
    scored_table: Path,
) -> Summary:
    manifest = dataset.manifest
    return Summary(
        status="finished",
        run_id=trained.run_id,
        experiment=config.experiment or config.name,
        model_uri=trained.model_uri,
        registered_model=trained.registered_model,
        model_version=trained.model_version,
        metrics=trained.verdict.metrics,
        baseline=trained.verdict.baseline,
        parity={"max": report.max, "mean": report.mean, "p99": report.p99, "rows": report.rows},
        timings={name: round(seconds, 2) for name, seconds in view.timings.items()},
        examples_per_second=trained.examples_per_second,
        workers=config.workers,
        attempts=len(trained.attempts),
        dataset={
            "path": str(dataset.path),
            "rows": {split: manifest.rows(split) for split in manifest.splits},
            "bytes": manifest.bytes,
            "layout": manifest.layout,
            "reused": is_reused,
        },
        scored_table=str(scored_table),
        run_folder=str(trained.run_folder),
        tracking_uri=trained.tracking_uri,
    )
