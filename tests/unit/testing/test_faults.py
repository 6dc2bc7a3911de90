"""The kit that injects faults: its arguments, moments and ranks, and that nothing stays."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mirrorspark.testing import faults
from mirrorspark.testing.faults import Fault, NotInjectedError, Run, Trigger
from mirrorspark.training.run_records.run_state import RunState

SECONDS = 60.0
NOBODY = 4_194_305  # no process has a number above 4,194,304


@contextlib.contextmanager
def waiting(*marks: str) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that waits; its command line ends with ``marks``."""
    with subprocess.Popen([sys.executable, "-c", "input()", *marks], stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with waiting() as one:
        yield one


class Written:
    """A run's folder as its driver writes it."""

    def __init__(self, output: Path, name: str = "run", driver: int = NOBODY) -> None:
        self.folder = output / "runs" / name
        self.folder.mkdir(parents=True)
        started = psutil.Process(driver).create_time() if driver != NOBODY else 0.0
        state = RunState("identity", "running", None, os.uname().nodename, driver, started)
        (self.folder / "run.json").write_text(json.dumps(dataclasses.asdict(state)))

    def say(self, event: str, rank: int = 0, **fields: Any) -> None:
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": event, "rank": rank, "attempt": 1} | fields) + "\n")

    def train(self, rank: int, process: int) -> None:
        self.say("phase", rank, phase="training", host=os.uname().nodename, process=process)


def try_it(run: Written, process: int) -> None:
    """Let the moment come, and wait until what was to happen has been tried."""
    run.train(0, process)
    join_faults()


def threads_of_faults() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fault"]


def join_faults() -> None:
    for thread in threads_of_faults():
        thread.join(SECONDS)


def state_of(process: subprocess.Popen[bytes]) -> str:
    return str(psutil.Process(process.pid).status())


def wait_until_stopped(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while state_of(process) != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill:rank=1,step=40", Fault("kill", rank=1, step=40)),
        ("raise:", Fault("raise")),
        ("no_memory:rank=0", Fault("no_memory", rank=0)),
        ("hang_input:attempt=every", Fault("hang_input", attempt=None)),
        ("slow_input:seconds=0.5,attempt=2", Fault("slow_input", seconds=0.5, attempt=2)),
        ("full_disk:path=/run/checkpoints", Fault("full_disk", path="/run/checkpoints")),
    ],
)
def test_a_fault_is_written_as_it_is_read(text: str, fault: Fault) -> None:
    assert faults.parse(text) == (fault,)
    assert faults.parse(str(fault)) == (fault,)


def test_several_faults_stand_in_one_text() -> None:
    assert faults.parse(" kill:rank=1 ; hang ") == (Fault("kill", rank=1), Fault("hang"))
    assert faults.parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("explode:rank=1", "fault 'explode' is unknown; use one of"),
        ("kill:rank=one", "rank 'one' is not a number"),
        ("kill:when=40", "'when' is unknown; use some of"),
        ("kill:step=-1", "use 0 or more"),
        ("full_disk", "full_disk needs one"),
        ("hang:path=/tmp", "no other kind does"),
    ],
)
def test_a_text_that_is_no_fault_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        faults.parse(text)


def test_a_fault_is_for_one_attempt_unless_it_is_for_every_one() -> None:
    assert [Fault("kill", rank=1).applies(rank, attempt) for rank, attempt in [(1, 1), (0, 1), (1, 2)]] == [1, 0, 0]
    assert Fault("kill", attempt=None).applies(3, 7)


def test_the_steps_of_a_validation_are_no_steps_of_the_training() -> None:
    validation = {"event": "validation", "rank": 0, "attempt": 1, "epoch": 1, "step": 40}
    assert not Trigger(step=40).is_met([validation], 0)
    assert Trigger(step=40).is_met([validation, validation | {"event": "epoch_end"}], 0)


def test_the_ranks_of_a_session_have_faults_only_within_the_block() -> None:
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(environment={"OTHER": "1"}))
    with faults.injected(spark, Fault("kill", rank=1), Fault("hang")):
        assert faults.parse(spark.sparkContext.environment[faults.VARIABLE]) == (Fault("kill", rank=1), Fault("hang"))
    assert spark.sparkContext.environment == {"OTHER": "1"}


