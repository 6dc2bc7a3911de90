"""The facts that the report of a run shows, from its result."""

from typing import TYPE_CHECKING

from mirrorspark.data_pipelines import read_profile
from mirrorspark.data_pipelines.dataset import DatasetError
from mirrorspark.data_pipelines.quality import DatasetProfile, rate_name
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.training.configuration import TrainingConfig, few_updates
from mirrorspark.training.results.evaluation import Explanation
from mirrorspark.training.results.report.report import ReportFacts, rates_of

if TYPE_CHECKING:
    from mirrorspark.training.results.trained import Trained


def report_facts(
    trained: "Trained",
    dataset: Dataset,
    config: TrainingConfig,
    *,
    parity: str | None = None,
    explanation: Explanation | None = None,
) -> ReportFacts:
    """Return the facts that the report of a run shows.

    Args:
        trained: The training's result.
        dataset: Its dataset.
        config: Its settings.
        parity: The comparison of Spark's scores with the training framework's, in words.
        explanation: The features' influence on the predictions; by default the one measured after the training.
    """
    facts = {
        "model": trained.version_uri,
        "prediction": dataset.spec.label.prediction,
        "architecture": str(config.model["name"]),
        "MLflow run": trained.run_id,
        "attempts": str(len(trained.attempts)),
        "dataset": dataset.path.name,
    }
    if not config.is_fitted:
        facts["strategy"] = config.strategy_name
    if trained.examples_per_second is not None:
        facts["speed"] = f"{trained.examples_per_second:,.0f} examples/s"
    if trained.chosen is not None:
        facts["registered"] = trained.chosen
    if trained.calibration is not None:
        facts["calibration"] = trained.calibration
    if trained.decisions is not None:
        facts["decisions"] = trained.decisions
    if parity is not None:
        facts["parity"] = parity
    if (warning := few_updates(config, dataset.manifest.rows("train"))) is not None:
        facts["warning"] = warning
    manifest, profile = dataset.manifest, _profile(dataset)
    label = profile.column(dataset.spec.label.name) if profile else None
    return ReportFacts(
        title=f"{trained.registered_model} {trained.model_version}",
        metrics=trained.verdict.metrics,
        baseline=trained.verdict.baseline,
        figures=trained.verdict.figures,
        rows={split: manifest.rows(split) for split in manifest.splits},
        findings=[dict(finding) for finding in manifest.findings],
        seconds=trained.seconds,
        cost=trained.cost,
        facts=facts,
        rates=rates_of(profile) if profile else (),
        rate_name=rate_name(label) if label else "",
        settings=config.public(),
        explanation=explanation or trained.explanation,
        base_rate=trained.verdict.base_rate,
        withheld=trained.withheld,
        leaderboard=trained.leaderboard,
    )


def _profile(dataset: Dataset) -> DatasetProfile | None:
    """Return the profile of a dataset; None for one that has none, or one of another version."""
    try:
        return read_profile(dataset.path)
    except DatasetError:
        return None
