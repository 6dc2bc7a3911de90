"""T6: a driver that is asked to stop, in a process of its own, while a second one wants its run."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.testing import faults
from mirrorspark.testing.faults import Fault
from mirrorspark.training.entry_points import runs
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import RunUnderWayError, read_state
from tests.cluster.conftest import JOB_SECONDS, Events, read_events, wait_until
from tests.cluster.test_bad_input import write_job
from tests.cluster.test_main_job import Finished, run

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(240)

MARK = "MIRRORSPARK_TEST_MARK"
# 32 rows of the training split make eight steps: two seconds, so that a stop that reaches the ranks within one comes
# within the epoch.
BATCH = 4
STEP_SECONDS = 0.25


@dataclass(frozen=True)
class Driver:
    """A run in a process of its own.

    Attributes:
        process: Of the driver; the leader of a process group, as a shell would have it.
        output: Folder of its run.
        log: Its output.
        mark: A value in the environment of every process that it starts, on whatever host.
    """

    process: subprocess.Popen[bytes]
    output: Path
    log: Path
    mark: str

    def events(self, since: float = 0.0) -> Events:
        """Return the events of its run from that time on."""
        # An epoch that ended while no driver listened has no time: the driver that goes on reads it in a checkpoint.
        return [event for event in read_events(self.output) if event.get("time", since) >= since]

    def family(self) -> list[psutil.Process]:
        """Return all that it has started and that still runs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self, since: float = 0.0) -> dict[int, int]:
        """Return the process of each rank."""
        return {event["rank"]: event["process"] for event in self.events(since) if event["event"] == "phase"}

    def ended(self, seconds: float) -> tuple[int, str]:
        """Return its exit status and its last line, once it and all that it has started have ended."""
        status = self.process.wait(seconds)
        wait_until(lambda: not self.family(), 20, "the end of all that the driver had started", is_promised=True)
        return status, self.log.read_text(encoding="utf-8").splitlines()[-1]


def flags_for(folder: Path) -> list[str]:
    """Return the flags that all commands on the recipe in ``folder`` share."""
    places = [f"--{flag}={folder / flag}" for flag in ("recipe", "data")]
    flags = ["--workers=2", "--patience=0", "--steps-per-execution=1", f"--global-batch-size={BATCH}"]
    return [*places, *flags, "--baseline=none", "--no-explain"]


@contextmanager
def driver(folder: Path, name: str, *, epochs: int = 1000) -> Iterator[Driver]:
    """Start the main job on the recipe in ``folder``, with slow steps, and let nothing of it outlive the block."""
    mark = uuid.uuid4().hex
    slow = Fault("slow_input", seconds=STEP_SECONDS, attempt=None)
    command = [sys.executable, "-m", "mirrorspark.training.run", *flags_for(folder), f"--epochs={epochs}"]
    command += [f"--output={folder / 'output'}", f"--summary={folder / 'summary.json'}"]
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env=os.environ | {MARK: mark, faults.VARIABLE: str(slow)},
            start_new_session=True,
        )
    started = Driver(process, folder / "output", log, mark)
    try:
        yield started
    finally:
        for left in started.family():
            with suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(20)


