"""The hidden folder of a write, and the lease by which its owner holds it.

The owner rewrites a small file in the folder, and others watch whether its content changes. Clocks of different
machines are never compared: an observer measures with its own clock for how long the content has not changed. Observers
on the owner's host need not wait, because the kernel frees a lock there when the owner ends.

Both are in one file, since every write uses both, and a call of ``score_files`` is to enter ten modules at most.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from mirrorspark.storage.paths import StoragePath, leads_out

SUCCESS_FILE = "_SUCCESS"
"""Empty file that is written last, as Spark's own writers do; its presence shows that the last write was complete."""

STAGING_PREFIX = ".tfrecord-write-"
"""Prefix of the name of a write's hidden folder."""

ATTEMPTS_FOLDER = "attempts"
"""Folder in a staging folder to which tasks write."""

WHOLE_FOLDER = "whole"
"""Folder in a staging folder that is to become the target."""

FORMER_FOLDER = "former"
"""Folder in a staging folder that was the target and has been replaced."""

HEARTBEAT_SECONDS = 2.0
"""Interval at which the owner rewrites its file."""

STALE_SECONDS = 60.0
"""Time without a change after which an observer considers the owner gone."""

LEASE_FILE = "lease.json"

OPEN_FILE = "open"
"""Empty file in the staging folder of an object store, without which what the folder holds does not count."""

# Part of the name of a staging folder whose write is over and whose content can be deleted.
_OVER_MARK = "~"

_LOGGER = logging.getLogger(__name__)


class LeaseLostError(OSError):
    """The owner sent no heartbeat for so long that another process may have taken back its write."""


def running_seconds() -> float:
    """Return the seconds since this machine started, with those in which it was suspended.

    ``time.monotonic`` stops meanwhile, so that a suspended owner would not notice for how long others saw no heartbeat.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Timing:
    """The two intervals of a lease, and the clock and sleep functions."""

    heartbeat_seconds: float = HEARTBEAT_SECONDS
    stale_seconds: float = STALE_SECONDS
    clock: Callable[[], float] = running_seconds
    sleep: Callable[[float], None] = time.sleep


TIMING = Timing()


@dataclass(frozen=True)
class Owner:
    """The process that owns a write, which ends with it."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def here(cls, pid: int | None = None) -> "Owner":
        """Return the process with that id on this host, or this process."""
        return cls(socket.gethostname(), os.getpid() if pid is None else pid)


@dataclass(frozen=True)
class Heartbeat:
    """Content of a lease file.

    Attributes:
        lock: Name of the lock that the owner holds in its host's folder for temporary files; empty for none.
        count: Grows with every heartbeat.
        is_released: Whether the owner has given up the write, so that others need not wait.
    """

    host: str
    pid: int
    lock: str = ""
    count: int = 0
    is_released: bool = False

    @classmethod
    def parse(cls, content: bytes | None) -> "Heartbeat | None":
        """Return the heartbeat, or None if the file is damaged or being written."""
        try:
            found = cls(**json.loads(content or b""))
        except (TypeError, ValueError):
            return None
        is_whole = isinstance(found.host, str) and isinstance(found.pid, int) and isinstance(found.lock, str)
        return found if is_whole else None

    def save(self, staging: StoragePath) -> None:
        """Write the lease file; readers may see a part of it."""
        with (staging / LEASE_FILE).open_write() as file:
            file.write(json.dumps(asdict(self)).encode())


