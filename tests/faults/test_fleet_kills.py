"""M6, M7, M8, S20: runs of a fleet on a cluster, of which something is killed at a random moment, end as a clean one.

The victim is the driver (then resumed), an executor, one process of PostgreSQL, or all of them (which are
then started again).
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.servers import standalone_cluster
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.runs import tables
from mirrorspark.fleet.runs.ledger import Ledger
from mirrorspark.fleet.runs.plan import RunPlan
from mirrorspark.storage.paths import StoragePath
from tests.cluster.conftest import wait_until
from tests.cluster.test_run_fleet import digests
from tests.conftest import PATIENCE
from tests.faults.conftest import Count
from tests.mlflow_server import PostgreSQL, end, postgresql_server

RUN_SECONDS = 120.0
LIMIT = PATIENCE * RUN_SECONDS
pytestmark = [pytest.mark.full, pytest.mark.timeout(3 * RUN_SECONDS)]

ROWS, MODELS, MICROBATCHES = 2_400, 12, 12
# A driver that was killed holds its microbatches for so long. One whose ledger is away works for no longer without it.
LEASE_SECONDS, LONG_LEASE_SECONDS = 20, 120
DRIVER, EXECUTOR, SERVER, BACKEND = "driver", "executor", "PostgreSQL", "a process of PostgreSQL"
SEED = 24


@dataclass(frozen=True)
class Kill:
    """A victim, and the time of its kill: after a number of published microbatches, and some seconds.

    Attributes:
        away: Seconds for which a server stays away, at least until a microbatch is published without it.
    """

    what: str
    published: int
    seconds: float
    executor: int
    away: float = 0.0

    def __str__(self) -> str:
        return f"{self.what} after {self.published} microbatches and {self.seconds:.2f} s"


def drawn() -> list[Kill]:
    draw = random.Random(SEED)
    what = [DRIVER] * 4 + [EXECUTOR] * 3 + [SERVER] * 3 + [BACKEND]
    kills = [Kill(one, draw.randint(1, MICROBATCHES - 5), draw.uniform(0, 0.5), draw.randrange(2)) for one in what]
    return [replace(kill, away=60.0) if number == len(kills) - 2 else kill for number, kill in enumerate(kills)]


@dataclass(frozen=True)
class Place:
    """Environment of the runs: the cluster's master, its folder, the ledger, the input with the fleet."""

    master: str
    folder: Path
    server: PostgreSQL
    data: Path

    def command(self, name: str, output: Path, lease_seconds: int = LEASE_SECONDS) -> list[str]:
        """Return the command that begins or resumes the run of an output."""
        command = [sys.executable, "-m", "mirrorspark", "fleet", name, "--master", self.master]
        command += ["--ledger", self.server.address, "--lease-seconds", str(lease_seconds)]
        if name == "resume":
            return [*command, str(output)]
        command += ["--fleet", str(self.data / "fleet"), "--input", str(self.data / "table.parquet")]
        command += ["--output", str(output), "--keys", "key", "--layout", "long"]
        return [*command, "--models-per-microbatch", "4", "--rows-per-microbatch", str(ROWS // 4)]

    def executors(self) -> list[psutil.Process]:
        """Return the JVMs of the cluster's executors."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                is_ours = Path(process.cwd()).is_relative_to(self.folder)
                if is_ours and any("CoarseGrainedExecutorBackend" in part for part in process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    data = tmp_path_factory.mktemp("input")
    random = np.random.default_rng(3)
    columns = {f"c{number}": random.normal(size=ROWS) for number in range(3)}
    pq.write_table(pa.table({"key": np.arange(ROWS), **columns}), data / "table.parquet", row_group_size=ROWS // 8)
    names = [f"m{number}" for number in range(MODELS)]
    terms = {"model": names, "column": [f"c{number % 3}" for number in range(MODELS)]}
    fleet_from_coefficients(pa.table(terms | {"coefficient": random.normal(size=MODELS)})).save(data / "fleet")
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch, postgresql_server() as server:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with standalone_cluster(folder, workers=2) as master:
            yield Place(master, folder, server, data)


@pytest.fixture(scope="module")
def clean(place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the files of an undisturbed run."""
    output = tmp_path_factory.mktemp("clean") / "scores"
    subprocess.run(place.command("run", output), timeout=LIMIT, check=True)
    found = digests(output)
    assert sum(name.endswith("_manifest.json") for name in found) == MICROBATCHES
    return found


@contextlib.contextmanager
def driver(place: Place, output: Path, lease_seconds: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Begin a run in a session of processes of its own, of which nothing is left at the end."""
    with (output.parent / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            place.command("run", output, lease_seconds), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        end(process)


def published(output: Path) -> int:
    return len(list(output.glob("group=*/step=*/rows=*/_manifest.json")))


def has_published(process: "subprocess.Popen[bytes]", output: Path, count: int) -> bool:
    assert process.poll() is None, (output.parent / "driver.log").read_text()
    return published(output) >= count


@pytest.mark.parametrize("kill", drawn(), ids=str)
def test_a_run_of_which_something_is_killed_ends_as_a_clean_one(
    kill: Kill, place: Place, clean: dict[str, str], tmp_path: Path, count: Count
) -> None:
    output = tmp_path / "scores"
    with driver(place, output, LONG_LEASE_SECONDS if kill.what == SERVER else LEASE_SECONDS) as process:
        wait_until(partial(has_published, process, output, kill.published), RUN_SECONDS, f"{kill}: its beginning")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill.seconds)
        assert process.poll() is None, "the run has ended before the kill"
        if kill.what == DRIVER:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(LIMIT)
            assert published(output) < MICROBATCHES
            subprocess.run(place.command("resume", output), timeout=LIMIT, check=True)
        elif kill.what == EXECUTOR:
            executors = place.executors()
            executors[kill.executor % len(executors)].kill()
            assert process.wait(LIMIT) == 0, (tmp_path / "driver.log").read_text()
        elif kill.what == BACKEND:
            # The server then ends all connections, and starts again by itself.
            place.server.kill(False)
            assert process.wait(LIMIT) == 0, (tmp_path / "driver.log").read_text()
        else:
            before = published(output)
            place.server.kill(True)
            try:
                wait_until(partial(has_published, process, output, before + 1), RUN_SECONDS, "work without a ledger")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(kill.away)
                assert process.poll() is None, "the run has ended before its ledger is back"
            finally:
                place.server.start()
            assert process.wait(LIMIT) == 0, (tmp_path / "driver.log").read_text()
    assert {name: digest for name, digest in digests(output).items() if "/." not in f"/{name}"} == clean
    run = RunPlan.load(StoragePath.of(output)).run
    with Ledger.open(place.server.address) as book:
        states = [row["state"] for row in book.rows(tables.MICROBATCHES, run)]
        attempts = Counter(row["microbatch"] for row in book.rows(tables.ATTEMPTS, run) if row["outcome"] == "done")
        (state,) = [row["state"] for row in book.rows(tables.RUNS, run)]
        assert book.rows(tables.ERRORS, run) == []
    assert (states, state) == (["done"] * MICROBATCHES, "finished")
    assert max(attempts.values()) == 1
    # The driver that was killed may have published two microbatches that it could not enter any more.
    assert len(attempts) >= MICROBATCHES - (2 if kill.what == DRIVER else 0)
    count("kills of fleets' runs", {kill.what: 1})
