"""Logging of parity reports to MLflow."""

from __future__ import annotations

from mirrorspark.callbacks.mlflow.store import store_client
from mirrorspark.scoring.parity.report import ParityReport


def log_parity(
    report: ParityReport, run_id: str, *, tracking_uri: str | None = None, name: str = "parity_check"
) -> None:
    """Log a report to an MLflow run.

    The run gets the artifacts ``{name}.txt`` (the table) and ``{name}.json`` (all figures), and the tags ``{name}``,
    which is ``passed`` or ``FAILED``, and ``{name}.max``, the largest difference. Existing ones of that name are
    replaced.

    Args:
        report: The report.
        run_id: The run, which may have ended.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.
        name: Name of the check, unique in the run. ``parity`` is taken by the files of a run of the main job.

    Raises:
        MlflowException: There is no such run, or the store cannot be used.
    """
    import mlflow  # takes seconds

    client = store_client(tracking_uri or mlflow.get_tracking_uri())
    client.log_text(run_id, f"{report.as_table()}\n", f"{name}.txt")
    client.log_dict(run_id, report.to_dict(), f"{name}.json")
    client.set_tag(run_id, name, report.verdict)
    client.set_tag(run_id, f"{name}.max", f"{report.max:.3e}")
