"""DAG of Airflow 3 that runs a recipe's pipeline every Monday, up to the promotion of the new model.

Copy this file into the folder of DAGs. It starts ``mirrorspark pipeline run``, or the command in
``MIRRORSPARK_PIPELINE``, and needs nothing of mirrorspark in Airflow's own environment. A retry goes on with the stage
that failed; a date that is finished is not run again.
"""

import os
import shlex
import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.exceptions import AirflowFailException
from airflow.sdk import Param, dag, get_current_context, task

_COMMAND = shlex.split(os.environ.get("MIRRORSPARK_PIPELINE", "mirrorspark pipeline run"))
_USAGE = 2


@task(retries=2, retry_delay=timedelta(minutes=1))
def run() -> None:
    """Run the remaining stages of a date; the command's messages go to the task's log."""
    context: Any = get_current_context()
    params = context["params"]
    given = {name: params[name] for name in ("recipe", "data", "name", "output") if params[name]}
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    date = params["run_date"] or context["ds"]
    command = [*_COMMAND, *flags, "--run-date", date, *shlex.split(params["options"])]
    done = subprocess.run(command, check=False)
    if done.returncode:
        said = f"{shlex.join(command)} has ended with status {done.returncode}; its message is above"
        # An invalid command stays invalid.
        raise AirflowFailException(said) if done.returncode == _USAGE else RuntimeError(said)


@dag(
    dag_id="mirrorspark_weekly",
    schedule="0 4 * * 1",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    # Two weeks at once would each be judged by the champion before the other.
    max_active_runs=1,
    params={
        "recipe": Param("flights", type="string", description="recipe, by its name or folder"),
        "data": Param("", type="string", description="folder of its source tables"),
        "name": Param("", type="string", description="name of the registered model; by default the recipe's"),
        "output": Param("", type="string", description="folder of datasets, runs and pipelines"),
        "run_date": Param("", type="string", description="day, such as 2026-01-31; by default that of the DAG's run"),
        "options": Param("", type="string", description="further flags of mirrorspark pipeline run"),
    },
)
def mirrorspark_weekly() -> None:
    """Run a recipe's pipeline."""
    run()


mirrorspark_weekly()