def is_training(events: Events, epoch: int = 0) -> bool:
    """Return true if both ranks train, and more than ``epoch`` epochs are over."""
    phases = {event["rank"] for event in events if event.get("phase") == "training"}
    return phases == {0, 1} and any(e["event"] == "epoch_end" and e["epoch"] > epoch for e in events)


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint of a run that has one."""
    newest = commit.latest_committed(run / "checkpoints")
    assert newest is not None
    return newest.step


def summary(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("stops"))


@pytest.fixture(scope="module")
def first(folder: Path) -> Iterator[Driver]:
    """A driver whose ranks train."""
    with driver(folder, "first") as first:
        wait_until(lambda: is_training(first.events()) or first.process.poll() is not None, 120, "the first epoch")
        assert first.process.poll() is None, first.log.read_text(encoding="utf-8")
        yield first


def run_of(driver: Driver) -> Path:
    (state,) = driver.output.glob("runs/*/run.json")
    return state.parent


@pytest.mark.full
def test_a_second_driver_is_refused_the_run_of_one_at_work_which_goes_on(
    first: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    """T6: by name from the command line, and where both found the run free a moment ago."""
    run = run_of(first)
    before = read_state(run)
    assert before is not None
    epoch = max(event["epoch"] for event in first.events() if event["event"] == "epoch_end")

    status = runs.main(["resume", run.name, f"--output={first.output}"])

    assert status == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"mirrorspark: run {run.name} is under way (process {first.process.pid} on ")
    assert line.endswith("); wait for it, or stop it")
    folder = RunFolder(run, before.identity, before.mlflow_run_id)
    with pytest.raises(RunUnderWayError, match=r"under way in another driver \(process "), folder.hold():
        pytest.fail("two drivers hold one run")
    wait_until(lambda: is_training(first.events(), epoch), 30, "another epoch of the first driver")
    after = read_state(run)
    assert after is not None
    assert (after.holder, after.status, after.process) == (before.holder, "running", first.process.pid)
    assert [event["attempt"] for event in first.events() if event["event"] == "attempt"] == [1]


@pytest.mark.full
def test_a_sigterm_saves_within_the_epoch_and_says_so_and_the_same_command_goes_on_until_it_is_stopped_at_once(
    first: Driver, folder: Path
) -> None:
    """T6: exit status, last line and summary; then Ctrl-C twice to a training that can no longer save."""
    run = run_of(first)
    first.process.send_signal(signal.SIGTERM)
    status, line = first.ended(60)

    saved = commit.latest_committed(run / "checkpoints")
    assert saved is not None
    assert status == 1
    assert line == f"mirrorspark: stopped at step {saved.step:,} (SIGTERM); the same command goes on"
    assert "stopping: SIGTERM; the ranks save a checkpoint first" in first.log.read_text(encoding="utf-8")
    assert (summary(folder)["status"], summary(folder)["error"]) == ("stopped", line.removeprefix("mirrorspark: "))
    state = read_state(run)
    assert state is not None
    assert state.status == "stopped"
    assert saved.step_in_epoch > 0

    begun = time.time()
    with driver(folder, "second") as second:
        wait_until(lambda: is_training(second.events(begun)), 120, "an epoch of the second driver")
        assert run_of(second) == run
        (attempt,) = [event for event in second.events(begun) if event["event"] == "attempt"]
        assert attempt["resumed_from"] == saved.step
        # An epoch ends before its checkpoint is there: that is published in the background.
        wait_until(lambda: newest_step(run) > saved.step, 60, "a checkpoint of the second driver")

        os.kill(second.ranks(begun)[1], signal.SIGSTOP)
        # To all of the terminal's foreground group, as the terminal does it.
        os.killpg(second.process.pid, signal.SIGINT)
        what = "the word of the first Ctrl-C"
        wait_until(lambda: "stopping" in {e["event"] for e in second.events(begun)}, 20, what, is_promised=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.process.wait(2)  # it waits for a checkpoint
        asked = time.monotonic()
        os.killpg(second.process.pid, signal.SIGINT)
        status, line = second.ended(60)
        seconds = time.monotonic() - asked
    assert status == 1
    assert line == f"mirrorspark: stopped at step {newest_step(run):,} (SIGINT); the same command goes on"
    assert newest_step(run) > saved.step
    assert seconds < 15


@pytest.mark.timeout(2 * JOB_SECONDS)
def test_killed_driver_goes_on_where_it_was(
    spark: "SparkSession", tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """T6, T7: the same command continues the same MLflow run, and all processes of the dead driver have ended."""
    write_job(tmp_path)
    begun = time.time()
    with driver(tmp_path, "killed", epochs=4) as killed:
        wait_until(lambda: is_training(killed.events(begun), 1) or killed.process.poll() is not None, 120, "two epochs")
        assert killed.process.poll() is None, killed.log.read_text(encoding="utf-8")
        killed.process.kill()
        status, _ = killed.ended(60)
    assert status == -signal.SIGKILL
    folder = run_of(killed)
    left = read_state(folder)
    assert left is not None
    assert left.status == "running"

    begun = time.time()
    resumed = run(killed.output, *flags_for(tmp_path), "--epochs=4")
    assert Path(resumed.summary["run_folder"]) == folder
    (attempt,) = [event for event in killed.events(begun) if event["event"] == "attempt"]
    assert attempt["resumed_from"] > 0
    assert resumed.summary["run_id"] == left.mlflow_run_id
    assert resumed.epochs_in_mlflow() == [1, 2, 3, 4]
    if request.config.getoption("full"):  # one job more; `make test` compares the scores of killed ranks
        unbroken = run(tmp_path / "unbroken", *flags_for(tmp_path), "--epochs=4")
        np.testing.assert_allclose(scores_of(resumed), scores_of(unbroken), atol=1e-6)


def scores_of(finished: Finished) -> Any:
    """Return the scores in the order of their keys."""
    return pq.read_table(finished.summary["scored_table"]).sort_by("id")["score"].to_numpy()
