"""The summary of a run at its stages: before the training, after its attempts, and at its end."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mirrorspark.data_pipelines.quality import PAGE_FILE
from mirrorspark.scoring.parity import ParityReport
from mirrorspark.training.job import TrainingJob
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.report.report import verdict_sentences
from mirrorspark.training.results.report.summary import Summary
from mirrorspark.training.results.scored import SCORED_TABLE
from mirrorspark.training.results.trained import Trained
from mirrorspark.training.run_records import run_history


def begun(job: TrainingJob, *, is_reused: bool) -> Summary:
    """Return the summary before the training; ``is_reused``: an earlier run converted the dataset."""
    dataset = job.dataset
    manifest = dataset.manifest
    return Summary(
        status="running",
        run_id=job.tracked.run_id,
        experiment=job.tracked.experiment,
        timings=job.view.all_seconds(),
        dataset={
            "path": str(dataset.path),
            "rows": {split: manifest.rows(split) for split in manifest.splits},
            "bytes": manifest.bytes,
            "layout": manifest.layout,
            "reused": is_reused,
            "page": str(dataset.path / PAGE_FILE),
            "findings": [dict(finding) for finding in manifest.findings],
        },
        run_folder=str(job.folder.path),
        tracking_uri=job.tracked.uri,
        run_page=job.tracked.page,
        warm_start=_warm_start(job),
        warnings=job.warnings,
    )


def _warm_start(job: TrainingJob) -> dict[str, Any]:
    """Return the model that the training begins from and, once known, the numbers of weights and tokens taken."""
    if job.warm_start is None:
        return {}
    numbers = ("weights", "of_weights", "tokens", "of_tokens")
    found: dict[str, Any] = {name: number for name, number in (job.warm_start_event or {}).items() if name in numbers}
    return {"model": job.warm_start.uri} | found


def with_attempts(summary: Summary, attempts: Sequence[Attempt], job: TrainingJob) -> Summary:
    """Return the summary with the launches so far; an attempt that could not be launched had no workers."""
    workers = [attempt.workers for attempt in attempts if attempt.workers]
    # The launches of earlier drivers are counted from the events.
    launches = max(len(attempts), run_history.read_curves(job.folder.events).attempts)
    return replace(summary, workers=workers[-1] if workers else None, attempts=launches or None)


def finished(known: Summary, trained: Trained, report: ParityReport) -> Summary:
    """Return the summary of a run that has come to its end."""
    return replace(
        known,
        status="finished",
        model_uri=trained.model_uri,
        registered_model=trained.registered_model,
        model_version=trained.model_version,
        metrics=trained.verdict.metrics,
        baseline=trained.verdict.baseline,
        parity={name: getattr(report, name) for name in ("max", "mean", "p99", "rows", "passed")},
        examples_per_second=trained.examples_per_second,
        chosen=trained.chosen,
        calibration=trained.calibration,
        decisions=trained.decisions,
        cost=trained.cost.to_dict() if trained.cost else {},
        verdict=verdict_sentences(trained.verdict.metrics, trained.verdict.compared),
        withheld=trained.withheld,
        scored_table=str(trained.run_folder / SCORED_TABLE),
    )
