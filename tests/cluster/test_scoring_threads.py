"""S10: a model computes with the cores of its task, and its Python worker starts no threads beyond them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import PATIENCE, cold_workers
from tests.unit.scoring.exported_models import FLIGHTS, export_flights

REPOSITORY = Path(__file__).resolve().parents[2]
# The tests' own settings of threads, which would override the session's.
SAID = ("OMP_NUM_THREADS", "TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS")
pytestmark = pytest.mark.timeout(500)


def threads_of_a_job(folder: Path, model: Path, cores: int) -> dict[str, Any]:
    """Return the report of a job whose tasks have ``cores`` cores, in a process of its own."""
    told = folder / f"told-{cores}"
    told.mkdir()
    arguments = [folder / "flights.parquet", model, folder / f"scores-{cores}", told, cores]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.programs.scoring_threads", *map(str, arguments)],
        cwd=REPOSITORY,
        env={name: value for name, value in cold_workers().items() if name not in SAID},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    threads: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return threads


@pytest.mark.full
def test_a_python_worker_has_the_threads_of_its_task(tmp_path: Path) -> None:
    """Compare two jobs that differ in ``spark.task.cpus``, by the counters and by the system's count."""
    pq.write_table(FLIGHTS, tmp_path / "flights.parquet")
    model = export_flights(tmp_path / "model", 1)
    one, nine = (threads_of_a_job(tmp_path, model, cores) for cores in (1, 9))
    assert (one["counted"], nine["counted"]) == (1, 9)
    # Within operations, and between them; how many pools it makes of that is TensorFlow's own.
    for cores, job in ((1, one), (9, nine)):
        assert job["settings"]
        assert all(settings == [cores, cores] for settings in job["settings"])
    assert nine["started"] > one["started"]
