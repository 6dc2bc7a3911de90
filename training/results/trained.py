"""The result of a training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from mirrorspark.scoring.model.stored import PinnedModel, resolve
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.evaluation import Explanation, evaluate_run
from mirrorspark.training.results.report import Cost, Leaderboard, PagePath, report_of, trained_html, trained_text


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
        seconds: Seconds per stage, with the start and the time between stages; empty until the report is written.
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
