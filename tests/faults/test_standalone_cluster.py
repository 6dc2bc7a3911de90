"""A Spark standalone cluster on this machine: one master, two workers of one core, and the main job on it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.servers import standalone_cluster
from mirrorspark.testing import faults
from tests.cluster.conftest import JOB_SECONDS
from tests.cluster.test_bad_input import write_job

pytestmark = pytest.mark.timeout(JOB_SECONDS + 100)

# Each is short: the executor is lost within one of the first, and the training well before the last.
EPOCHS = 30


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a master that two workers of one core have joined."""
    with standalone_cluster(tmp_path, workers=2) as url:
        yield url


@pytest.mark.full
def test_main_job_on_a_standalone_cluster_survives_the_loss_of_an_executor(cluster: str, tmp_path: Path) -> None:
    """T3, T6, S1: ``--master spark://...`` runs every stage on the cluster, though an executor's JVM is killed."""
    summary, output = tmp_path / "summary.json", tmp_path / "output"
    job = write_job(tmp_path / "job", epochs=EPOCHS, patience=0)
    command = [sys.executable, "-m", "mirrorspark.training.run", f"--recipe={job / 'recipe'}", f"--data={job / 'data'}"]
    command += ["--workers=2", f"--master={cluster}", f"--output={output}", f"--summary={summary}"]
    with faults.kill_executor(output, rank=1, after=faults.Trigger(epoch=1)):
        found = subprocess.run(command, capture_output=True, text=True, timeout=JOB_SECONDS, check=False)
    assert found.returncode == 0, found.stderr
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["attempts"] == 2
    assert document["parity"]["max"] <= 1e-5
    assert document["parity"]["rows"] == document["dataset"]["rows"]["test"]
    # Both executors, and the one in the place of the lost one. "At least": whom else the master replaces, say one that
    # it has not heard of for a while, is its own affair, and the training has not noticed it: it has two attempts.
    logs = [log.read_text(encoding="utf-8") for log in tmp_path.glob("work-*/app-*/*/stderr")]
    assert sum("Running task" in log for log in logs) >= 3, (tmp_path / "master.log").read_text(encoding="utf-8")
