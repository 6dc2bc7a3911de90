"""The MLflow calls that sending metrics and replaying them share."""

from collections.abc import Sequence
from typing import Any

from callbacks.credentials import without_credentials
from callbacks.metric_spill import Point

# What one log_batch request may carry (MLflow REST API, "Request Limits").
METRICS_PER_REQUEST = 1000


def start_run(client: Any, experiment: str, run_name: str | None) -> str:
    """Start a run, in an experiment that is made where there is none of that name; return its id."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found is not None else client.create_experiment(experiment)
    return str(client.create_run(experiment_id, run_name=run_name).info.run_id)


def logged_steps(client: Any, run_id: str | None, name: str) -> list[int]:
    """Return the steps for which the run has a value of that metric."""
    return [metric.step for metric in client.get_metric_history(run_id, name)]


def log_points(client: Any, run_id: str | None, points: Sequence[Point]) -> None:
    """Log at most ``METRICS_PER_REQUEST`` values."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(p.name, p.value, p.timestamp_ms, p.step) for p in points])


def first_line(error: Exception) -> str:
    """Return what an error of the client says, in one line and without a password."""
    lines = str(error).splitlines() or [type(error).__name__]
    return without_credentials(lines[0])