EVENTS = [
    {"event": "phase", "rank": 0, "attempt": 1, "phase": "training"},
    {"event": "alive", "rank": 0, "attempt": 1, "step": 30, "epoch": 2},
    {"event": "epoch_end", "rank": 0, "attempt": 1, "epoch": 1, "step": 20},
]


@pytest.mark.parametrize(
    ("moment", "rank", "is_met"),
    [
        (Trigger(), 0, True),
        (Trigger(step=30), 0, True),
        (Trigger(step=31), 0, False),
        (Trigger(step=30), 1, False),
        (Trigger(epoch=1), 1, True),
        (Trigger(epoch=2), 0, False),
        (Trigger(phase="training"), 0, True),
        (Trigger(phase="training"), 1, False),
        (Trigger(step=30, phase="validation"), 0, False),
        (Trigger(step=30, attempt=1), 0, True),
        (Trigger(attempt=2), 0, False),
    ],
)
def test_a_trigger_is_met_when_all_its_conditions_hold(moment: Trigger, rank: int, is_met: bool) -> None:
    assert moment.is_met(EVENTS, rank) is is_met


@pytest.mark.process
def test_a_rank_is_killed_at_its_moment_whatever_an_older_run_says(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    old = Written(tmp_path, "old")
    with faults.kill(tmp_path, rank=1, after=Trigger(epoch=2)) as injection:
        old.train(1, NOBODY)
        old.say("epoch_end", epoch=5)
        new = Written(tmp_path, "new")
        new.train(1, process.pid)
        assert not injection.happened.wait(0.1)
        new.say("epoch_end", epoch=2)
        assert process.wait(timeout=SECONDS) == -signal.SIGKILL
    assert (injection.process, injection.happened.is_set()) == (process.pid, True)
    assert injection.time is not None


@pytest.mark.process
def test_a_run_that_goes_on_counts_from_now_on(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    run = Written(tmp_path)
    run.train(0, NOBODY)
    run.say("epoch_end", epoch=7)
    with faults.preempt(run.folder, rank=0, after=Trigger(epoch=2)) as injection:
        run.train(0, process.pid)
        assert not injection.happened.wait(0.1)
        run.say("epoch_end", epoch=8)
        assert process.wait(timeout=SECONDS) == -signal.SIGTERM


@pytest.mark.process
def test_the_newest_process_of_a_rank_counts(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    with faults.kill(tmp_path, rank=0, after=Trigger(attempt=2)):
        run = Written(tmp_path)
        run.train(0, NOBODY)
        run.say("phase", attempt=2, phase="connecting", process=process.pid)
        assert process.wait(timeout=SECONDS) == -signal.SIGKILL


@pytest.mark.process
def test_a_rank_that_is_stopped_goes_on_afterwards(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    with faults.stop(tmp_path, rank=0):
        Written(tmp_path).train(0, process.pid)
        wait_until_stopped(process)
    assert state_of(process) != psutil.STATUS_STOPPED
    assert process.communicate(b"\n", timeout=SECONDS) == (None, None)
    assert process.returncode == 0


@pytest.mark.process
def test_a_rank_may_be_stopped_for_a_while_only(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    with faults.stop(tmp_path, rank=0, for_seconds=0.2):
        Written(tmp_path).train(0, process.pid)
        # The kernel keeps this report, which only a process that was stopped gives; a look at its state may come late.
        assert os.waitid(os.P_PID, process.pid, os.WCONTINUED) is not None
        process.communicate(b"\n", timeout=SECONDS)
    assert process.returncode == 0


@pytest.mark.process
def test_a_driver_is_killed_in_its_own_process(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    with faults.kill_driver(tmp_path):
        Written(tmp_path, driver=process.pid).train(0, NOBODY)
        assert process.wait(timeout=SECONDS) == -signal.SIGKILL


def test_a_driver_does_not_kill_itself(tmp_path: Path) -> None:
    with pytest.raises(NotInjectedError, match="the driver is this process"), faults.kill_driver(tmp_path):
        try_it(Written(tmp_path, driver=os.getpid()), NOBODY)


@pytest.mark.process
def test_an_executor_is_found_above_its_rank(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; print(os.getpid()); input()'])"
    command = [sys.executable, "-uc", program, "org.apache.spark.executor.CoarseGrainedExecutorBackend"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as executor:
        assert executor.stdout is not None
        rank = int(executor.stdout.readline())
        try:
            with faults.kill_executor(tmp_path, rank=0):
                Written(tmp_path).train(0, rank)
                assert executor.wait(timeout=SECONDS) == -signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)


@pytest.mark.process
def test_a_local_session_has_no_executor_to_kill(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    with (
        pytest.raises(NotInjectedError, match="in a local session the driver's JVM is the executor"),
        faults.kill_executor(tmp_path, rank=0),
    ):
        try_it(Written(tmp_path), process.pid)
    assert process.poll() is None


def test_a_rank_on_another_host_is_left_to_that_host(tmp_path: Path) -> None:
    told = {"event": "phase", "rank": 0, "host": "elsewhere", "process": os.getpid()}
    with pytest.raises(ProcessLookupError, match="rank 0 runs on elsewhere; inject its fault there"):
        Run(tmp_path, (told,)).process(0)


def test_a_run_that_ends_before_the_moment_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(NotInjectedError, match=r"the run ended before the trigger was met \(phase training\)"),
        faults.kill(tmp_path, rank=0),
    ):
        Written(tmp_path)


def test_a_moment_that_never_comes_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(NotInjectedError, match=r"was not met within 0\.1 s"),
        faults.kill(tmp_path, rank=0, timeout_seconds=0.1) as injection,
    ):
        join_faults()
    assert not injection.happened.is_set()


def test_the_runs_own_error_goes_first(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="the run's own"), faults.kill(tmp_path, rank=0):
        raise LookupError("the run's own")
    assert threads_of_faults() == []


def test_anything_can_be_done_at_a_moment_and_is_undone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with faults.inject_when(tmp_path, Trigger(epoch=1), faults.vanished(store), for_seconds=0.1) as injection:
        assert store.is_dir()
        Written(tmp_path).say("epoch_end", epoch=1)
        assert injection.happened.wait(SECONDS)
    assert store.is_dir()
    assert not store.is_symlink()


def await_injection(run: Written, injection: faults.Injection) -> None:
    run.say("epoch_end", epoch=1)
    assert injection.happened.wait(SECONDS)


def test_a_fault_that_does_not_end_with_its_block_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_JOIN_SECONDS", 0.1)
    may_end = threading.Event()

    @contextlib.contextmanager
    def stays() -> Iterator[None]:
        yield
        may_end.wait(SECONDS)

    with (
        pytest.raises(TimeoutError, match=r"has not ended 0\.1 s after its block and may still be active"),
        faults.inject_when(tmp_path, Trigger(epoch=1), stays()) as injection,
    ):
        await_injection(Written(tmp_path), injection)
    may_end.set()


def test_a_store_that_has_vanished_holds_nothing_takes_nothing_and_comes_back(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "step-1").write_text("kept")
    with faults.vanished(store):
        assert not store.exists()
        assert not store.is_dir()
        with pytest.raises(FileExistsError):
            store.mkdir(parents=True, exist_ok=True)
        with pytest.raises(FileNotFoundError):
            (store / "step-2").write_text("lost")
    assert {path.name: path.read_text() for path in store.iterdir()} == {"step-1": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_takes_nothing_and_gives_what_it_has(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "old").write_text("kept")
    with faults.full_disk(store):
        for write in (
            lambda: (store / "new").write_text("lost"),
            lambda: (store / "folder").mkdir(),
            lambda: os.link(store / "old", store / "second"),
            lambda: os.close(os.open(store / "old", os.O_WRONLY)),
        ):
            with pytest.raises(OSError, match="No space left on device") as refused:
                write()
            assert refused.value.errno == errno.ENOSPC
        assert (store / "old").read_text() == "kept"
        (tmp_path / "store-beside").write_text("another folder")
    (store / "new").write_text("taken")
