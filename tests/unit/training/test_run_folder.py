"""T7: which unfinished run a command continues, and what a crash leaves of its folder."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from mirrorspark.storage import lock_state
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.protocol.names import STATE_FILE
from mirrorspark.training.run_records import find_run, run_folder, run_state
from mirrorspark.training.run_records.find_run import RunFinishedError, find_finished, hold_run_folder
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import (
    TIMING,
    RunUnderWayError,
    Status,
    driver_of,
    hold_lock,
    read_state,
)

DATASET = "0123456789abcdef"


@pytest.fixture
def config(new_config: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    return new_config(output=str(tmp_path / "output"))


def taken(config: RunConfig, dataset: str = DATASET, say: Callable[[str], None] = lambda line: None) -> RunFolder:
    """Return the folder that a command takes, and leave it as one that was killed does."""
    with hold_run_folder(config, dataset, say) as folder:
        return folder


def new_folder(config: RunConfig) -> RunFolder:
    """Return the folder of a run that nobody has begun."""
    path = Path(config.output) / "runs" / f"rides-{uuid4().hex}"
    path.mkdir(parents=True)
    return RunFolder(path, f"{config.identity}-{DATASET}", None)


def test_what_has_changed_since_an_unfinished_run_is_told(
    config: RunConfig, new_config: Callable[..., RunConfig]
) -> None:
    before = left_behind(config, "running", identity=f"{config.identity}-{DATASET}")
    before = RunFolder(before.path.rename(before.path.with_name(f"{config.name}-before")), before.identity, None)
    config.save(before.config)
    said: list[str] = []
    other = replace(config, learning_rate=0.5, model=config.model | {"embedding_dim": 3})
    assert taken(other, say=said.append).path != before.path
    (line,) = said
    assert line.startswith(f"the unfinished run {config.name}-before is left as it is and a new one begins, since")
    assert f"learning_rate is 0.5, was {config.learning_rate}" in line
    assert "model.embedding_dim is 3, was not given" in line
    assert taken(config, say=said.append).path == before.path
    assert len(said) == 1


def left_behind(config: RunConfig, status: Status, **changes: object) -> RunFolder:
    """Make the folder of a run whose driver was another process, which has ended; ``changes`` are to its state."""
    folder = new_folder(config)
    folder.save_state(status, "mlflow-run-1")
    path = folder.path / STATE_FILE
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"process_started": state["process_started"] - 3600} | changes))
    return folder


@pytest.fixture
def other_driver() -> Iterator[psutil.Process]:
    """A process that lives until the test is over."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


