"""The main job with parameter servers: a coordinator, a worker and a server, each in a slot of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import JOB_SECONDS, read_events
from tests.cluster.test_bad_input import write_job


@pytest.mark.full
@pytest.mark.timeout(JOB_SECONDS + 100)
def test_main_job_with_a_parameter_server_delivers_a_checked_model(tmp_path: Path) -> None:
    """T11: the same command, one flag more, and everything behind the training is as it always is."""
    write_job(tmp_path, epochs=2)
    summary = tmp_path / "summary.json"
    # In a process of its own: the session of the tests has two slots, and this takes three.
    command = [sys.executable, "-m", "mirrorspark.training.run", f"--summary={summary}"]
    command += [f"--{name}={tmp_path / name}" for name in ("recipe", "data", "output")]
    command += ["--strategy=parameter_server", "--parameter-servers=1", "--workers=1"]

    found = subprocess.run(command, capture_output=True, text=True, timeout=JOB_SECONDS, check=False)

    assert found.returncode == 0, found.stderr
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert (document["status"], document["attempts"], document["workers"]) == ("finished", 1, 1)
    assert document["parity"]["max"] <= 1e-5
    events = read_events(tmp_path / "output")
    assert {event["rank"] for event in events if event["event"] == "phase"} == {0, 1, 2}
    assert [event["epoch"] for event in events if event["event"] == "epoch_end"] == [1, 2]
    # Their task says when they have ended; nobody was killed.
    assert not [event for event in events if event["event"] == "error"]
