"""Writes as tasks and drivers make them, and their deaths."""

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.storage.lease import Timing
from mirrorspark.storage.listing import list_files
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish import SUCCESS_FILE, SaveMode, WriteJob, WrittenFile, is_hidden
from mirrorspark.storage.publish import job as job_module
from mirrorspark.storage.publish.journal import Journal

Content = Mapping[str, bytes]


class FakeTime:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timing = Timing(clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def begin(target: Path | StoragePath, mode: str, timing: Timing | None = None) -> WriteJob:
    return WriteJob.begin(StoragePath.of(target), SaveMode.of(mode), timing=timing or FakeTime().timing)


def write(job: WriteJob, content: Content, attempt: str = "0") -> list[WrittenFile]:
    """Do what a task does: write files below its attempt's folder."""
    files = []
    for path, text in content.items():
        file = job.attempt_folder(attempt) / path
        file.parent.make_folder()
        file.write_bytes(text)
        files.append(WrittenFile(attempt, path, rows=1, records=1, bytes=len(text)))
    return files


def written(target: Path | StoragePath, mode: str, content: Content) -> None:
    job = begin(target, mode)
    job.publish(write(job, content))


def visible(target: Path | StoragePath) -> dict[str, bytes]:
    """Return the files that readers of other libraries find at ``target``."""
    folder = StoragePath.of(target)
    found = {file.path.relative_to(folder): file.path for file in folder.files()}
    return {name: path.read_bytes() for name, path in found.items() if not is_hidden(name)}


def listed(target: Path | StoragePath) -> dict[str, bytes]:
    """Return the files that our own readers find at ``target``."""
    folder = StoragePath.of(target)
    try:
        return {file.path.relative_to(folder): file.path.read_bytes() for file in list_files(folder)}
    except FileNotFoundError:
        return {}


def names_in(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def kill_owner(job: WriteJob) -> StoragePath:
    """Do to the lease what the kernel does when the owner is killed; return the folder that stays."""
    lease = job._lease
    assert lease is not None
    lease._over.set()
    lease._thread.join()
    if lease._lock._descriptor is not None:
        os.close(lease._lock._descriptor)
        lease._lock._descriptor = None
    return job.staging


def kill_owner_elsewhere(job: WriteJob) -> StoragePath:
    """Do as if the owner was of another host and was killed: its lock is not seen here, and the lease is silent."""
    assert job._lease is not None
    job._lease.end()
    return job.staging


def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an overwrite do what it does at a mount point."""
    monkeypatch.setattr(job_module, "_takes_name_at_once", lambda target, mode: False)


def without_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk refuse to rename, as a mounted object store does."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, refuse)


def without_sqlite(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have a folder refuse the files of SQLite, as a mounted object store does."""
    connect = sqlite3.connect

    def refuse(file: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
        if Path(file).is_relative_to(folder):
            raise sqlite3.OperationalError("disk I/O error")
        return connect(file, *arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", refuse)


def fail_at(monkeypatch: pytest.MonkeyPatch, method: str, name: str, error: BaseException) -> None:
    """Make ``method`` of every path raise ``error`` where the path, or the one it is renamed to, has that name."""
    real = getattr(StoragePath, method)

    def failing(self: StoragePath, *more: StoragePath) -> object:
        if name in (self.name, *(path.name for path in more)):
            raise error
        return real(self, *more)

    monkeypatch.setattr(StoragePath, method, failing)


def half_published(job: WriteJob, *names: str) -> None:
    """Begin a publish of the named files and move the first of them."""
    write(job, {name: b"%d" % number for number, name in enumerate(names)})
    had_success = (job.target / SUCCESS_FILE).exists()
    Journal(tuple(names), had_success=had_success).begin(job.staging, job.target)
    (job.attempt_folder("0") / names[0]).rename(job.target / names[0])


class Killed(BaseException):
    """The process has ended: nothing that it does afterwards counts."""


class KilledAt:
    """Kills a process, as its files go, at the n-th step on a store of the thread that publishes.

    Heartbeats, which come at any time, do not count as steps.
    """

    STEPS = ("rename", "write_bytes", "delete", "flush_to_disk", "make_folder")

    def __init__(self, number: int) -> None:
        self.left = number
        self._thread = threading.current_thread()

    @property
    def has_struck(self) -> bool:
        return self.left < 0

    def __enter__(self) -> "KilledAt":
        self._patch = pytest.MonkeyPatch()
        for name in self.STEPS:
            self._patch.setattr(StoragePath, name, self._step(getattr(StoragePath, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _step(self, real):  # type: ignore[no-untyped-def]
        def step(path: StoragePath, *more: object) -> object:
            if threading.current_thread() is not self._thread:
                return real(path, *more)
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(path, *more)

        return step


def killed_while_publishing(job: WriteJob, files: list[WrittenFile], step: int) -> bool:
    """Publish until the process is killed at that step; return whether it lived to get so far."""
    with KilledAt(step) as killer, contextlib.suppress(Killed):
        job.publish(files)
    return killer.has_struck
