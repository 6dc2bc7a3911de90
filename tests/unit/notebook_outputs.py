"""One of each object that notebooks show as HTML, with hostile texts and a secret wherever a text can be given."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd

from mirrorspark.data_pipelines.dataset.manifest import Manifest, Shard
from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Report, Severity
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.data_pipelines.spark.job_tasks import Tasks
from mirrorspark.pages.figures.training_curves import learning_curves
from mirrorspark.scoring.parity.report import ParityReport, WorstRow
from mirrorspark.training.results.evaluation.evaluate_run import BaselineComparison
from mirrorspark.training.results.evaluation.explanation import Explanation
from mirrorspark.training.results.fit_result import FitResult
from mirrorspark.training.results.report.shown import RunComparison
from mirrorspark.training.results.trained import Trained
from mirrorspark.training.run_records.live.notebook import page
from mirrorspark.training.run_records.live.picture import EpochResult, FinishedStage, Monitored, Picture, RunningStage
from mirrorspark.training.run_records.live.state import Position, RankState, TrainingState
from mirrorspark.training.sweep.report import SweepSummary
from mirrorspark.training.sweep.study import TrialRecord

HOSTILE = "<img src=x onerror=alert(1)>"
SECRET = "hunter2secret"
ADDRESS = f"http://me:{SECRET}@host:5000"

SPEC = FeatureSpec.from_dict(
    {
        "label": {"name": "late", "kind": "binary", "positive": HOSTILE},
        "keys": ["flight_id"],
        "features": {
            "distance": {"kind": "numeric"},
            "carrier": {"kind": "categorical", "max_size": 50},
            "tags": {"kind": "multi_valued", "max_length": 20},
        },
    }
)
FINDINGS = (
    Finding(Severity.ERROR, "carrier", "leak", f"'carrier' has the value '{HOSTILE}'; see {ADDRESS}"),
    Finding(Severity.WARNING, "distance", "missing", "'distance' is missing in 62% of the training rows; impute it"),
    Finding(Severity.NOTE, "", "drift", "the test rows differ from the training rows"),
)
METRICS = {
    "validation": {"auc": 0.6782, "log_loss": 0.4391, "pr_auc": 0.3108},
    "test": {"auc": 0.6997, "log_loss": 0.5144, "pr_auc": 0.4433},
}
BASELINE = {"name": "hist_gradient_boosting", "metrics": {"auc": 0.6963, "log_loss": 0.5145, "pr_auc": 0.4582}}


def dataset(folder: Path) -> Dataset:
    """Return a dataset whose page is in ``folder``."""
    (folder / "dataset.html").write_text("<p>all columns</p>")
    counts = {"train": 244_737, "validation": 28_618, "test": 53_991}
    shards = {split: (Shard(f"{split}/part-0", rows, rows * 20, 1, (0,), (rows,)),) for split, rows in counts.items()}
    findings = tuple(vars(finding) for finding in FINDINGS)
    manifest = Manifest("83b4ba715766", shards, {}, {"table": ADDRESS}, {}, SPEC.columns, findings, {})
    return Dataset(folder, manifest, FittedFeatures(SPEC, {}, {}))


def trained(folder: Path) -> Trained:
    """Return the result of a training whose report is in ``folder``."""
    (folder / "report.html").write_text("<p>all of it</p>")
    figure = learning_curves({"loss": [0.55, 0.5, 0.47], "val_loss": [0.5, 0.46, 0.46]})
    verdict = BaselineComparison(METRICS, BASELINE, {"learning_curves": figure})
    return Trained("7c1f0e", "models:/m-1", f"late-{HOSTILE}", "3", (), 9.0, verdict, {}, folder, ADDRESS)


def parity(*, passed: bool) -> ParityReport:
    """Return a report of a comparison."""
    differs = 0.0 if passed else 7e-3
    worst = (WorstRow({"flight_id": f"{HOSTILE} {ADDRESS}"}, 0.5, 0.5 + differs, differs),)
    return ParityReport(
        53_991, 1e-9, 1e-9, 0, 1e-9, 2e-9, 8e-8, max(8.9e-8, differs), 2e-7, 1e-5, 0 if passed else 1, 0, 0.5, 0, worst
    )


def comparison() -> RunComparison:
    """Return a comparison in which each model is better somewhere, and one metric has no interval."""
    names = ("models:/late/3", f"models:/{HOSTILE}/4")
    other = pd.Series({"auc": 0.71, "log_loss": 0.52, "pr_auc": 0.4433})
    intervals = {"auc": {"low": -0.0131, "high": -0.0074}, "log_loss": {"low": -0.0102, "high": -0.0015}}
    return RunComparison.of(names, (pd.Series(METRICS["test"]), other), intervals)


def sweep() -> SweepSummary:
    """Return a sweep of three trials, one of which failed."""
    trials = (
        TrialRecord(0, "complete", {"learning_rate": 0.01, "model.dropout": 0.1}, {1: 0.6, 2: 0.7}, 0.7, 61.0),
        TrialRecord(1, "complete", {"learning_rate": 0.003, "model.dropout": 0.3}, {1: 0.75, 2: 0.8}, 0.8, 58.0),
        TrialRecord(2, "failed", {"learning_rate": 1.0}, seconds=4.0, error=f"NaN loss {HOSTILE} {ADDRESS}"),
    )
    return SweepSummary(
        status="finished",
        study="late-1",
        folder="/out/sweeps/late-1",
        monitor="val_auc",
        wanted=3,
        trials=trials,
        best=trials[1],
        importances={"learning_rate": 0.75, "model.dropout": 0.25},
        command=f"mirrorspark train --tracking-uri={ADDRESS} --learning-rate=0.003",
    )


def explanation() -> Explanation:
    """Return an explanation with a hostile value."""
    return Explanation(
        importance=pd.DataFrame(
            {"feature": ["carrier", "distance"], "importance": [0.2, 0.1], "deviation": [0.01] * 2}
        ),
        dependence={},
        slices=pd.DataFrame({"feature": ["carrier"], "value": [HOSTILE], "rows": [40], "loss": [0.7]}),
        worst=pd.DataFrame({"flight_id": [f"{number}" for number in range(3)], "loss": [2.0, 1.9, 1.8]}),
        loss="log loss",
        rows=5_000,
    )


def epochs(count: int) -> tuple[EpochResult, ...]:
    """Return results of epochs whose ``val_auc`` is best in the ninth."""
    return tuple(
        EpochResult(
            number,
            {
                "loss": 0.55 - 0.1 * number / count,
                "auc": 0.6 + 0.1 * number / count,
                "val_loss": 0.5 - 0.005 * number + 0.0004 * number**2,
                "val_auc": 0.7 - 0.001 * (number - 9) ** 2,
                "val_log_loss": 0.45,
            },
            600_000.0,
        )
        for number in range(1, count + 1)
    )


def picture(running: RunningStage | None, *, count: int = 12) -> Picture:
    """Return a run that has converted, and trains or has trained."""
    ranks = {
        0: RankState(99.0, phase="training", step=5_241, memory_bytes=1_200_000_000, busy_share=0.4, host="node-1"),
        1: RankState(99.0, phase="training", step=5_240, memory_bytes=1_100_000_000, process_state="stopped"),
    }
    position = Position(count + 1, 120, 400, 612_000.0, 0.4477, {}, (0.0, 4_000), (60.0, 400 * count + 120))
    finished = (
        FinishedStage("infer", 1.2, "7 features; label 'late' of kind binary"),
        FinishedStage("convert", 16.4, f"244,737 train, 53,991 test rows; validation: 4 warnings; {'and more ' * 40}"),
    )
    over = (
        FinishedStage("train", 71.6, f"{count} epochs, best was 9"),
        FinishedStage("export", 3.4, "registered as models:/late/3"),
        FinishedStage("evaluate", 4.1, HOSTILE, has_failed=True),
    )
    stages = finished if running is not None and running.is_training else (*finished, *over)
    state = TrainingState(40, 2, 1, ranks, position)
    return Picture(100.0, stages, running, state, epochs(count), Monitored("val_auc", "max"))


def outputs(folder: Path) -> Mapping[str, str]:
    """Return the markup of each object by its name; some name files in ``folder``, which must exist."""
    result, shown = trained(folder), dataset(folder)
    lines = ["  resuming from step 1,200", f"  rank 1: {HOSTILE}"]
    objects: dict[str, Any] = {
        "spec": SPEC,
        "dataset": shown,
        "validation": Report(FINDINGS, (), Limits()),
        "trained": result,
        "fit result": FitResult(result, shown, cast(Any, None), cast(Any, None)),
        "explanation": explanation(),
        "comparison": comparison(),
        "parity": parity(passed=True),
        "parity that failed": parity(passed=False),
        "sweep": sweep(),
    }
    return {name: each._repr_html_() for name, each in objects.items()} | {
        "live, converting": page(
            Picture(5.0, (), RunningStage("convert", 5.0, tasks=Tasks(3, 8, 8.0)), TrainingState(1))
        ),
        "live, training": page(picture(RunningStage("train", 74.0, is_training=True)), lines),
        "live, at the end": page(picture(None), lines),
    }


def document(parts: Mapping[str, str], *, ground: str, ink: str) -> str:
    """Return a page that shows the outputs as a notebook of these colours does."""
    body = "".join(f"<section><h2>{name}</h2>{markup}</section>" for name, markup in parts.items())
    css = f"body{{background:{ground};color:{ink};font:14px system-ui,sans-serif;margin:1em 2em}}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>outputs</title><style>{css}</style>{body}</html>'
    )
