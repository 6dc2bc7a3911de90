"""The MLflow calls that sending a run's metrics and replaying them share."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from callbacks.credentials import without_credentials
from callbacks.metric_spill import Point, Target
from callbacks.run_calls import RunCall, is_refusal

# What one log_batch request may carry (MLflow REST API, "Request Limits").
METRICS_PER_REQUEST = 1000

# Tells the run of a training from its namesakes; an answer that was lost on the way does not make a second run.
RUN_TAG = "mirrorspark.run"


# As the system words an error, and as Python shows one within another: ConnectionResetError(104, 'Reset by peer').
_SYSTEM_ERROR = re.compile(r"(?:\[Errno -?\d+\] |\w*Error\(\d+, '|RemoteDisconnected\(')([^'\")\n]+)")

logger = logging.getLogger(__name__)


def start_run(client: Any, target: Target) -> str:
    """Start the run that values belong to, or find the one that was started before; return its id."""
    experiment_id = target.experiment_id or experiment_of(client, target.experiment)
    if target.run_name is None:
        return str(client.create_run(experiment_id).info.run_id)
    name = target.run_name.replace("'", "")
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
        return run_id
    run = client.create_run(experiment_id, run_name=target.run_name, tags={RUN_TAG: name})
    return str(run.info.run_id)


def experiment_of(client: Any, name: str, artifact_location: str | None = None) -> str:
    """Return the id of the experiment of that name, which is made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location))
        except Exception:
            # Another run may have made it meanwhile.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def logged_steps(client: Any, run_id: str | None, name: str) -> list[int]:
    """Return the steps for which the run has a value of that metric."""
    return [metric.step for metric in client.get_metric_history(run_id, name)]


def log_points(client: Any, run_id: str | None, points: Sequence[Point]) -> None:
    """Log at most ``METRICS_PER_REQUEST`` values."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(p.name, p.value, p.timestamp_ms, p.step) for p in points])


def send_call(client: Any, run_id: str, call: RunCall) -> None:
    """Send a call; one that the server refuses is left out with a warning, for it must not hold up all that follow."""
    try:
        call.send(client, run_id)
    except Exception as error:  # Whatever the client raises.
        if not is_refusal(error):
            raise
        logger.warning("MLflow refused %s of run %s: %s", call, run_id, first_line(error))


def first_line(error: Exception) -> str:
    """Return what an error of the client says, in one line and without a secret."""
    # Of a connection that fails, MLflow and its libraries tell the whole way down; the system's word is at its end.
    if (found := _SYSTEM_ERROR.findall(str(error))) != []:
        return str(found[-1])
    lines = str(error).splitlines() or [type(error).__name__]
    return without_credentials(lines[0])
