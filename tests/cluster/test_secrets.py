"""T7: secrets that are planted in environment, configuration and errors are nowhere in what a failed run leaves."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest

from tests.cluster.conftest import read_events
from tests.conftest import PATIENCE

pytestmark = pytest.mark.timeout(180)

PROGRAM = Path(__file__).parent / "programs" / "secretive_training.py"

PLANTED = {
    "the tracking token": "tracking-0f3a9c77d1",
    "the key of the store": "Wj7/store+key/5e2b80aa",
    "the password of the database": "p@ss/db-61c4e09f",
    "the password of the tracking server": "server-88d2f1b3",
}


def searched(folder: Path) -> dict[str, bytes]:
    """Return all that is left below a folder, by name: the names are searched as well."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def found_in(name: str, content: bytes) -> list[str]:
    """Return the secrets that are in there: as they are, as in JSON, and as in an address."""
    text = content + name.encode()
    return [
        what
        for what, secret in PLANTED.items()
        if any(form.encode() in text for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe="")))
    ]


@pytest.mark.full
def test_no_secret_is_left_by_trainings_that_fail_with_errors_full_of_them(tmp_path: Path) -> None:
    """T7: standard output and error, the runs' folders, MLflow's store, temporary files, and everybody's arguments."""
    folders = {name: tmp_path / name for name in ("output", "work", "temporary", "spark")}
    for folder in folders.values():
        folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:  # nobody listens there a moment later
        port = taken.getsockname()[1]
    environment = os.environ | {
        "MLFLOW_TRACKING_TOKEN": PLANTED["the tracking token"],
        "AWS_SECRET_ACCESS_KEY": PLANTED["the key of the store"],
        "RIDES_DATABASE": f"postgresql://reader:{PLANTED['the password of the database']}@db:5432/rides",
        "RIDES_TRACKING": f"http://ann:{PLANTED['the password of the tracking server']}@127.0.0.1:{port}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TMPDIR": str(folders["temporary"]),
        "SPARK_LOCAL_DIRS": str(folders["spark"]),
    }
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), str(folders["output"])],
        cwd=folders["work"],
        env=environment,
        capture_output=True,
        timeout=PATIENCE * 150,
        check=False,
    )
    said = ended.stderr.decode()

    assert ended.returncode == 1, said
    # Every message has been printed, without the secrets; once by each run.
    failure = "LookupError: no rides in postgresql://db:5432/rides: token ***, key ***"
    failures = re.findall(r"TrainingFailedError: training failed: rank [01]: (.*)", said)
    assert failures == [failure, failure], said
    assert "connecting to postgresql://db:5432/rides as ***" in said
    assert "(secret_access_key=***" in said
    states = {path.parent.name: json.loads(path.read_text()) for path in folders["output"].glob("runs/*/run.json")}
    assert [state["status"] for state in states.values()] == ["failed", "failed"]
    assert {"attempt", "log", "error"} <= {event["event"] for event in read_events(folders["output"])}
    (run_id,) = [state["mlflow_run_id"] for state in states.values() if state["mlflow_run_id"] is not None]
    client = mlflow.MlflowClient(f"sqlite:///{folders['output'] / 'mlflow.db'}")
    assert client.get_run(run_id).info.status == "FAILED"
    logs = [path.read_text() for path in folders["output"].glob("runs/*/events.jsonl")]
    assert ["mlflow_sent" in log for log in logs].count(True) == 1
    assert (folders["output"] / "arguments.txt").stat().st_size > 0

    left = {"standard output": ended.stdout, "standard error": ended.stderr}
    for folder in folders.values():
        left |= searched(folder)
    assert {name: found for name, content in left.items() if (found := found_in(name, content))} == {}
