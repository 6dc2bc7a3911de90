"""M13: the DAG of Airflow and the job of Databricks start commands of ours; Airflow itself runs the DAG."""

import ast
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from databricks.sdk.service.jobs import JobSettings
from packaging.requirements import Requirement

from mirrorspark.extras import EXTRAS
from mirrorspark.fleet import orchestration
from mirrorspark.fleet.runs import command
from mirrorspark.lifecycle.pipeline import command as pipeline_command
from mirrorspark.lifecycle.pipeline import orchestration as weekly_orchestration
from mirrorspark.lifecycle.pipeline.record import PipelineRecord
from mirrorspark.training.run_records.tracking import Tracking
from tests.cluster.test_bad_input import write_data, write_job
from tests.cluster.test_retraining import KNOBS, days_rows
from tests.conftest import PATIENCE

Airflow = Callable[..., None]

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(orchestration.__file__).parent
DAG = FOLDER / "fleet_dag.py"
WEEKLY = Path(weekly_orchestration.__file__).parent
WEEKLY_DAG = WEEKLY / "weekly_dag.py"
AIRFLOW = "apache-airflow>=3.0,<4"

# Notes what it was called with, and fails the first time that this has some words in it.
WRAPPER = """
import pathlib, subprocess, sys
log = pathlib.Path({log!r})
called = log.read_text().splitlines() if log.exists() else []
line = " ".join(sys.argv[1:])
log.write_text("\\n".join([*called, line]) + "\\n")
if {failing!r} in line and line not in called:
    sys.exit(1)
sys.exit(subprocess.run([sys.executable, "-m", "mirrorspark", *sys.argv[1:]], cwd={clone!r}).returncode)
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


def test_the_weekly_files_start_commands_of_ours(tmp_path: Path) -> None:
    job = json.loads((WEEKLY / "databricks_job.json").read_text())
    (task,) = job["tasks"]
    wheel = task["python_wheel_task"]
    assert (wheel["package_name"], wheel["entry_point"], wheel["parameters"][0]) == (
        "mirrorspark",
        "mirrorspark",
        "pipeline",
    )
    defaults = {"{{job.parameters." + one["name"] + "}}": one["default"] for one in job["parameters"]}
    stand_ins = {"recipe": "flights", "run_date": "2026-01-31"}
    given = {name: stand_ins.get(name.rpartition(".")[2].strip("}"), value) for name, value in defaults.items()}
    _, config, _ = pipeline_command.read_arguments([given.get(part, part) for part in wheel["parameters"][1:]])
    assert (config.workers, config.run_date, config.tracking_uri) == (4, "2026-01-31", "databricks")
    Tracking.find(config).require_names(config.registry_name)  # raises where Databricks would refuse a name

    tree = ast.parse(WEEKLY_DAG.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {str(module).partition(".")[0] for module in modules} == {"datetime", "typing", "airflow"}


@pytest.mark.parametrize("folder", [FOLDER, WEEKLY])
def test_the_jobs_have_only_fields_that_databricks_knows(folder: Path) -> None:
    job = json.loads((folder / "databricks_job.json").read_text())

    assert JobSettings.from_dict(job).as_dict() == job


def test_the_bundle_has_the_weekly_job() -> None:
    bundle = yaml.safe_load((WEEKLY / "databricks.yml").read_text())
    assert bundle["resources"]["jobs"] == {"weekly": json.loads((WEEKLY / "databricks_job.json").read_text())}


@pytest.mark.parametrize("folder", [FOLDER, WEEKLY])
def test_the_jobs_name_a_runtime_that_the_matrix_tests_and_the_wheel_by_its_path(folder: Path) -> None:
    job = json.loads((folder / "databricks_job.json").read_text())
    for cluster in job["job_clusters"]:
        runtime, _, scala = cluster["new_cluster"]["spark_version"].partition(".x-")
        assert (REPOSITORY / f"tools/matrix/databricks-{runtime}.txt").is_file()
        assert scala == "scala2.13"
        tested = (REPOSITORY / f"tools/matrix/databricks-{runtime}.txt").read_text().splitlines()
    (library,) = {Path(library["requirements"]) for task in job["tasks"] for library in task["libraries"]}
    ours, *others = map(Requirement, (folder / library.name).read_text().splitlines())
    assert ours.url == f"file://{library.parent}/mirrorspark-{version('mirrorspark')}-py3-none-any.whl"
    assert ours.extras <= set(EXTRAS.values())
    # Each tf-keras goes with one TensorFlow.
    assert {str(one).replace("tf-keras", "tensorflow") for one in others} <= set(tested)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """Return a command of an Airflow in an environment of its own, which has both DAGs."""
    folder = tmp_path_factory.mktemp("airflow")
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    environment = folder / "environment"
    subprocess.run(
        [str(uv), "-q", "venv", "--python", sys.executable, str(environment)], check=True, timeout=PATIENCE * 60
    )
    install = [str(uv), "-q", "pip", "install", "--python", str(environment / "bin/python"), AIRFLOW]
    subprocess.run(install, check=True, timeout=PATIENCE * 600)
    (folder / "home/dags").mkdir(parents=True)
    for dag in (DAG, WEEKLY_DAG):
        (folder / "home/dags" / dag.name).write_text(dag.read_text())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "VIRTUAL_ENV"))}
    settings = inherited | {"AIRFLOW_HOME": str(folder / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "false"}
    settings.pop("PYTHONPATH", None)

    def run(*arguments: str, **variables: str) -> None:
        done = subprocess.run(
            [str(environment / "bin/airflow"), *arguments],
            env=settings | variables,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE * 600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5_000:]

    run("db", "migrate")
    return run


def wrapped(folder: Path, failing: str, *command: str) -> tuple[str, Path]:
    """Return the command line of a wrapper of ``mirrorspark`` that fails once, and its log."""
    wrapper, log = folder / "wrapper.py", folder / "calls"
    wrapper.write_text(WRAPPER.format(log=str(log), failing=failing, clone=str(REPOSITORY)))
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    return shlex.join(["env", f"PYTHONPATH={path}", sys.executable, str(wrapper), *command]), log


@pytest.mark.full
@pytest.mark.timeout(1_500)
def test_airflow_scores_a_fleet_and_retries_only_the_microbatch_that_failed(airflow: Airflow, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    table = pa.table({"id": np.arange(900), "x": random.normal(size=900)})
    pq.write_table(table, tmp_path / "people.parquet", row_group_size=300)
    (tmp_path / "fleet.csv").write_text("model,column,coefficient\na,x,1\nb,x,2\n")
    output = tmp_path / "scores"
    command, log = wrapped(tmp_path, "--microbatches 1", "fleet")
    given = {"fleet": str(tmp_path / "fleet.csv"), "input": [str(tmp_path / "people.parquet")], "output": str(output)}
    given |= {"keys": "id", "layout": "long", "options": "--rows-per-microbatch 300 --master local[2]"}
    given |= {"resume_options": "--master local[2]"}

    airflow("dags", "test", "mirrorspark_fleet", "--conf", json.dumps(given), MIRRORSPARK_FLEET=command)

    calls = [line.removeprefix("fleet ") for line in log.read_text().splitlines()]
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
    airflow("dags", "test", "mirrorspark_fleet", "--conf", json.dumps(given), MIRRORSPARK_FLEET=command)
    again = log.read_text().splitlines()[len(calls) :]
    assert [line.split()[1] for line in again] == ["status", "status", "report"]


@pytest.mark.full
@pytest.mark.timeout(1_500)
def test_airflow_runs_a_pipeline_and_again_after_a_failure(airflow: Airflow, tmp_path: Path) -> None:
    job = write_job(tmp_path / "job", **KNOBS)
    write_data(job, days_rows("Oslo", "Rome", "Bonn", "Bern"))
    command, log = wrapped(tmp_path, "--run-date", "pipeline", "run")
    given = {name: str(job / name) for name in ("recipe", "data", "output")} | {"name": "buyers"}

    airflow(
        *("dags", "test", "mirrorspark_weekly", "2026-01-05"), "--conf", json.dumps(given), MIRRORSPARK_PIPELINE=command
    )

    calls = log.read_text().splitlines()
    assert len(calls) == 2
    assert all("--run-date 2026-01-05" in line for line in calls)
    record = PipelineRecord.load(job / "output" / "pipelines" / "buyers" / "2026-01-05")
    assert record is not None
    assert record.is_finished
