"""The result of a training in its run's folder, from which a call for the same training returns it."""

import json
from dataclasses import asdict, replace

from mirrorspark.clear_error import ClearError
from mirrorspark.pages.figures import figure_of_image
from mirrorspark.storage import atomic_file, clean
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.protocol import SUMMARY_FILE
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.results.evaluation import EXPLANATION_FILE, Explanation, evaluate_run
from mirrorspark.training.results.predictions import read_predictions
from mirrorspark.training.results.report import Cost, Summary
from mirrorspark.training.results.trained import Trained
from mirrorspark.training.run_records import RunFolder


class ResultLostError(ClearError, RuntimeError):
    """A run has finished, but its summary or result is missing or damaged."""


def keep_delivery(trained: Trained, folder: RunFolder) -> None:
    """Write the result of a training to a file; its predictions and figures are in the same folder."""
    document = {
        "run_id": trained.run_id,
        "model_uri": trained.model_uri,
        "registered_model": trained.registered_model,
        "model_version": trained.model_version,
        "attempts": [asdict(attempt) for attempt in trained.attempts],
        "examples_per_second": trained.examples_per_second,
        "metrics": trained.verdict.metrics,
        "baseline": trained.verdict.baseline,
        "seconds": dict(trained.seconds),
        "cost": trained.cost and trained.cost.to_dict(),
        "chosen": trained.chosen,
        "calibration": trained.calibration,
        "decisions": trained.decisions,
        "run_page": trained.run_page,
        "base_rate": trained.verdict.base_rate,
        "withheld": trained.withheld,
        "leaderboard": list(trained.leaderboard),
        "rows": dict(trained.rows),
    }
    atomic_file.write_atomically(folder.delivered, json.dumps(clean(document), indent=2, default=float))


def recall_delivery(folder: RunFolder, store: str) -> Trained:
    """Return the result that :func:`keep_delivery` wrote; its figures show the images that were saved with it.

    Args:
        folder: Folder of a finished run.
        store: Its MLflow store.

    Raises:
        ResultLostError: A part of the result can no longer be read.
    """
    try:
        document = json.loads(folder.delivered.read_text(encoding="utf-8"))
        figures = {file.stem: figure_of_image(file.read_bytes()) for file in sorted(folder.plots.glob("*.png"))}
        compared = document.pop("metrics"), document.pop("baseline"), figures, document.pop("base_rate", {})
        verdict = evaluate_run.BaselineComparison(*compared)
        cost = document.pop("cost", None)
        attempts = tuple(map(Attempt.from_document, document.pop("attempts")))
        return Trained(
            **document,
            attempts=attempts,
            cost=Cost(**cost) if cost else None,
            verdict=verdict,
            predictions=read_predictions(folder.predictions),
            run_folder=folder.path,
            tracking_uri=store,
            explanation=Explanation.load(folder.predictions / EXPLANATION_FILE),
        )
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ResultLostError(
            f"run {folder.path.name} has finished, but its results cannot be read ({error}); resume=False trains anew"
        ) from error


def recall_summary(folder: RunFolder, config: RunConfig, store: str) -> Summary:
    """Return the saved summary of a finished run, whose MLflow store is ``store``.

    Raises:
        ResultLostError: The summary can no longer be read.
    """
    file = folder.path / SUMMARY_FILE
    try:
        summary = Summary.load(file)
        if summary.status != "finished":
            raise ValueError(f"it describes a run that {summary.status}")  # noqa: TRY301 - as a damaged one
    except (OSError, ValueError, TypeError) as error:
        raise ResultLostError(
            f"run {folder.path.name} of {config.run_date} has finished, but {file} cannot be read ({error}); "
            f"--no-resume trains anew"
        ) from error
    # The folder may have moved since, and the file has no password of the store.
    return replace(summary, run_folder=str(folder.path), tracking_uri=store)
