"""M13: the DAG of Airflow and the job of Databricks start commands of ours; Airflow itself runs the DAG."""

import ast
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mirrorspark.scoring.fleet import orchestration
from mirrorspark.scoring.fleet.runs import command
from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(orchestration.__file__).parent
DAG = FOLDER / "fleet_dag.py"
AIRFLOW = "apache-airflow>=3.0,<4"

# Fails once for the second microbatch, and notes what it was called with.
WRAPPER = """
import pathlib, subprocess, sys
log = pathlib.Path({log!r})
called = log.read_text().splitlines() if log.exists() else []
line = " ".join(sys.argv[1:])
log.write_text("\\n".join([*called, line]) + "\\n")
if "--microbatches 1" in line and line not in called:
    sys.exit(1)
sys.exit(subprocess.run([sys.executable, "-m", "mirrorspark", "fleet", *sys.argv[1:]], cwd={clone!r}).returncode)
"""


def test_the_tasks_of_the_databricks_job_are_commands_of_ours_that_follow_each_other() -> None:
    job = json.loads((FOLDER / "databricks_job.json").read_text())
    given = {"{{job.parameters." + one["name"] + "}}" for one in job["parameters"]}
    tasks = {task["task_key"]: task for task in job["tasks"]}
    for name, task in tasks.items():
        assert task["job_cluster_key"] in {one["job_cluster_key"] for one in job["job_clusters"]}
        assert {one["task_key"] for one in task.get("depends_on", [])} <= tasks.keys()
        wheel = task["python_wheel_task"]
        assert (wheel["package_name"], wheel["entry_point"], wheel["parameters"][0]) == ("mirrorspark",) * 2 + (
            "fleet",
        )
        parsed = command._parser().parse_args(wheel["parameters"][1:])
        assert parsed.command.__name__ == f"_{name}"
        assert {part for part in wheel["parameters"] if part.startswith("{{")} <= given
    assert tasks["resume"]["max_retries"] == 3


def test_the_dag_starts_commands_of_ours_and_needs_nothing_of_ours() -> None:
    tree = ast.parse(DAG.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {str(module).partition(".")[0] for module in modules} == {"datetime", "typing", "airflow"}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    options = {text for text in texts if text.startswith("--") and len(text) > 2}
    assert options == {"--begin-only", "--input", "--json", "--ledger", "--microbatches"}
    work = ["--fleet", "f", "--output", "o", "--keys", "k", "--layout", "long", "--input", "i"]
    for line in (["run", "--begin-only", *work], ["resume", "o", "--microbatches", "1,2"], ["status", "o", "--json"]):
        command._parser().parse_args([*line, "--ledger", "l"])


@pytest.mark.full
@pytest.mark.timeout(1_500)
def test_airflow_scores_a_fleet_and_retries_only_the_microbatch_that_failed(tmp_path: Path) -> None:
    environment = tmp_path / "airflow"
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    subprocess.run(
        [str(uv), "-q", "venv", "--python", sys.executable, str(environment)], check=True, timeout=PATIENCE * 60
    )
    install = [str(uv), "-q", "pip", "install", "--python", str(environment / "bin/python"), AIRFLOW]
    subprocess.run(install, check=True, timeout=PATIENCE * 600)
    random = np.random.default_rng(3)
    table = pa.table({"id": np.arange(900), "x": random.normal(size=900)})
    pq.write_table(table, tmp_path / "people.parquet", row_group_size=300)
    (tmp_path / "fleet.csv").write_text("model,column,coefficient\na,x,1\nb,x,2\n")
    wrapper, log, output = tmp_path / "wrapper.py", tmp_path / "calls", tmp_path / "scores"
    wrapper.write_text(WRAPPER.format(log=str(log), clone=str(REPOSITORY)))
    (tmp_path / "home/dags").mkdir(parents=True)
    (tmp_path / "home/dags/fleet_dag.py").write_text(DAG.read_text())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "VIRTUAL_ENV"))}
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    settings = inherited | {
        "AIRFLOW_HOME": str(tmp_path / "home"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "MIRRORSPARK_FLEET": shlex.join(["env", f"PYTHONPATH={path}", sys.executable, str(wrapper)]),
    }
    settings.pop("PYTHONPATH", None)
    given = {"fleet": str(tmp_path / "fleet.csv"), "input": [str(tmp_path / "people.parquet")], "output": str(output)}
    given |= {"keys": "id", "layout": "long", "options": "--rows-per-microbatch 300 --master local[2]"}
    given |= {"resume_options": "--master local[2]"}

    def airflow(*arguments: str) -> None:
        done = subprocess.run(
            [str(environment / "bin/airflow"), *arguments],
            env=settings,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE * 600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5_000:]

    airflow("db", "migrate")
    airflow("dags", "test", "mirrorspark_fleet", "--conf", json.dumps(given))
    calls = log.read_text().splitlines()
    began = [line for line in calls if line.startswith("run ")]
    assert len(began) == 1
    assert "--begin-only" in began[0]
    resumed = sorted(line.split("--microbatches ")[1].split()[0] for line in calls if line.startswith("resume "))
    assert resumed == ["0", "1", "1", "2"]
    assert [line.split()[0] for line in calls[-2:]] == ["status", "report"]
    scores = pq.read_table(output, partitioning=None)
    assert sorted(scores["id"].to_pylist()) == sorted([*range(900)] * 2)
    assert (output / "_run/report.html").is_file()
    # A second run of the DAG finds nothing left.
    airflow("dags", "test", "mirrorspark_fleet", "--conf", json.dumps(given))
    again = log.read_text().splitlines()[len(calls) :]
    assert [line.split()[0] for line in again] == ["status", "status", "report"]