class Lease:
    """The right to publish and to clear a staging folder, renewed by a thread of this process."""

    def __init__(self, staging: StoragePath, owner: Owner, timing: Timing = TIMING) -> None:
        self.owner = owner
        self.timing = timing
        self._staging = staging.kept_within()
        self._lock = _HeldLock()
        self._heartbeat = Heartbeat(owner.host, owner.pid, self._lock.name)
        self._over = threading.Event()
        self._last_beat = timing.clock()
        self._thread = threading.Thread(target=self._keep, name="mirrorspark-lease", daemon=True)

    @classmethod
    def take(cls, staging: StoragePath, owner: Owner | None = None, timing: Timing = TIMING) -> "Lease":
        """Write the first heartbeat and return the lease.

        Raises:
            FileNotFoundError: The folder is missing.
            OSError: The store refuses.
        """
        lease = cls(staging, owner or Owner.here(), timing)
        try:
            lease.beat()
        except BaseException:
            lease._lock.free()
            raise
        lease._thread.start()
        return lease

    @property
    def is_kept(self) -> bool:
        """True while heartbeats continue."""
        return self._thread.is_alive() and not self._over.is_set()

    def beat(self) -> None:
        """Write the next heartbeat."""
        begun = self.timing.clock()
        self._heartbeat = replace(self._heartbeat, count=self._heartbeat.count + 1)
        self._heartbeat.save(self._staging)
        self._last_beat = begun

    def check(self) -> None:
        """Make sure that no observer can have considered the owner gone.

        Raises:
            LeaseLostError: The last heartbeat is too old.
        """
        silent = self.timing.clock() - self._last_beat
        # Half of the time that observers wait; the other half is for the next action of this process.
        if not self.is_kept or silent > self.timing.stale_seconds / 2:
            raise LeaseLostError(
                f"this write has not renewed its lease for {silent:.0f} s (a process that was paused, or a store that "
                f"did not answer), and another write may have taken it back: it is not published; write again"
            )

    def end(self) -> None:
        """Stop the heartbeats, before the folder is deleted; a second call does nothing."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._lock.free()

    def release(self) -> None:
        """Stop the heartbeats, and mark the write as free to be cleared by others."""
        self.end()
        # If even this fails, others find out by waiting.
        with contextlib.suppress(OSError):
            replace(self._heartbeat, is_released=True).save(self._staging)

    def _keep(self) -> None:
        while not self._over.wait(self.timing.heartbeat_seconds):
            try:
                self.beat()
            except FileNotFoundError:
                return  # the folder was removed
            except OSError as error:
                _LOGGER.debug("no heartbeat in %s: %s", self._staging, error)


def owner_of(staging: StoragePath) -> Owner | None:
    """Return the current or last holder of the lease, or None if no lease can be read."""
    heartbeat = Heartbeat.parse(lease_content(staging))
    return Owner(heartbeat.host, heartbeat.pid) if heartbeat else None


def announce(staging: StoragePath, owner: Owner) -> None:
    """Write the first heartbeat of an owner whose lease another process is about to renew."""
    Heartbeat(owner.host, owner.pid).save(staging)


def lease_content(staging: StoragePath) -> bytes | None:
    """Return the content of the lease file, or None if there is none."""
    try:
        return (staging / LEASE_FILE).read_bytes()
    except FileNotFoundError:
        return None


class _HeldLock:
    """A kernel lock under a unique name, in this host's folder for temporary files.

    The random name identifies the host: a process that finds a file with that name in its own folder shares a kernel
    with the owner. Host names and process ids prove nothing, because containers may share them.
    """

    def __init__(self) -> None:
        self.name = uuid4().hex
        self._descriptor: int | None = None
        # Without a lock others have to watch the lease. Programs that this process starts do not inherit the lock.
        with contextlib.suppress(OSError):
            self._descriptor = os.open(lock_path(self.name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def free(self) -> None:
        if self._descriptor is not None:
            lock_path(self.name).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def lock_path(name: str) -> Path:
    """Return the place of a lock in this host's folder for temporary files."""
    return Path(tempfile.gettempdir()) / f"mirrorspark-lease-{name}"


class UnsafeJournalError(ValueError):
    """A journal that none of our writes can have produced."""


