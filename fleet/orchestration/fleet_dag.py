"""DAG of Airflow 3 that scores a fleet: a mapped task for each microbatch, of which only failed ones are retried.

Copy this file into the folder of DAGs. It starts ``mirrorspark fleet``, or the command in ``MIRRORSPARK_FLEET``
(such as ``spark-submit ... fleet.py``), and needs nothing of mirrorspark in Airflow's own environment. A run of the DAG
over an output that has a run already scores what that lacks.
"""

import json
import os
import shlex
import subprocess
from datetime import timedelta
from typing import Any

from airflow.exceptions import AirflowFailException
from airflow.sdk import Param, dag, get_current_context, task

_COMMAND = shlex.split(os.environ.get("MIRRORSPARK_FLEET", "mirrorspark fleet"))
_DONE, _USAGE, _LEFT = 0, 2, 3


def _fleet(*arguments: str, expected: tuple[int, ...] = (_DONE,)) -> tuple[int, str]:
    """Run a command, whose messages go to the task's log; return its status and its output."""
    done = subprocess.run([*_COMMAND, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode in expected:
        return done.returncode, done.stdout
    said = f"{shlex.join([*_COMMAND, *arguments])} has ended with status {done.returncode}; its message is above"
    # A retry would have the same invalid arguments.
    raise AirflowFailException(said) if done.returncode == _USAGE else RuntimeError(said)


def _params() -> dict[str, Any]:
    return dict(get_current_context()["params"])


def _ledger(params: dict[str, Any]) -> list[str]:
    return ["--ledger", params["ledger"]] if params["ledger"] else []


@task(retries=2, retry_delay=timedelta(minutes=1))
def begin() -> list[str]:
    """Begin the run unless it is there, and return the microbatches that it lacks, some for each task."""
    params = _params()
    status = ["status", params["output"], "--json", *_ledger(params)]
    code, said = _fleet(*status, expected=(_DONE, _USAGE, _LEFT))
    if code == _USAGE:
        work = [part for name in ("fleet", "output", "keys", "layout") for part in (f"--{name}", params[name])]
        options = shlex.split(params["options"])
        _fleet("run", "--begin-only", *work, "--input", *params["input"], *_ledger(params), *options)
        _, said = _fleet(*status, expected=(_DONE, _LEFT))
    left, size = json.loads(said)["left"], params["microbatches_per_task"]
    return [",".join(map(str, left[first : first + size])) for first in range(0, len(left), size)]


@task(retries=3, retry_delay=timedelta(seconds=30), max_active_tis_per_dagrun=4)
def score(microbatches: str) -> None:
    """Score some microbatches; after a failure, those that are still missing."""
    params = _params()
    options = shlex.split(params["resume_options"])
    _fleet("resume", params["output"], "--microbatches", microbatches, *_ledger(params), *options)


@task(trigger_rule="none_failed")
def report() -> None:
    """Check that all microbatches are published, and write the report."""
    params = _params()
    _fleet("status", params["output"], *_ledger(params))
    _fleet("report", params["output"], *_ledger(params))


@dag(
    dag_id="mirrorspark_fleet",
    schedule=None,
    catchup=False,
    params={
        "fleet": Param(type="string", description="folder of a saved fleet, models:/name/version, or a file"),
        "input": Param(type="array", items={"type": "string"}, description="Parquet files, folders or globs"),
        "output": Param(type="string", description="new folder, or one with a run to be finished"),
        "keys": Param(type="string", description="columns that identify a row, separated by commas"),
        "layout": Param("wide", type="string", enum=["wide", "packed", "long"]),
        "ledger": Param("", type="string", description="file of SQLite or postgresql:// address without a password"),
        "options": Param("", type="string", description="further options of mirrorspark fleet run"),
        "resume_options": Param("", type="string", description="further options of mirrorspark fleet resume"),
        "microbatches_per_task": Param(1, type="integer", minimum=1),
    },
)
def mirrorspark_fleet() -> None:
    """Score a fleet in microbatches."""
    score.expand(microbatches=begin()) >> report()


mirrorspark_fleet()
