"""A Spark standalone cluster on this machine, one master and two workers of one core: the main job, and scoring."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.servers import standalone_cluster
from mirrorspark.testing import faults
from tests.cluster.conftest import JOB_SECONDS
from tests.cluster.test_bad_input import write_job
from tests.cluster.test_scoring import direct_scores, said_on_a_cluster
from tests.unit.scoring.exported_models import export_flights

pytestmark = pytest.mark.timeout(JOB_SECONDS + 100)

# Each is short: the executor is lost within one of the first, and the training well before the last.
EPOCHS = 15


@dataclass(frozen=True)
class Cluster:
    """The URL of its master, and the folder in which it and its workers write their logs."""

    master: str
    folder: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with standalone_cluster(folder, workers=2) as master:
        yield Cluster(master, folder)


@pytest.mark.full
def test_models_travel_to_the_executors(cluster: Cluster, tmp_path: Path) -> None:
    """S1, S18, pain 11: an executor scores from the files that Spark sent it, after the driver's were removed."""
    model = export_flights(tmp_path / "flights", 1)
    expected = list(direct_scores(model).values())
    *scores, archives = said_on_a_cluster("scoring_cluster.py", tmp_path, model, cluster.master)[-7:]
    assert [float(line) for line in scores] == pytest.approx(expected, rel=0, abs=1e-6)
    assert archives == "archives 2", "the second scoring sends nothing again, and models of groups travel together"


def test_main_job_survives_the_loss_of_an_executor(cluster: Cluster, tmp_path: Path) -> None:
    """T3, T6, S1: ``--master spark://...`` runs every stage on the cluster, though an executor's JVM is killed."""
    summary, output = tmp_path / "summary.json", tmp_path / "output"
    job = write_job(tmp_path / "job", epochs=EPOCHS, patience=0)
    command = [sys.executable, "-m", "mirrorspark.training.run", f"--recipe={job / 'recipe'}", f"--data={job / 'data'}"]
    command += ["--workers=2", f"--master={cluster.master}", f"--output={output}", f"--summary={summary}"]
    command += ["--baseline=none", "--no-explain"]
    applications = set(cluster.folder.glob("work-*/app-*"))
    with faults.kill_executor(output, rank=1, after=faults.Trigger(epoch=1)):
        found = subprocess.run(command, capture_output=True, text=True, timeout=JOB_SECONDS, check=False)
    assert found.returncode == 0, found.stderr
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["attempts"] == 2
    assert document["parity"]["max"] <= 1e-5
    assert document["parity"]["rows"] == document["dataset"]["rows"]["test"]
    # Both executors, and the one in the place of the lost one. "At least": the master may replace others, for example
    # one that has sent it nothing for a while; the training has not noticed that, as it has two attempts.
    ours = set(cluster.folder.glob("work-*/app-*")) - applications
    logs = [log.read_text(encoding="utf-8") for folder in ours for log in folder.glob("*/stderr")]
    assert sum("Running task" in log for log in logs) >= 3, (cluster.folder / "master.log").read_text(encoding="utf-8")
