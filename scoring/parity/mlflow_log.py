"""A parity report as artifacts and tags of an MLflow run."""

from __future__ import annotations

from callbacks.mlflow_store import store_client
from scoring.parity.report import ParityReport


def log_to_mlflow(
    report: ParityReport, run_id: str, *, tracking_uri: str | None = None, name: str = "parity_check"
) -> None:
    """Keep a report in an MLflow run.

    The run gets the artifacts ``{name}.txt`` (the table) and ``{name}.json`` (all figures), and the tags ``{name}``,
    which is ``passed`` or ``FAILED``, and ``{name}.max``, the largest difference. What it has of that name is replaced.

    Args:
        report: The report.
        run_id: The run; it may be over.
        tracking_uri: MLflow store of the run; by default the one that MLflow is set to.
        name: One for each check of a run. ``parity`` are the files that a run of the main job has of its own.

    Raises:
        MlflowException: There is no such run, or the store cannot be asked.
    """
    import mlflow  # seconds

    client = store_client(tracking_uri or mlflow.get_tracking_uri())
    client.log_text(run_id, f"{report.as_table()}\n", f"{name}.txt")
    client.log_dict(run_id, report.to_dict(), f"{name}.json")
    client.set_tag(run_id, name, report.verdict)
    client.set_tag(run_id, f"{name}.max", f"{report.max:.3e}")
