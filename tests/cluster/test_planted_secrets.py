"""T7: secrets of many forms, planted in the input of commands, appear nowhere in their output and files."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.servers import TrackingServer
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE
from tests.cluster.programs.secretive_commands import sql_text
from tests.cluster.test_bad_input import HEADER, RECIPE, SQL, rows
from tests.conftest import PATIENCE
from tests.processes.serving.test_lookup import ask, serving
from tests.unit.storage.secret_forms import FORMS, VARIABLES, Form, in_one_line

PROGRAM = Path(__file__).parent / "programs" / "secretive_commands.py"
STATUS = {"train": [0, 1, 0], "sweep": [0], "runs": [0, 0], "doctor": [0], "score": [1, 2, 0, 0]}


def write_inputs(folder: Path) -> None:
    """Write what the user of the commands brings, with secrets in all of it."""
    failure = f"IF(id = 9, raise_error({sql_text(in_one_line())}), age) AS age"
    comments = "".join(f"-- {line}\n" for form in FORMS for line in form.text.splitlines())
    for name, sql in {"good": SQL, "failing": SQL.replace("age", failure, 1)}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / RECIPE_FILE).write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        (folder / name / SQL_FILE).write_text(comments + sql, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "people.csv").write_text("\n".join([HEADER, *rows()]) + "\n", encoding="utf-8")
    (folder / "secrets.txt").write_text("\n".join(form.text for form in FORMS), encoding="utf-8")
    hook = f"def preprocess(arrays):\n    raise RuntimeError({in_one_line()!r})\n"
    (folder / "hooks.py").write_text(hook, encoding="utf-8")
    (folder / "conf").mkdir()
    properties = [form.text for form in FORMS if form.text.startswith(("spark.", "fs."))]
    (folder / "conf" / "spark-defaults.conf").write_text("\n".join(properties) + "\n", encoding="utf-8")


def text_of(path: Path) -> str:
    """Return the name and the content of a file as text: the rows of a table, the statements of a database."""
    if not path.is_file():
        return str(path)
    content = path.read_bytes()
    text = f"{path}\n{content.decode(errors='replace')}"
    if path.suffix == ".parquet":
        text += f"{pq.read_table(path).to_pylist()}{pq.read_schema(path).metadata}"
    if content.startswith(b"SQLite format 3"):  # which divides long values among its pages
        with sqlite3.connect(path) as database:
            text += "\n".join(database.iterdump())
    return text


@pytest.mark.full
@pytest.mark.timeout(1000)
def test_no_planted_secret_is_left_or_told_by_any_command(tmp_path: Path, s3_bucket: str) -> None:
    folders = {name: tmp_path / name for name in ("output", "work", "temporary", "spark", "server")}
    for folder in folders.values():
        folder.mkdir()
    inputs = tmp_path / "inputs"
    write_inputs(inputs)
    bucket, _, options = s3_bucket.partition("?")
    with TrackingServer(folders["server"]) as server:
        environment = (
            os.environ
            | VARIABLES
            | {
                "MLFLOW_TRACKING_TOKEN": VARIABLES["DATABRICKS_TOKEN"],
                "RIDES_TRACKING": server.uri.replace("://", f"://ann:{VARIABLES['SMTP_PASS']}@"),
                "RIDES_CHECKPOINTS": f"s3://{bucket}/planted?{options}",
                "PYTHONPATH": os.pathsep.join(sys.path),
                "SPARK_CONF_DIR": str(inputs / "conf"),
                "SPARK_LOCAL_DIRS": str(folders["spark"]),
                "TMPDIR": str(folders["temporary"]),
            }
        )
        command = [sys.executable, str(PROGRAM), str(folders["output"]), str(inputs)]
        ended = subprocess.run(
            command,
            cwd=folders["work"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 900,
            check=False,
        )
    assert ended.returncode == 0, ended.stderr

    # All was done, and the problems have been reported.
    for name, status in STATUS.items():
        assert [int(found) for found in re.findall(rf"status (\d) of {name}", ended.stdout)] == status, ended.stderr
    told = "GET http://tracking.example:5000/api refused | postgresql+psycopg2://db:5432/x | "
    assert told in json.loads((folders["output"] / "failed.json").read_text())["error"]
    assert f"WriteError: the table cannot be computed: {told}" in ended.stderr
    assert f"preprocess of hooks.py failed: RuntimeError: {told}" in ended.stderr
    assert "LookupError: no rides in postgresql://db:5432/rides: token ***" in ended.stderr

    left = {"standard output": ended.stdout, "standard error": ended.stderr}
    with serving(folders["output"] / "scores.db") as (port, process):
        left["answers"] = str([ask(port, path) for path in ("/health", "/rows/1", "/rows/1000", "/rows?key=2")])
        process.send_signal(signal.SIGTERM)
        left["server"] = "".join(process.communicate(timeout=PATIENCE * 60))
    left |= {str(path): text_of(path) for folder in folders.values() for path in folder.rglob("*")}
    checkpoints = [file.path for file in StoragePath.of(environment["RIDES_CHECKPOINTS"]).files()]
    assert checkpoints
    left |= {str(path): path.read_bytes().decode(errors="replace") for path in checkpoints}
    planted = [*FORMS, *(Form(name, value, (value,)) for name, value in VARIABLES.items())]
    leaks = {(form.name, name) for name, text in left.items() for form in planted if form.found_in(text)}
    assert leaks == set()
