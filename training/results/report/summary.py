"""The summary at a run's end: a JSON document for machines, a short table for people."""

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

from mirrorspark.storage import atomic_file, clean, terminal_text, without_credentials
from mirrorspark.training.protocol.outcomes import findings_in_words
from mirrorspark.training.results.report.baselines import each_baseline
from mirrorspark.training.run_records import run_history

# The registry's alias of the version that a run registers.
CHALLENGER = "challenger"


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        status: ``finished``, ``failed``, or ``stopped`` on request.
        error: The first error of a failed run, or the point at which a run was stopped.
        run_id: MLflow run.
        experiment: MLflow experiment.
        model_uri: The model in MLflow.
        registered_model: Its name in the registry.
        metrics: Metrics by split (``validation``, ``test``).
        baseline: Name and test metrics of the baseline; of several, of the first one, and the others in ``others``.
        parity: Absolute differences between training framework and Spark scorer: max, mean, p99, rows; and ``passed``.
        timings: Seconds per stage, with the start and the time between stages: they add up to the time so far.
        cost: Core-seconds per stage and in total; money where ``price_per_core_hour`` is set.
        examples_per_second: Median over the training's epochs, all workers together.
        workers: Workers of the last launch; with elastic workers, earlier ones may have had others.
        attempts: Number of launches, including those of earlier drivers.
        dataset: Path, rows per split, bytes, layout, if it was reused, its page, and the findings of validation.
        scored_table: Parquet folder with keys, scores and model version.
        run_folder: Configuration, events, checkpoints and results of this run.
        tracking_uri: MLflow store.
        run_page: Address of the run in MLflow's pages; None for a store that serves none.
        compare_page: Address of the page that compares the experiment's runs, the monitored metric first.
        replay: Command that sends MLflow the records it missed; None if it has them all.
        warm_start: The model that the training began from, and the numbers of its weights and tokens that were taken;
            empty for random initial weights.
        chosen: Why this model was registered, where ``register`` is ``better``.
        calibration: The calibration and its effect, in words, where there is one.
        decisions: The rule of decisions by cost and its cost, in words, where there is one.
        warnings: Findings about the settings, each with its remedy.
        verdict: Comparison with the baselines, or with the base rate, in sentences.
        withheld: The reason, with the remedy, why the version has no alias; None where it has one.
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
    cost: Mapping[str, Any] = field(default_factory=dict)
    examples_per_second: float | None = None
    workers: int | None = None
    attempts: int | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)
    scored_table: str | None = None
    run_folder: str | None = None
    tracking_uri: str | None = None
    run_page: str | None = None
    compare_page: str | None = None
    replay: str | None = None
    warm_start: Mapping[str, Any] = field(default_factory=dict)
    chosen: str | None = None
    calibration: str | None = None
    decisions: str | None = None
    warnings: Sequence[str] = field(default_factory=list)
    verdict: Sequence[str] = field(default_factory=list)
    withheld: str | None = None

    def save(self, path: Path) -> None:
        """Do :func:`save_document` with all fields."""
        save_document(asdict(self), path)

    @classmethod
    def load(cls, path: Path) -> "Summary":
        """Read a document that :meth:`save` wrote.

        Raises:
            OSError: There is no document.
            ValueError: It is damaged.
            TypeError: It is not a summary, or one of another version.
        """
        return cls(**_with_numbers(json.loads(path.read_text(encoding="utf-8"))))

    def as_text(self, stream: TextIO | None = None) -> str:
        """Return the table that ends a run; for a terminal with sentences that are broken to its width."""
        lines = verdict_lines(self.metrics, self.baseline)
        alias = "no alias" if self.withheld else f"alias {CHALLENGER}"
        model = f"models:/{self.registered_model}/{self.model_version} ({alias})"
        sentences = [*self.verdict, *([self.withheld] if self.withheld else [])] if self.verdict else []
        shown = sentences if stream is None else [terminal_text.for_stream(one, stream) for one in sentences]
        lines += ["", *shown] if shown else []
        places = {
            "parity": _parity_in_words(self.parity) if self.parity else None,
            "warm start": _warm_start_in_words(self.warm_start),
            "attempts": str(self.attempts) if self.attempts else None,
            "model": model if self.model_version else None,
            "registered": self.chosen,
            "calibration": self.calibration,
            "decisions": self.decisions,
            "scores": self.scored_table,
            "dataset": self.dataset.get("path"),
            "data quality": _data_quality(self.dataset),
            "run folder": self.run_folder,
            "send metrics": self.replay,
            "MLflow run": self.run_page,
            "compare runs": self._way_to_compare(),
        }
        named = [
            *((name, value) for name, value in places.items() if value),
            *(("warning", one) for one in self.warnings),
        ]
        lines += ["", *(f"{name:<14}{value}" for name, value in named)]
        return "\n".join(lines)

    def _way_to_compare(self) -> str:
        way = _way_to_the_ui(self.tracking_uri or "", self.run_page)
        if self.compare_page is None or self.run_page is not None:
            return self.compare_page or way
        return f"{way}\n{'then open':<14}{self.compare_page}"


