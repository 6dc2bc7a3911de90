"""Fixtures for tests of real runs: a small recipe of real flights, the output of a run so far, and kills."""

import contextlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.checkpoint_store import Location
from mirrorspark.testing import faults
from mirrorspark.testing.faults import Act, Fault, Run
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE, load_recipe
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Events = list[dict[str, Any]]

JOB_SECONDS = 600
"""When a whole job in a process of its own is given up. It takes about one minute, but many where other work runs."""

# Every day up to the third: a tenth of the rows, with all three splits. The query looks at no other day of a flight, so
# the other days need not go through its windows and joins.
_ALL_DAYS, _SOME_DAYS = "FROM flights\n", "FROM flights WHERE day <= 3\n"
_KNOBS = {"baseline": "none", "epochs": 4, "global_batch_size": 256}


@pytest.fixture(scope="session")
def some_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the flights recipe on a tenth of its rows, without its baseline."""
    folder = tmp_path_factory.mktemp("recipes") / "some_flights"
    folder.mkdir()
    knobs = load_recipe("flights")
    sql = knobs.pop("sql")
    knobs.pop("recipe")
    assert sql.count(_ALL_DAYS) == 1
    (folder / SQL_FILE).write_text(sql.replace(_ALL_DAYS, _SOME_DAYS), encoding="utf-8")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(knobs | _KNOBS), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run_one(peers: Path) -> Callable[..., Any]:
    """Return the function of ``run.py`` that replaces the data sets, and runs an example."""
    found: Callable[..., Any] = runpy.run_path(str(peers / "run.py"), run_name="peers")["train"]
    return found


@pytest.fixture
def own_python_workers(request: pytest.FixtureRequest, spark: "SparkSession", monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test's jobs Python workers of their own, at most one per slot.

    A query with two Python steps leaves twice as many in Spark's pool, and later jobs of the session take turns on all
    of them.
    """
    # Spark keeps a pool for each environment.
    monkeypatch.setitem(spark.sparkContext.environment, "MIRRORSPARK_TEST", request.node.nodeid)


def newest_run(output: Path) -> Path | None:
    """Return the folder of the run under ``output`` that had an event last; None if there is none."""
    files = sorted(output.glob("runs/*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    return files[-1].parent if files else None


def read_events(output: Path) -> Events:
    """Return the events of the newest run under ``output``; a line that is being written is left out."""
    run = newest_run(output)
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True) if run else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


_MARK = "MIRRORSPARK_TEST_MARK"


@dataclass(frozen=True)
class Driver:
    """A main job in a process of its own.

    Attributes:
        process: Process of the driver; the leader of a process group, as a shell would have it.
        output: Folder of its run.
        log: Its output.
        mark: A value in the environment of every process that it starts, on whatever host.
    """

    process: "subprocess.Popen[bytes]"
    output: Path
    log: Path
    mark: str

    @property
    def run(self) -> Path:
        """Folder of the newest run of its output."""
        run = newest_run(self.output)
        assert run is not None
        return run

    def events(self, since: float = 0.0) -> Events:
        """Return the events of its run from that time on."""
        # An epoch that ended while no driver listened has no time: the driver that goes on reads it in a checkpoint.
        return [event for event in read_events(self.output) if event.get("time", since) >= since]

    def family(self) -> list[psutil.Process]:
        """Return all that it has started and that still runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self, since: float = 0.0) -> dict[int, int]:
        """Return the process of each rank."""
        return {event["rank"]: event["process"] for event in self.events(since) if event["event"] == "phase"}

    def ended(self, seconds: float) -> tuple[int, str]:
        """Return its exit status and its last line, once it and all that it has started have ended."""
        status = self.process.wait(seconds)
        wait_until(lambda: not self.family(), 20, "the end of all that the driver had started", is_promised=True)
        *_, last = ["", *self.log.read_text(encoding="utf-8").splitlines()]
        return status, last


@contextlib.contextmanager
def driver(flags: list[str], output: Path, log: Path, fault: Fault | None = None) -> Iterator[Driver]:
    """Start the main job with these flags in a process, and let nothing of it outlive the block."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "mirrorspark.training.run", *flags, f"--output={output}"]
    environment = os.environ | {_MARK: mark} | ({} if fault is None else {faults.VARIABLE: str(fault)})
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    started = Driver(process, output, log, mark)
    try:
        yield started
    finally:
        for left in started.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(20)


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, is_promised: bool = False) -> None:
    """Wait for ``condition``, within ``seconds`` if they are promised; else they end a hang, and may be longer."""
    limit = seconds if is_promised else PATIENCE * seconds
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {limit} s")
        time.sleep(0.005)


def checkpoints_of(run: Run) -> Location:
    """Return the default folder of a run's checkpoints."""
    return run.folder / "checkpoints"


def kill_within_an_epoch(
    rank: int, *, epoch: int = 1, until: float = math.inf, where: Callable[[Run], Location] = checkpoints_of
) -> Act:
    """Return a function that sends ``rank`` SIGKILL once the newest checkpoint of its run lies within an epoch.

    Args:
        rank: The rank to kill.
        epoch: The least number of epochs that are complete in that checkpoint.
        until: Most steps of the next one in it. Those after it, which are being published in the background, are within
            the epoch, too, if this is well below an epoch's steps.
        where: Returns the store of the run's checkpoints.
    """

    def is_due(newest: commit.CommittedCheckpoint) -> bool:
        return newest.epoch >= epoch and 0 < newest.step_in_epoch <= until

    @contextlib.contextmanager
    def act(run: Run) -> Iterator[int]:
        process = run.process(rank)
        stop_rank(process, where(run), is_due)
        os.kill(process, signal.SIGKILL)
        yield process

    return act


def stop_rank(process: int, checkpoints: Location, is_due: Callable[[commit.CommittedCheckpoint], bool]) -> None:
    """Send a rank SIGSTOP while the newest checkpoint is one that is due."""

    def is_saved() -> bool:
        newest = commit.latest_committed(checkpoints, verify=False)
        return newest is not None and is_due(newest)

    def is_stopped_in_time() -> bool:
        if not is_saved():
            return False
        # While it stands still, the others get no further than the next step.
        os.kill(process, signal.SIGSTOP)
        if not is_saved():
            os.kill(process, signal.SIGCONT)
            return False
        return True

    wait_until(is_stopped_in_time, 60, "a checkpoint within an epoch")
