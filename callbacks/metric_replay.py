"""Sends the metrics that a process had to leave behind: ``python -m callbacks.metric_buffer replay FILE``."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from callbacks.metric_requests import METRICS_PER_REQUEST, first_line, log_points, logged_steps, start_run
from callbacks.metric_spill import name_run_in, read_spill


def replay(path: Path, *, client: Any = None, tracking_uri: str | None = None) -> tuple[str, int, int]:
    """Send the metrics in a spill file to their run, then remove the file.

    A value whose name and step the run has already is left out, so that a replay can be repeated.

    Args:
        path: The file.
        client: An ``MlflowClient``; by default one for ``tracking_uri``.
        tracking_uri: Server; by default ``MLFLOW_TRACKING_URI``, else the one that the file names (without user
            name and password, which are never written to it).

    Returns:
        The run's id (started here when it never was), the values sent, and the values that were there already.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no metrics.
    """
    target, points = read_spill(path)
    if not points:
        raise ValueError(f"{path} holds no metrics; name a file that a MetricBuffer left")
    if client is None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or target.tracking_uri)
    run_id = target.run_id
    is_new_run = run_id is None
    if run_id is None:
        run_id = start_run(client, target.experiment, None)
        # A replay that fails half-way has to find this run again.
        name_run_in(path, replace(target, run_id=run_id))
    stored = {name: set(logged_steps(client, run_id, name)) for name in client.get_run(run_id).data.metrics}
    missing = [point for point in points if point.step not in stored.get(point.name, ())]
    for start in range(0, len(missing), METRICS_PER_REQUEST):
        log_points(client, run_id, missing[start : start + METRICS_PER_REQUEST])
    if is_new_run:
        client.set_terminated(run_id, "FINISHED")
    path.unlink()
    return run_id, len(missing), len(points) - len(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 sent, 1 the server did not take them, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m callbacks.metric_buffer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    replay_command = commands.add_parser("replay", help="send the metrics in a file that a training left behind")
    replay_command.add_argument("file", type=Path)
    replay_command.add_argument("--tracking-uri", help="the MLflow server; by default the one that the file names")
    options = parser.parse_args(arguments)
    try:
        run_id, sent, present = replay(options.file, tracking_uri=options.tracking_uri)
    except FileNotFoundError:
        print(f"{options.file} does not exist; name a file that a training left", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # Whatever the client raises, the file is still there: say so in one line.
        print(f"{options.file} is kept, MLflow did not take it: {first_line(error)}", file=sys.stderr)
        return 1
    print(f"{sent} metric values sent to run {run_id}, {present} were there already")
    return 0
