"""The test split, scored on Spark by the registered model and compared with the training framework's own scores."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.scoring import score
from mirrorspark.scoring.parity import ParityReport, join_on_keys, parity, ranking_parity
from mirrorspark.spark_session import task_message, versions
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.job import TrainingJob
from mirrorspark.training.results.alias import name_version
from mirrorspark.training.results.trained import Trained

SCORED_TABLE = "scores.parquet"


class ScoringFailedError(ClearError, RuntimeError):
    """The test split could not be scored; the message is that of the first task that failed."""


class ParityFailedError(ClearError, RuntimeError):
    """Spark's scores differ from the training framework's; the version stays in the registry without an alias."""


def score_and_compare(job: TrainingJob, trained: Trained, table: DataFrame, config: RunConfig) -> ParityReport:
    """Score the test split, compare it with the training framework's own scores, and give the version its alias.

    Raises:
        ScoringFailedError: A task failed.
        ParityFailedError: The scores differ.
    """
    spark = job.cluster.session()
    with job.view.stage("score", spark=spark) as stage:
        scores = _scored(spark, table, trained, job.dataset, config)
        stage.note = f"{scores.num_rows:,} rows of the test split"
    with job.view.stage("parity") as stage:
        report = _parity(config.task, job.dataset, trained.predictions["test"], scores)
        _log_parity(job, report)
        stage.note = f"max difference {report.max:.1e}"
    require_parity(report)
    name_version(job, trained)
    return report


def _scored(spark: SparkSession, table: DataFrame, trained: Trained, dataset: Dataset, config: RunConfig) -> pa.Table:
    """Score the test split with the registered version, write the table and return it."""
    target = trained.run_folder / SCORED_TABLE
    test = table.where(F.col(config.conversion.split_column) == "test")
    scored = score(
        test, trained.model, keys=list(dataset.spec.keys), outputs="columns", batch_size=config.scoring_batch_size
    )
    try:
        scored.write.mode("overwrite").parquet(str(target))
    except PySparkException as error:
        raise ScoringFailedError(f"scoring failed: {task_message(error)}") from error
    return versions.arrow_table(spark.read.parquet(str(target)))


def _parity(task: str, dataset: Dataset, reference: pa.Table, scores: pa.Table) -> ParityReport:
    reference, candidate = join_on_keys(reference, scores, dataset.spec.keys)
    keys = {key: reference[key].to_numpy() for key in dataset.spec.keys}
    if task == "retrieval":
        lists = [table[name].to_pylist() for name in ("candidates", "scores") for table in (reference, candidate)]
        return ranking_parity(*lists, keys=keys)
    if task == "multi_label":
        # Of millions of probabilities some lie on a threshold's edge; thresholds are chosen per label by the user.
        by_label = [_by_label(table["scores"], dataset.features.class_names) for table in (reference, candidate)]
        return parity(*by_label, keys=keys, threshold=None)
    if task == "multi_class":
        by_class = [_by_label(table["scores"], dataset.features.class_names) for table in (reference, candidate)]
        return parity(*by_class, keys=keys, threshold=None)
    if task == "regression":
        # In units of the label's spread, as probabilities are in units of their range.
        statistics = dataset.features.statistics[dataset.spec.label.name]
        scale = max(statistics.standard_deviation, abs(statistics.mean)) or 1.0
        columns = [_numbers(table, scale) for table in (reference, candidate)]
        return parity(*columns, keys=keys, threshold=None)
    return parity(reference["score"].to_numpy(), candidate["score"].to_numpy(), keys=keys)


def _numbers(table: pa.Table, scale: float) -> dict[str, np.ndarray]:
    """Return the score, and every quantile that there is, in units of ``scale``."""
    numbers = {"score": table["score"].to_numpy() / scale}
    if "quantiles" in table.column_names:
        lists = table["quantiles"].combine_chunks()
        of_rows = lists.flatten().to_numpy().reshape(len(lists), -1) / scale
        numbers |= {f"quantile {number}": column for number, column in enumerate(of_rows.T, 1)}
    return numbers


def _by_label(scores: pa.ChunkedArray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    columns = scores.combine_chunks().flatten().to_numpy().reshape(-1, len(labels)).T
    return dict(zip(labels, columns, strict=True))


def require_parity(report: ParityReport) -> None:
    """Raise ``ParityFailedError`` unless Spark's scores agree with the training framework's."""
    if not report.passed:
        worst = report.worst[0] if report.worst else "none"
        raise ParityFailedError(
            f"the scores differ by up to {report.max:.1e} from the training framework's, on {report.above_tolerance} "
            f"of {report.rows} rows by more than {report.tolerance:.0e}; worst: {worst}. The model gets no alias: see "
            f"parity.txt of its MLflow run"
        )


def _log_parity(job: TrainingJob, report: ParityReport) -> None:
    job.log_work({"parity_max": report.max, "parity_mean": report.mean})
    job.tracked.log_document(report.to_dict(), "parity.json")
    job.tracked.log_text(report.as_table(), "parity.txt")
