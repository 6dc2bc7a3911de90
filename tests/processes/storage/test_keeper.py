"""A process that keeps the lease of a write which Spark's JVM owns."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SUCCESS_FILE, SaveMode, WriteJob
from mirrorspark.storage.publish.keeper import _keeper
from mirrorspark.storage.publish.recovery import living, recover
from tests.unit.storage.writes import FakeTime, names_in, visible, write, written


@pytest.fixture
def driver():  # type: ignore[no-untyped-def]
    """Yield a process that stands for the JVM."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def wait_until_ended(pid: int) -> None:
    os.waitpid(pid, 0)


def test_a_write_of_a_driver_that_lives_is_committed_by_another_process(
    tmp_path: Path, driver: "subprocess.Popen[bytes]"
) -> None:
    target = StoragePath.of(tmp_path / "t")
    written(target, "error", {"part-0": b"old"})
    job = WriteJob.begin(target, SaveMode.APPEND, driver=driver.pid)
    keeper = _keeper(job.staging)
    assert keeper is not None
    assert living([job.staging]) == {job.staging}

    job.publish(write(job, {"part-1": b"1"}))

    wait_until_ended(keeper)
    assert visible(target) == {"part-0": b"old", "part-1": b"1"}
    assert names_in(tmp_path / "t") == [SUCCESS_FILE, "part-0", "part-1"]


def test_a_query_that_is_begun_again_keeps_its_keeper(tmp_path: Path, driver: "subprocess.Popen[bytes]") -> None:
    target = StoragePath.of(tmp_path / "t")
    first = WriteJob.begin(target, SaveMode.APPEND, driver=driver.pid, name="query")
    keeper = _keeper(first.staging)

    again = WriteJob.begin(target, SaveMode.APPEND, driver=driver.pid, name="query")

    assert keeper is not None
    assert _keeper(again.staging) == keeper
    again.abort()
    wait_until_ended(keeper)
    assert names_in(tmp_path) == []


def test_the_end_of_the_driver_frees_what_it_wrote(tmp_path: Path, driver: "subprocess.Popen[bytes]") -> None:
    target = StoragePath.of(tmp_path / "t")
    job = WriteJob.begin(target, SaveMode.APPEND, driver=driver.pid)
    keeper = _keeper(job.staging)
    assert keeper is not None
    assert living([job.staging]) == {job.staging}

    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until_ended(keeper)

    clock = FakeTime()
    recover(target, timing=clock.timing)
    assert names_in(tmp_path) == []
    # It was given up, so that no host has to wait.
    assert clock.now == FakeTime().now
