"""T6: a driver that is asked to stop, in a process of its own, while a second one wants its run.

``tests/cluster/test_main_job.py`` kills one.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.testing.faults import Fault
from mirrorspark.training.entry_points import runs
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import RunUnderWayError, read_state
from tests.cluster.conftest import Driver, Events, driver, wait_until
from tests.cluster.test_bad_input import write_job
from tests.conftest import PATIENCE

pytestmark = [pytest.mark.timeout(240), pytest.mark.full]

# 32 rows of the training split make eight steps: two seconds, so that a stop that reaches the ranks within one comes
# within the epoch.
BATCH = 4
STEP_SECONDS = 0.25


def slow_driver(folder: Path, name: str) -> AbstractContextManager[Driver]:
    """Start the main job on the recipe in ``folder``, with slow steps and more epochs than anybody waits for."""
    flags = [f"--{flag}={folder / flag}" for flag in ("recipe", "data")]
    flags += ["--workers=2", "--patience=0", "--steps-per-execution=1", f"--global-batch-size={BATCH}"]
    flags += ["--baseline=none", "--no-explain", "--epochs=1000", f"--summary={folder / 'summary.json'}"]
    slow = Fault("slow_input", seconds=STEP_SECONDS, attempt=None)
    return driver(flags, folder / "output", folder / f"{name}.log", slow)


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
    with slow_driver(folder, "first") as first:
        wait_until(lambda: is_training(first.events()) or first.process.poll() is not None, 120, "the first epoch")
        assert first.process.poll() is None, first.log.read_text(encoding="utf-8")
        yield first


def test_a_second_driver_is_refused_the_run_of_one_at_work_which_goes_on(
    first: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    """T6: by name from the command line, and where both found the run free a moment ago."""
    run = first.run
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


def test_a_sigterm_saves_within_the_epoch_and_says_so_and_the_same_command_goes_on_until_it_is_stopped_at_once(
    first: Driver, folder: Path
) -> None:
    """T6: exit status, last line and summary; then Ctrl-C twice to a training that can no longer save."""
    run = first.run
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
    with slow_driver(folder, "second") as second:
        wait_until(lambda: is_training(second.events(begun)), 120, "an epoch of the second driver")
        assert second.run == run
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
    assert status == 130
    assert line == f"mirrorspark: stopped at step {newest_step(run):,} (SIGINT); the same command goes on"
    assert newest_step(run) > saved.step
    assert seconds < PATIENCE * 15