def test_a_new_run_gets_a_folder_named_after_the_recipe_and_no_two_share_one(config: RunConfig) -> None:
    folders = [taken(replace(config, resume=False)) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    for folder in folders:
        assert folder.path.parent == Path(config.output) / "runs"
        assert folder.path.name.startswith("rides-")
        assert folder.path.is_dir()
        assert folder.continues is None


@pytest.mark.parametrize("status", ["running", "failed"])
def test_an_unfinished_run_of_the_same_identity_goes_on(config: RunConfig, status: Status) -> None:
    before = left_behind(config, status)
    after = taken(replace(config, workers=2))
    assert (after.path, after.continues) == (before.path, "mlflow-run-1")


def test_the_newest_of_several_unfinished_runs_goes_on(config: RunConfig) -> None:
    folders = [left_behind(config, "failed") for _ in range(3)]
    for folder, modified in zip(folders, (200, 300, 100), strict=True):
        os.utime(folder.path / STATE_FILE, (modified, modified))
    assert taken(config).path == folders[1].path


def test_a_finished_run_is_not_done_again_in_its_folder(config: RunConfig) -> None:
    before = left_behind(config, "finished")
    assert taken(config).path != before.path


def test_without_resume_a_new_run_begins(config: RunConfig) -> None:
    before = left_behind(config, "failed")
    assert taken(replace(config, resume=False)).path != before.path


def test_a_run_that_learns_something_else_begins_anew(config: RunConfig) -> None:
    before = left_behind(config, "failed")
    assert taken(replace(config, seed=2)).path != before.path
    assert taken(config, "another dataset").path != before.path


@pytest.mark.process
def test_a_run_whose_driver_lives_is_left_alone(config: RunConfig, other_driver: psutil.Process) -> None:
    alive = {"process": other_driver.pid, "process_started": other_driver.create_time()}
    before = left_behind(config, "running", **alive)
    assert taken(config).path != before.path


def test_a_run_of_this_very_process_is_left_alone(config: RunConfig) -> None:
    before = new_folder(config)
    before.save_state("running", "mlflow-run-1")
    assert taken(config).path != before.path
    before.save_state("failed", "mlflow-run-1")
    assert taken(config).path == before.path


@pytest.mark.process
def test_a_process_that_got_the_dead_drivers_number_is_not_taken_for_it(
    config: RunConfig, other_driver: psutil.Process
) -> None:
    before = left_behind(config, "running", process=other_driver.pid)
    assert taken(config).path == before.path


@pytest.mark.process
def test_a_run_whose_driver_is_gone_goes_on(config: RunConfig) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(timeout=60)
    before = left_behind(config, "running", process=process.pid)
    assert taken(config).path == before.path


def test_a_silent_driver_on_another_host_is_of_unknown_state(config: RunConfig) -> None:
    elsewhere = f"not-{socket.gethostname()}"
    before = left_behind(config, "running", host=elsewhere)
    assert taken(config).path != before.path
    failed = left_behind(config, "failed", host=elsewhere)
    assert taken(config).path == failed.path


def nothing_said(line: str) -> None:
    raise AssertionError(line)


def change_state(folder: RunFolder, **changes: object) -> None:
    """Write the state as another driver would."""
    path = folder.path / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_two_equal_commands_never_drive_one_run(config: RunConfig) -> None:
    before = left_behind(config, "failed")
    said: list[str] = []
    with (
        hold_run_folder(config, DATASET, nothing_said) as first,
        hold_run_folder(config, DATASET, said.append) as other,
    ):
        assert (first.path, first.continues) == (before.path, "mlflow-run-1")
        assert (other.path.parent, other.continues) == (first.path.parent, None)
        assert other.path != first.path
        (line,) = said
        assert f"run {before.path.name} of the same configuration is under way (process {os.getpid()} on " in line
        with (
            pytest.raises(RunUnderWayError, match=rf"{before.path.name} is under way in another driver"),
            before.hold(),
        ):
            pass
    # Neither has ended well, and the lock is free again.
    assert taken(config, say=nothing_said).path in (first.path, other.path)


def test_a_run_finished_meanwhile_by_another_command_is_left_alone(config: RunConfig) -> None:
    found = left_behind(config, "failed")
    seen = read_state(found.path)
    assert seen is not None
    with hold_run_folder(config, DATASET, nothing_said) as quicker:
        quicker.save_state("finished", "mlflow-run-1")
    with pytest.raises(RunUnderWayError), found.hold(seen):
        pass
    state = read_state(found.path)
    assert state is not None
    assert state.status == "finished"


def test_the_second_of_two_equal_commands_for_one_day_names_the_first(config: RunConfig) -> None:
    """T12."""
    before = left_behind(config, "failed")
    for goes_on in (True, False):
        with hold_run_folder(config, DATASET, nothing_said, only_once=True) as first:
            assert (first.path == before.path) == goes_on
            with (
                pytest.raises(RunUnderWayError, match=rf"{first.path.name} is under way in another driver"),
                hold_run_folder(config, DATASET, nothing_said, only_once=True),
            ):
                pass
            first.save_state("finished", None)
        with (
            pytest.raises(RunFinishedError, match=f"run {first.path.name} has finished") as finished,
            hold_run_folder(config, DATASET, nothing_said, only_once=True),
        ):
            pass
        assert finished.value.folder.path == first.path
        for folder in (before, first):
            change_state(folder, identity="another")
    assert len(list((Path(config.output) / "runs").glob(f"*/{STATE_FILE}"))) == 2


def test_commands_for_one_day_look_one_after_the_other(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """T12: two that look at the same time, and see nothing, would both begin."""
    seen: list[tuple[str, bool]] = []

    def choosing() -> bool:
        with (Path(config.output) / "runs" / ".choosing.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def note(*arguments: Any, **how: Any) -> Any:
            seen.append((name, choosing()))
            return function(*arguments, **how)

        return note

    monkeypatch.setattr(find_run, "_find", noting("find", find_run._find))
    monkeypatch.setattr(run_folder, "hold_lock", noting("hold", hold_lock))
    with hold_run_folder(config, DATASET, only_once=True):
        assert seen == [("find", True), ("hold", True)]
        # A caller that waits is not held up while the run goes on.
        assert not choosing()


def test_a_redo_that_was_broken_off_goes_on_though_an_older_run_has_finished(config: RunConfig) -> None:
    """T12: the newest run decides."""
    done, redo = left_behind(config, "finished"), left_behind(config, "stopped")
    for newest, other in ((redo, done), (done, redo)):
        os.utime(newest.path / STATE_FILE, (300, 300))
        os.utime(other.path / STATE_FILE, (200, 200))
        found = find_finished(config, DATASET)
        assert (found and found.path) == (done.path if newest is done else None)
    os.utime(redo.path / STATE_FILE, (400, 400))  # as `python -m training.entry_points.runs resume` does
    with hold_run_folder(config, DATASET, nothing_said, only_once=True) as folder:
        assert folder.path == redo.path


@pytest.mark.process
@pytest.mark.parametrize("newest", ["under way", "broken off"])
def test_a_redo_that_is_under_way_is_not_hidden_by_an_older_run(
    config: RunConfig, other_driver: psutil.Process, newest: str
) -> None:
    """T12: nor by one that was broken off and touched since its driver's last sign of life."""
    alive = {"process": other_driver.pid, "process_started": other_driver.create_time()}
    folders = {"under way": left_behind(config, "running", **alive), "broken off": left_behind(config, "failed")}
    for name, folder in folders.items():
        modified = 300 + (name == newest)
        os.utime(folder.path / STATE_FILE, (modified, modified))
    os.utime(left_behind(config, "finished").path / STATE_FILE, (200, 200))
    with pytest.raises(RunUnderWayError, match=rf"{folders['under way'].path.name} is under way in another driver"):
        find_finished(config, DATASET)


@pytest.mark.process
def test_a_run_goes_on_at_once_when_its_driver_was_killed(config: RunConfig) -> None:
    before = left_behind(config, "failed")
    program = (
        "import sys; from pathlib import Path; from mirrorspark.training.run_records.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), sys.argv[2], None).hold():\n"
        "    print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(before.path), before.identity]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "held\n"
            assert lock_state(before.path / "driver.lock") == "held"
            said: list[str] = []
            other = taken(config, say=said.append)
            assert other.path != before.path
            assert f"process {driver.pid} on " in said[0]
            other.save_state("finished", None)
        finally:
            driver.kill()
    with hold_run_folder(config, DATASET, nothing_said) as after:
        assert (after.path, after.continues) == (before.path, "mlflow-run-1")


def test_a_clock_that_was_set_makes_no_dead_driver_of_one_that_lives(config: RunConfig) -> None:
    folder = new_folder(config)
    with folder.hold():
        change_state(folder, process_started=time.time() - 7200, heartbeat=time.time() - 7200)
        state = read_state(folder.path)
        assert state is not None
        assert driver_of(folder.path, state) == "alive"
        assert taken(config).path != folder.path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver is watched for half a second only."""
    quick = replace(TIMING, heartbeat_seconds=0.05, stale_seconds=0.5, look_seconds=0.01)
    for module in (run_state, run_folder):
        monkeypatch.setattr(module, "TIMING", quick)


@pytest.mark.parametrize("skew", [-7200.0, 0.0, 7200.0])
def test_whether_the_driver_on_another_host_lives_shows_in_its_heartbeats_whatever_its_clock_says(
    config: RunConfig, quick: None, skew: float
) -> None:
    """T6."""
    elsewhere = {"host": "node-7", "boot": "b7", "holder": "h7", "heartbeat": time.time() + skew}
    before = left_behind(config, "running", **elsewhere)
    is_over, said = threading.Event(), list[str]()

    def beat() -> None:
        while not is_over.wait(0.02):
            elsewhere["heartbeat"] += 0.02
            change_state(before, **elsewhere)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        other = taken(config, say=said.append)
    finally:
        is_over.set()
        beating.join()
    assert other.path != before.path
    assert "on node-7) is alive" in said[0]
    assert "on node-7, which sends heartbeats" in said[1]
    other.save_state("finished", None)
    assert taken(config).path == before.path


def test_the_same_host_started_anew_is_another_one(config: RunConfig, quick: None) -> None:
    before = left_behind(config, "running", boot="the boot before", holder="h", heartbeat=time.time())
    state = read_state(before.path)
    assert state is not None
    assert driver_of(before.path, state) == "unknown"
    assert taken(config).path == before.path


@pytest.mark.parametrize("other", [{"boot": "the boot before"}, {"host": "node-7"}])
def test_a_driver_that_is_not_seen_from_here_is_watched_by_one_that_holds_the_lock(
    config: RunConfig, quick: None, other: dict[str, str]
) -> None:
    """T7: it must not take its own lock for that driver's."""
    before = left_behind(config, "running", holder="h", heartbeat=time.time(), **other)
    with before.hold():
        assert state_of(before)["holder"] != "h"


def test_time_in_which_the_machine_was_suspended_does_not_count_as_silence() -> None:
    """T6: the driver may have been suspended, too."""
    assert TIMING.clock is time.monotonic


def test_without_locks_the_heartbeats_decide(config: RunConfig, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    folder = new_folder(config)
    with folder.hold(), pytest.raises(RunUnderWayError), RunFolder(folder.path, folder.identity, None).hold():
        pass
    change_state(folder, status="failed")
    with folder.hold(every=Beats().every), RunFolder(folder.path, folder.identity, None).hold():
        pass  # the former driver is silent


class Beats:
    """Beats on request."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.beat: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def every(self, seconds: float, action: Callable[[], None]) -> Iterator[None]:
        self.beat = action
        yield

    def clock(self) -> float:
        return self.now


def state_of(folder: RunFolder) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder.path / STATE_FILE).read_text())
    return document


def test_a_driver_gives_signs_of_life_until_its_end(config: RunConfig) -> None:
    folder, beats = new_folder(config), Beats()
    with folder.hold(every=beats.every, clock=beats.clock):
        folder.save_state("running", "mlflow-run-2")
        assert state_of(folder)["heartbeat"] == 1000.0
        beats.now += 10
        beats.beat()
        kept = state_of(folder)
        assert (kept["heartbeat"], kept["mlflow_run_id"]) == (1010.0, "mlflow-run-2")
        folder.save_state("failed", "mlflow-run-2")
    beats.now += 10
    beats.beat()
    assert (state_of(folder)["heartbeat"], state_of(folder)["status"]) == (1010.0, "failed")


def test_a_driver_that_was_taken_for_dead_stops_and_leaves_the_state_of_its_successor(config: RunConfig) -> None:
    folder, beats, lost = new_folder(config), Beats(), []
    folder.when_lost(lambda: lost.append("stop"))
    with folder.hold(every=beats.every, clock=beats.clock):
        change_state(folder, host="node-7", holder="another", status="running")
        successor = state_of(folder)
        beats.beat()
        beats.beat()
        assert lost == ["stop"]
        with pytest.raises(RunUnderWayError, match="on node-7"):
            folder.save_state("failed", "mlflow-run-1")
        with pytest.raises(RunUnderWayError, match="on node-7"):
            folder.note_begun()
    assert state_of(folder) == successor


def test_only_the_holder_of_a_run_writes_its_state(config: RunConfig) -> None:
    folder = new_folder(config)
    with folder.hold():
        there = state_of(folder)
        with pytest.raises(RunUnderWayError):
            RunFolder(folder.path, folder.identity, None).save_state("failed", None)
        assert state_of(folder) == there


def test_the_next_driver_knows_that_the_checkpoints_store_was_used(config: RunConfig) -> None:
    with hold_run_folder(config, DATASET) as folder:
        assert not folder.has_begun
        folder.note_begun()
        folder.save_state("failed", "mlflow-run-1")
    with hold_run_folder(config, DATASET) as again:
        assert again.path == folder.path
        assert again.has_begun
        again.save_state("stopped", "mlflow-run-1")
    assert state_of(folder)["is_fenced"]


def test_a_look_at_the_lock_keeps_no_driver_from_taking_it(config: RunConfig) -> None:
    folder = new_folder(config)
    with folder.hold():
        pass
    descriptor = os.open(folder.path / "driver.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    looking = threading.Timer(0.05, os.close, (descriptor,))
    looking.start()
    with folder.hold():
        looking.join()


def test_a_crash_while_the_state_is_written_leaves_the_old_one(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left_behind(config, "failed")

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            before.save_state("finished", "mlflow-run-1")
    assert taken(config).path == before.path


def test_a_damaged_state_is_passed_over_with_a_warning(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    good, torn, foreign, odd, listed = (left_behind(config, "failed") for _ in range(5))
    (torn.path / STATE_FILE).write_text('{"identity": "')
    (foreign.path / STATE_FILE).write_text('{"unknown": 1}')
    state = json.loads((odd.path / STATE_FILE).read_text())
    (odd.path / STATE_FILE).write_text(json.dumps(state | {"process": "1"}))
    (listed.path / STATE_FILE).write_text(json.dumps(state | {"host": ["a"]}))
    assert taken(config).path == good.path
    for damaged in (torn, foreign, odd, listed):
        assert str(damaged.path) in caplog.text
    assert "process is '1'" in caplog.text


def test_past_events_are_read_in_order_without_what_a_crash_cut_off(config: RunConfig) -> None:
    folder = new_folder(config)
    assert list(folder.past_events()) == []
    for epoch in (1, 2):
        folder.append_event({"event": "epoch_end", "epoch": epoch})
    with folder.events.open("ab") as file:
        file.write(b'\xff\x00\n[]\n{"event": "epo')
    assert list(folder.past_events()) == [{"event": "epoch_end", "epoch": 1}, {"event": "epoch_end", "epoch": 2}]


def test_everything_of_a_run_lies_in_its_folder(config: RunConfig) -> None:
    folder = new_folder(config)
    places = [folder.config, folder.checkpoints, folder.model, folder.predictions, folder.events]
    assert len(set(places)) == len(places)
    assert all(place.parent == folder.path for place in places)
