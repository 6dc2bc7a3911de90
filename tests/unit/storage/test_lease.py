"""A writer's lease shows that it is alive; nobody waits for ever, and clocks are not compared (T6)."""

import fcntl
import json
import os
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from mirrorspark.storage.lease import Holder, Lease, LeaseLostError, Timing, file_lock, lock_state
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SUCCESS_FILE, SaveMode, WriteInProgressError, WriteJob
from mirrorspark.storage.publish.recovery import living
from mirrorspark.storage.publish.staging import LEASE_FILE
from tests.unit.storage.writes import (
    FakeTime,
    begin,
    kill_owner,
    kill_owner_elsewhere,
    names_in,
    visible,
    write,
    written,
)


def other_owner(staging: StoragePath, *, host: str = "host-b", pid: int = 77, count: int = 1) -> None:
    """Write the lease of a process of another host."""
    lease = {"host": host, "pid": pid, "lock": "0" * 32, "count": count, "is_released": False}
    (staging / LEASE_FILE).write_bytes(json.dumps(lease).encode())


class Beating(FakeTime):
    """A clock during whose ticks the owner of a lease on another host beats."""

    def __init__(self, staging: StoragePath) -> None:
        super().__init__()
        self.staging = staging

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        other_owner(self.staging, count=int(self.now))