@dataclass(frozen=True)
class Staging:
    """The hidden folder of a write."""

    folder: StoragePath
    target: StoragePath

    @classmethod
    def of(cls, target: StoragePath, write_id: str, *, is_beside: bool) -> "Staging":
        """Return the staging folder of the write with that id, next to the target or below it."""
        name = f"{STAGING_PREFIX}{write_id}"
        return cls(target.parent / f"{name}.{target.name}" if is_beside else target / name, target)

    @property
    def is_beside(self) -> bool:
        """True if the folder is next to the target, False if it is below it."""
        return self.folder.parent != self.target

    @property
    def write_id(self) -> str:
        """Id of the write, unique for its target."""
        suffix = f".{self.target.name}" if self.is_beside else ""
        return self.folder.name.removeprefix(STAGING_PREFIX).removesuffix(suffix)

    @property
    def write_name(self) -> str:
        """The part of the id that its owner chose, if it chose one."""
        return self.write_id.partition("-")[0]

    @property
    def owner(self) -> Owner | None:
        """The current or last holder of the lease."""
        return owner_of(self.folder)

    @property
    def is_over(self) -> bool:
        """True if the write is over and the folder only remains to be deleted."""
        return _OVER_MARK in self.write_id

    def remove(self) -> None:
        """Delete the folder of a write that is over; a failure is only logged, because nothing depends on it."""
        over = self
        try:
            # Spark ends the tasks of a failed write some time after it reports the failure. Renaming keeps them from
            # adding files to the folder while it is deleted. If the deletion is cut off, the next write completes it.
            if self.folder.is_local and not self.is_over:
                over = self.renamed(f"{self.write_id}{_OVER_MARK}")
                self.folder.rename(over.folder)
            close_write(over.folder)
            over.folder.delete()
        except FileNotFoundError:
            return
        except OSError as error:
            _LOGGER.warning(
                "%s is left of a write that is over and cannot be deleted (%s): delete it by hand", over.folder, error
            )

    def renamed(self, write_id: str = "") -> "Staging":
        """Return the folder under a new name; its id begins with ``write_id``."""
        return Staging.of(self.target, f"{write_id}{uuid4().hex[:8]}", is_beside=self.is_beside)


def open_write(staging: StoragePath) -> None:
    """Make the files of a new staging folder count."""
    if not staging.is_local:
        (staging / OPEN_FILE).write_bytes(b"")


def close_write(staging: StoragePath) -> None:
    """Make everything in a staging folder void, even if a process writes to it later."""
    if not staging.is_local:
        (staging / OPEN_FILE).delete()


def is_open(staging: StoragePath) -> bool:
    """Return whether the content of a staging folder counts."""
    return staging.is_local or (staging / OPEN_FILE).is_file()


def stagings(target: StoragePath) -> list[Staging]:
    """Return the staging folders of writes to ``target``."""
    folders = target.folders()
    if target.is_local:
        folders += [folder for folder in target.parent.folders() if folder.name.endswith(f".{target.name}")]
    found = [Staging(folder, target) for folder in folders if folder.name.startswith(STAGING_PREFIX)]
    # An id with a dot belongs to a sibling whose name ends in that of the target.
    return [staging for staging in found if "." not in staging.write_id]


def is_hidden(relative_path: str) -> bool:
    """Return whether readers ignore a file: a part of its path begins with ``.`` or ``_``, which is Spark's rule.

    Folders of a partition column whose name begins with ``_`` (``_day=3/``) are visible.
    """
    *folders, name = relative_path.split("/")
    return name.startswith((".", "_")) or any(
        folder.startswith(".") or (folder.startswith("_") and "=" not in folder) for folder in folders
    )


def check_inside(paths: Iterable[str]) -> None:
    """Make sure that relative paths stay in their folder.

    Raises:
        UnsafeJournalError: A path is absolute, or has a part ``..``.
    """
    for path in paths:
        if not isinstance(path, str) or {"", ".", ".."} & {*path.split("/")} or leads_out(path):
            raise UnsafeJournalError(f"{path!r} is not a path inside the target folder")
