"""M6: a model for which the memory of a task does not suffice is reported, in a process whose memory is limited."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[3]

# Two models, one of which needs 1.6 GB for 2,048 rows, in a task that has half of that.
TASK = """
import json, resource, sys
import numpy as np, psutil, pyarrow as pa
from mirrorspark.fleet.runs.task import MicrobatchWriter, Selection
from mirrorspark.scoring.task import ShippedModel
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SaveMode, WriteJob
from tests.unit.fleet.test_runs import network

folder, fleet = sys.argv[1], network("wide", 200_000).with_models(network("small", 8))
fleet.save(folder + "/fleet")
shipped = ShippedModel(fleet.digest, "fleet", path=folder + "/fleet", archive=None)
rows = pa.RecordBatch.from_pydict({"key": np.arange(2_048), "x": np.ones(2_048)})

def report(selection, rows):
    job = WriteJob.begin(StoragePath.of(folder) / "output", SaveMode.ERROR)
    keys = pa.schema([("key", pa.int64())])
    writer = MicrobatchWriter(job, keys, shipped, "wide", ("score",), selection)
    (found,) = [row["report"] for row in writer.write(0, lambda _: [rows]).to_pylist() if row["report"]]
    job.abort()
    return json.loads(found)["failures"]

assert report(Selection(fleet.names, ("wide",)), rows) == []  # compiles the kernels
limit = psutil.Process().memory_info().vms + 800 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(json.dumps([report(Selection(fleet.names), rows), report(Selection(fleet.names, ("wide",)), rows)]))
"""


def test_a_model_that_does_not_fit_into_the_memory_of_a_task_is_reported_and_the_other_is_scored(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TASK, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    failures, without = json.loads(done.stdout.splitlines()[-1])
    (failure,) = failures
    assert (failure["model"], failure["stage"], failure["partition"]) == ("wide", "score", 0)
    assert failure["error"].endswith("MemoryError")
    assert failure["message"].startswith("Unable to allocate 1.53 GiB for an array with shape (1, 200000, 2048)")
    assert without == []