@pytest.fixture(params=["local", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """Return a folder that does not exist yet on a disk or an object store."""
    return StoragePath.of(tmp_path / "t" if request.param == "local" else f"memory://store/{uuid4().hex}/t")


@pytest.mark.parametrize("mode", ["append", "error"])
def test_a_live_write_of_another_host_is_left_alone(target: StoragePath, mode: str) -> None:
    slow = begin(target, "append")
    kill_owner_elsewhere(slow)
    clock = Beating(slow.staging)

    begin(target, mode, clock.timing).abort()

    assert slow.staging.exists()
    # Life shows with the first heartbeat.
    assert clock.now < 1010


def test_an_overwrite_names_the_live_process_that_is_in_its_way(target: StoragePath) -> None:
    written(target, "error", {"part-0": b"old"})
    slow = begin(target, "append")
    kill_owner_elsewhere(slow)

    with pytest.raises(WriteInProgressError, match=r"process 77 on host-b is writing to .*; wait until") as raised:
        begin(target, "overwrite", Beating(slow.staging).timing)

    assert visible(target) == {"part-0": b"old"}
    assert slow.staging.exists()
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301 - our own bytes


def test_a_query_that_another_process_runs_is_refused(tmp_path: Path) -> None:
    target = StoragePath.of(tmp_path / "t")
    running = WriteJob.begin(target, SaveMode.APPEND, name="query")
    other_owner(kill_owner_elsewhere(running))

    with pytest.raises(WriteInProgressError, match="process 77 on host-b"):
        WriteJob.begin(target, SaveMode.APPEND, name="query", timing=Beating(running.staging).timing)


def test_a_silent_owner_is_waited_for_as_long_as_the_stale_limit_and_no_longer(target: StoragePath) -> None:
    written(target, "error", {"part-0": b"old"})
    dead = begin(target, "append")
    write(dead, {"part-1": b"1"})
    kill_owner_elsewhere(dead)
    clock = FakeTime()

    begin(target, "append", clock.timing).abort()

    limit = clock.timing.stale_seconds
    assert limit <= clock.now - 1000 <= limit + clock.timing.heartbeat_seconds
    assert not dead.staging.exists()


def test_wall_clocks_do_not_count(tmp_path: Path) -> None:
    """An owner whose clock is wrong by years lives as its lease changes."""
    target = StoragePath.of(tmp_path / "t")
    slow = begin(target, "append")
    staging = kill_owner_elsewhere(slow)

    class YearsAgo(Beating):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            os.utime((staging / LEASE_FILE).local, (0, 0))

    begin(target, "append", YearsAgo(staging).timing).abort()

    assert staging.exists()


@pytest.mark.parametrize("content", [bytes(64), b"", b"{}", b'{"host": 1, "pid": "x", "lock": "../../etc/passwd"}'])
def test_a_damaged_lease_blocks_nobody(target: StoragePath, content: bytes) -> None:
    dead = begin(target, "append")
    kill_owner_elsewhere(dead)
    (dead.staging / LEASE_FILE).write_bytes(content)

    written(target, "append", {"part-0": b"0"})

    assert visible(target) == {"part-0": b"0"}
    assert not dead.staging.exists()


def test_a_staging_folder_without_a_lease_is_cleared_in_the_end(tmp_path: Path) -> None:
    left = tmp_path / "t" / ".tfrecord-write-0badcafe"
    left.mkdir(parents=True)

    written(tmp_path / "t", "append", {"part-0": b"0"})

    assert names_in(tmp_path / "t") == [SUCCESS_FILE, "part-0"]


def test_an_owner_that_was_paused_for_too_long_publishes_nothing(target: StoragePath) -> None:
    """Another write may have taken its files back meanwhile."""
    written(target, "error", {"part-0": b"old"})
    clock = FakeTime()
    job = begin(target, "append", clock.timing)
    files = write(job, {"part-1": b"1"})
    clock.sleep(clock.timing.stale_seconds * 0.6)

    with pytest.raises(LeaseLostError, match=r"has not renewed its lease for 36 s .* it is not published; write again"):
        job.publish(files)
    job.abort()

    assert visible(target) == {"part-0": b"old"}


def test_an_owner_whose_machine_was_suspended_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most clocks stop while a machine is suspended, and those of the others go on."""
    clock_gettime = time.clock_gettime
    job = begin(tmp_path / "t", "append", Timing(heartbeat_seconds=3600))
    files = write(job, {"part-1": b"1"})
    monkeypatch.setattr(time, "clock_gettime", lambda clock: clock_gettime(clock) + 60 * (clock == time.CLOCK_BOOTTIME))

    with pytest.raises(LeaseLostError, match="has not renewed its lease for 6"):
        job.publish(files)
    job.abort()


def test_a_paused_observer_looks_once_more(target: StoragePath) -> None:
    """The owner was alive during the pause, between the observer's last look and its clock."""
    slow = begin(target, "append")
    staging = kill_owner_elsewhere(slow)
    ticks = iter([0.0, 1.0, 3600.0])

    def clock() -> float:
        if (now := next(ticks)) == 3600:
            other_owner(staging, count=2)
        return now

    assert living([staging], Timing(clock=clock, sleep=lambda _: None)) == {staging}


def test_a_write_that_was_taken_for_dead_fails_and_changes_nothing(tmp_path: Path) -> None:
    target = StoragePath.of(tmp_path / "t")
    written(target, "error", {"part-0": b"old"})
    slow = begin(target, "append")
    files = write(slow, {"part-1": b"1"})
    kill_owner(slow)
    written(target, "append", {"part-2": b"2"})

    with pytest.raises(OSError, match="write again"):
        slow.publish(files)
    slow.abort()

    assert visible(target) == {"part-0": b"old", "part-2": b"2"}
    assert names_in(tmp_path / "t") == [SUCCESS_FILE, "part-0", "part-2"]


def test_a_heartbeat_brings_no_folder_back_that_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "write"
    folder.mkdir()
    lease = Lease.take(StoragePath.of(folder / LEASE_FILE), timing=Timing(heartbeat_seconds=3600))
    shutil.rmtree(folder)

    with pytest.raises(FileNotFoundError):
        lease.beat()
    lease.end()

    assert not folder.exists()


def test_a_lock_is_seen_until_its_holder_gives_it_back_and_observers_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_state(path) == "unknown"
    assert not path.exists(), "a look creates nothing"
    with file_lock(path, 0):
        assert lock_state(path) == "held"
        with pytest.raises(BlockingIOError, match=r"another process holds the lock: '.*/lock'"):
            file_lock(path, 0)
    with path.open("r+") as observer:
        fcntl.flock(observer, fcntl.LOCK_SH)
        assert lock_state(path) == "free"
    assert lock_state(path, user=os.geteuid()) == "free"
    assert lock_state(path, user=os.geteuid() + 1) == "unknown"


def test_only_an_observer_on_the_same_machine_knows_that_a_process_has_ended() -> None:
    here = Holder.here()
    gone = replace(here, pid=1 << 22)  # more than Linux has

    assert (here.has_ended, gone.has_ended) == (False, True)
    assert replace(here, started=here.started - 3600).has_ended is True, "a later process has its id"
    assert replace(here, started=None).has_ended is None, "it may be a later process"
    boot = here.boot.partition("/")[0]
    for elsewhere in (replace(gone, host="elsewhere"), replace(gone, boot="the boot before/pid:[1]")):
        assert (elsewhere.is_on_this_machine, elsewhere.has_ended) == (False, None)
    container = replace(gone, boot=f"{boot}/pid:[1]")
    assert (container.is_on_this_machine, container.has_ended) == (True, None), (
        "its processes have numbers of their own"
    )
    assert replace(gone, boot=boot).has_ended is True, "as earlier versions wrote it"