def verdict_lines(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> list[str]:
    """Return the table of a model's metrics on the validation and test splits, next to those of its baselines."""
    test, baselines = metrics.get("test", {}), each_baseline(baseline)
    names = "".join(f"{entry['name']:>26}" for entry in baselines)
    lines = [f"{'':<14}{'validation':>12}{'test':>12}{names}".rstrip()]
    for name in (name for name in run_history.headline(test) if name in test):
        cells = (metrics.get("validation", {}).get(name), test.get(name))
        row = "".join(f"{'':>12}" if cell is None else f"{cell:>12.4f}" for cell in cells)
        of_baselines = (entry["metrics"].get(name) for entry in baselines)
        row += "".join(f"{'':>26}" if value is None else f"{value:>26.4f}" for value in of_baselines)
        lines.append(f"{name:<14}{row}".rstrip())
    return lines


def make_way(path: Path) -> None:
    """Remove the summary of an earlier run at ``path``, and make sure that a new one can be written.

    A caller that waits for a run must not take the previous run's summary for its result.

    Raises:
        OSError: ``path`` is not a file, or cannot be written.
    """
    path = _place(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        path.unlink(missing_ok=True)


def save_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a summary as JSON, atomically: a concurrent reader of ``path`` sees the old document or the new one.

    Secrets are left out. Numbers that JSON does not have are written as text: ``"inf"``, ``"nan"``.

    Raises:
        OSError: ``path`` is not a file, or cannot be written.
    """
    text = json.dumps(clean(strict(document)), indent=2, allow_nan=False) + "\n"
    atomic_file.write_atomically(_place(path), text)


def _place(path: Path) -> Path:
    path = path.resolve()  # So that a link is kept, not replaced.
    # A device such as /dev/null would be replaced by a file.
    if path.exists() and not path.is_file():
        raise OSError("it is not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def strict(value: Any) -> Any:
    """Return ``value`` with only types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): strict(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [strict(of) for of in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    return str(value)


def _with_numbers(value: Any) -> Any:
    """Return a value read from JSON with its special numbers restored; see :func:`strict`."""
    if isinstance(value, Mapping):
        return {name: _with_numbers(of) for name, of in value.items()}
    if isinstance(value, list):
        return [_with_numbers(of) for of in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def _parity_in_words(parity: Mapping[str, Any]) -> str:
    verdict = "" if parity.get("passed", True) else "FAILED: "
    return f"{verdict}max {parity['max']:.1e} over {parity['rows']:,} rows"


def _warm_start_in_words(warm_start: Mapping[str, Any]) -> str | None:
    if "model" not in warm_start:
        return None
    parts = [
        f"{warm_start[what]:,} of {warm_start[f'of_{what}']:,} {what}"
        for what in ("weights", "tokens")
        if warm_start.get(f"of_{what}")
    ]
    return f"{warm_start['model']}: {', '.join(parts)}" if parts else str(warm_start["model"])


def _data_quality(dataset: Mapping[str, Any]) -> str | None:
    if "findings" not in dataset:
        return None
    return f"{findings_in_words(dataset['findings'])}; see {dataset['page']}"


def _way_to_the_ui(tracking_uri: str, run_page: str | None) -> str:
    if run_page is not None:
        # The experiment's page, in the same view.
        return re.sub(r"/runs/\w+", "", run_page)
    shown = without_credentials(tracking_uri)
    return f"open {shown}" if tracking_uri.startswith("http") else f"mlflow ui --backend-store-uri {shown}"
