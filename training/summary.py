"""What a run tells at its end: a JSON document for machines, a short table for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from callbacks.credentials import without_credentials


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        status: ``finished`` or ``failed``.
        error: The first error of a failed run.
        run_id: MLflow run.
        experiment: MLflow experiment.
        model_uri: Where MLflow keeps the model.
        registered_model: Its name in the registry.
        model_version: Its version there.
        metrics: Per split (``validation``, ``test``) the metrics.
        baseline: Name and test metrics of the baseline.
        parity: Absolute differences between training framework and Spark scorer: max, mean, p99, rows.
        timings: Seconds per stage.
        examples_per_second: Median over the training's epochs, all workers together.
        workers: Workers that trained.
        attempts: Launches it took.
        dataset: Path, rows per split, bytes, layout, and whether it was there already.
        scored_table: Parquet folder with keys, scores and model version.
        run_folder: Configuration, events, checkpoints and results of this run.
        tracking_uri: MLflow store.
    """

    status: str
    error: str | None = None
    run_id: str | None = None
    experiment: str | None = None
    model_uri: str | None = None
    registered_model: str | None = None
    model_version: str | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    examples_per_second: float | None = None
    workers: int | None = None
    attempts: int | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)
    scored_table: str | None = None
    run_folder: str | None = None
    tracking_uri: str | None = None

    def save(self, path: Path) -> None:
        """Write the JSON document."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = asdict(self) | {"tracking_uri": without_credentials(self.tracking_uri or "") or None}
        path.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")

    def as_text(self) -> str:
        """Return the table that ends a run."""
        headline = {
            "binary": ("auc", "pr_auc", "log_loss"),
            "retrieval": ("recall_at_20", "ndcg_at_20", "recall_at_10"),
        }
        test = self.metrics.get("test", {})
        names = next((names for names in headline.values() if names[0] in test), tuple(test)[:3])
        reference = self.baseline.get("metrics", {})
        lines = [f"{'':<14}{'validation':>12}{'test':>12}{self.baseline.get('name', ''):>26}"]
        for name in names:
            cells = (self.metrics.get("validation", {}).get(name), test.get(name))
            row = "".join(f"{'':>12}" if cell is None else f"{cell:>12.4f}" for cell in cells)
            lines.append(f"{name:<14}{row}" + (f"{reference[name]:>26.4f}" if name in reference else ""))
        places = {
            "parity": f"max {self.parity['max']:.1e} over {self.parity['rows']:,} rows" if self.parity else None,
            "attempts": str(self.attempts),
            "model": f"models:/{self.registered_model}/{self.model_version} (alias challenger)",
            "scores": self.scored_table,
            "dataset": self.dataset.get("path"),
            "run folder": self.run_folder,
            "compare runs": _way_to_the_ui(self.tracking_uri or ""),
        }
        lines += ["", *(f"{name:<14}{value}" for name, value in places.items() if value)]
        return "\n".join(lines)


def _way_to_the_ui(tracking_uri: str) -> str:
    shown = without_credentials(tracking_uri)
    return f"open {shown}" if tracking_uri.startswith("http") else f"mlflow ui --backend-store-uri {shown}"
