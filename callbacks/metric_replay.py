"""Sends what a training had to leave behind: ``python -m callbacks.metric_buffer replay FILE``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from callbacks.credentials import without_credentials
from callbacks.metric_requests import (
    METRICS_PER_REQUEST,
    first_line,
    log_points,
    logged_steps,
    send_call,
    start_run,
)
from callbacks.metric_spill import Spilled, Target, name_run_in, read_spill
from callbacks.mlflow_store import is_same_store, limit_requests, store_client
from callbacks.run_calls import SetStatus

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replayed:
    """What a replay did.

    Attributes:
        run_id: The run; started here when it never was.
        sent: Metric values sent.
        present: Metric values that were there already.
        calls: Parameters, tags and artifacts sent, counted by calls; with those that the server refused.
    """

    run_id: str
    sent: int
    present: int
    calls: int


def replay(path: Path, *, client: Any = None, tracking_uri: str | None = None) -> Replayed:
    """Send the metrics and calls in a spill file to their run, then remove the file.

    A value whose name and step the run has already is left out, and every call can be made twice, so that a replay can
    be repeated.

    Args:
        path: The file.
        client: An ``MlflowClient``; by default one for ``tracking_uri``.
        tracking_uri: Server or store; by default the one that the file names. User name and password are never
            written to it: MLflow's own variables have them, or ``MLFLOW_TRACKING_URI`` where it names the same store.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds nothing to send.
    """
    found = read_spill(path)
    if not found.points and not found.calls:
        raise ValueError(f"{path} holds no metrics; name a file that a MetricBuffer left")
    if client is None:
        limit_requests()
        uri = tracking_uri or _store_of(found.target)
        logger.info("%d values and %d calls go to %s", len(found.points), len(found.calls), without_credentials(uri))
        client = store_client(uri)
    run_id = found.target.run_id
    if run_id is None:
        run_id = start_run(client, found.target)
        # A replay that fails half-way has to find this run again.
        name_run_in(path, replace(found.target, run_id=run_id))
    stored = {name: set(logged_steps(client, run_id, name)) for name in client.get_run(run_id).data.metrics}
    missing = [point for point in found.points if point.step not in stored.get(point.name, ())]
    for start in range(0, len(missing), METRICS_PER_REQUEST):
        log_points(client, run_id, missing[start : start + METRICS_PER_REQUEST])
    for call in found.calls:
        send_call(client, run_id, call)
    if _is_left_open(found):
        client.set_terminated(run_id, "FINISHED")
    path.unlink()
    return Replayed(run_id, len(missing), len(found.points) - len(missing), len(found.calls))


def _store_of(target: Target) -> str:
    """Return the store that has the run, or is to have it; never another one that MLflow happens to be set to."""
    import mlflow

    current = mlflow.get_tracking_uri()
    return current if not target.tracking_uri or is_same_store(current, target.tracking_uri) else target.tracking_uri


def _is_left_open(found: Spilled) -> bool:
    """Whether the run was never started, and its process had no time to say how it ended."""
    return found.target.run_id is None and not any(isinstance(call, SetStatus) for call in found.calls)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 sent, 1 the server did not take them, 2 bad usage."""
    parser = argparse.ArgumentParser(
        prog="python -m callbacks.metric_buffer", description=(__doc__ or "").replace("``", "")
    )
    commands = parser.add_subparsers(dest="command", required=True)
    replay_command = commands.add_parser("replay", help="send what is in a file that a training left behind")
    replay_command.add_argument("file", type=Path)
    replay_command.add_argument("--tracking-uri", help="the MLflow server or store, if not the one that the file names")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    # Of a server that is away, one line of ours is enough.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    try:
        done = replay(options.file, tracking_uri=options.tracking_uri)
    except FileNotFoundError:
        print(f"{options.file} does not exist; name a file that a training left", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # Whatever the client raises, the file is still there: say so in one line.
        moved = "" if options.tracking_uri else "; give --tracking-uri if the server has moved"
        print(f"{options.file} is kept, MLflow did not take it: {first_line(error)}{moved}", file=sys.stderr)
        return 1
    print(f"{done.sent} metric values sent to run {done.run_id}, {done.present} were there already")
    if done.calls:
        print(f"{done.calls} calls with parameters, tags, artifacts or status sent")
    return 0
