"""A Spark standalone cluster on this machine: one master, two workers of one core, and the main job on it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyspark
import pytest

from tests.cluster.conftest import wait_until
from training import faults

SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
MASTER = "org.apache.spark.deploy.master.Master"
WORKER = "org.apache.spark.deploy.worker.Worker"

pytestmark = pytest.mark.timeout(400)


@contextmanager
def daemon(log: Path, *command: str) -> Iterator[None]:
    """Run a Spark daemon that writes to ``log``, and end it."""
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}
    with (
        log.open("wb") as file,
        subprocess.Popen([str(SPARK_CLASS), *command], stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a master that two workers of one core have joined."""
    log = tmp_path / "master.log"
    with ExitStack() as daemons:
        daemons.enter_context(daemon(log, MASTER, "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"))
        wait_until(lambda: _master_url(log) is not None, 60, "the start of the master")
        url = str(_master_url(log))
        for number in (1, 2):
            options = ["--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1g"]
            work = ["--work-dir", str(tmp_path / f"work-{number}")]
            daemons.enter_context(daemon(tmp_path / f"worker-{number}.log", WORKER, *options, *work, url))
        wait_until(lambda: _text(log).count("Registering worker") == 2, 60, "the registration of both workers")
        yield url


def test_main_job_on_a_standalone_cluster_survives_the_loss_of_an_executor(
    cluster: str, some_flights: Path, tmp_path: Path
) -> None:
    """T3, T6, S1: ``--master spark://...`` runs every stage on the cluster, though an executor's JVM is killed."""
    summary, output = tmp_path / "summary.json", tmp_path / "output"
    command = [sys.executable, "-m", "training.run", f"--recipe={some_flights}", "--workers=2", "--epochs=4"]
    command += [f"--master={cluster}", f"--output={output}", f"--summary={summary}"]
    with faults.kill_executor(output, rank=1, after=faults.Moment(epoch=1)):
        found = subprocess.run(command, capture_output=True, text=True, timeout=330, check=False)
    assert found.returncode == 0, found.stderr
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["attempts"] == 2
    assert document["parity"]["max"] <= 1e-5
    assert document["parity"]["rows"] == document["dataset"]["rows"]["test"]
    # Both executors, and the one in the place of the lost one, have a folder of the application with their output.
    assert len(list(tmp_path.glob("work-*/app-*/*"))) == 3


def _master_url(log: Path) -> str | None:
    found = re.search(r"Starting Spark master at (spark://[\w.]+:\d+)", _text(log))
    return found.group(1) if found else None


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
