"""The lease on a staging folder: its owner rewrites a small file there, and others watch whether the content changes.

Clocks of different machines are never compared: an observer measures with its own clock for how long the content has
not changed. Observers on the owner's host need not wait, because the kernel frees a lock there when the owner ends.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from mirrorspark.storage.paths import StoragePath

HEARTBEAT_SECONDS = 2.0
"""Interval at which the owner rewrites its file."""

STALE_SECONDS = 60.0
"""Time without a change after which an observer considers the owner gone."""

LEASE_FILE = "lease.json"

_LOCK_NAME = re.compile(r"[0-9a-f]{32}")

_LOGGER = logging.getLogger(__name__)


class LeaseLostError(OSError):
    """The owner sent no heartbeat for so long that another process may have taken back its write."""


@dataclass(frozen=True)
class Timing:
    """The two intervals of a lease, and the clock and sleep functions."""

    heartbeat_seconds: float = HEARTBEAT_SECONDS
    stale_seconds: float = STALE_SECONDS
    clock: Callable[[], float] = time.monotonic
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
class _Heartbeat:
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
    def parse(cls, content: bytes | None) -> "_Heartbeat | None":
        """Return the heartbeat, or None if the file is damaged or being written."""
        try:
            found = cls(**json.loads(content or b""))
        except (TypeError, ValueError):
            return None
        is_whole = isinstance(found.host, str) and isinstance(found.pid, int) and isinstance(found.lock, str)
        return found if is_whole else None

    def save(self, staging: StoragePath) -> None:
        with (staging / LEASE_FILE).open_write() as file:
            file.write(json.dumps(asdict(self)).encode())


class Lease:
    """The right to publish and to clear a staging folder, renewed by a thread of this process."""

    def __init__(self, staging: StoragePath, owner: Owner, timing: Timing = TIMING) -> None:
        self.owner = owner
        self.timing = timing
        self._staging = staging.kept_within()
        self._lock = _HeldLock()
        self._heartbeat = _Heartbeat(owner.host, owner.pid, self._lock.name)
        self._over = threading.Event()
        self._last_beat = timing.clock()
        self._thread = threading.Thread(target=self._keep, name="mirrorspark-lease", daemon=True)

    @classmethod
    def take(cls, staging: StoragePath, owner: Owner | None = None, timing: Timing = TIMING) -> "Lease":
        """Write the first heartbeat and return the lease.

        Raises:
            FileNotFoundError: The folder is gone.
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
                return  # the folder is gone
            except OSError as error:
                _LOGGER.debug("no heartbeat in %s: %s", self._staging, error)


def owner_of(staging: StoragePath) -> Owner | None:
    """Return the current or last holder of the lease, or None if no lease can be read."""
    heartbeat = _Heartbeat.parse(_content(staging))
    return Owner(heartbeat.host, heartbeat.pid) if heartbeat else None


def announce(staging: StoragePath, owner: Owner) -> None:
    """Write the first heartbeat of an owner whose lease another process is about to renew."""
    _Heartbeat(owner.host, owner.pid).save(staging)


def discard_lock(staging: StoragePath) -> None:
    """Delete the lock file that a dead owner left on this host, if it was of this host."""
    heartbeat = _Heartbeat.parse(_content(staging))
    if heartbeat and _LOCK_NAME.fullmatch(heartbeat.lock):
        with contextlib.suppress(OSError):
            _lock_path(heartbeat.lock).unlink(missing_ok=True)


def living(stagings: Iterable[StoragePath], timing: Timing = TIMING) -> set[StoragePath]:
    """Return the staging folders whose owner is alive.

    For an owner on this host the answer is immediate. All other leases are watched in parallel until they change, which
    shows that the owner is alive, or have not changed for ``timing.stale_seconds``.
    """
    alive: set[StoragePath] = set()
    watched: dict[StoragePath, bytes | None] = {}
    for staging in stagings:
        content = _content(staging)
        heartbeat = _Heartbeat.parse(content)
        is_held = _is_held(heartbeat.lock) if heartbeat else None
        if is_held:
            alive.add(staging)
        elif is_held is None and not (heartbeat and heartbeat.is_released):
            watched[staging] = content
    begun, has_warned = timing.clock(), False
    while watched and (seconds := timing.clock() - begun) < timing.stale_seconds:
        if seconds > 2 * timing.heartbeat_seconds and not has_warned:
            has_warned = True
            _LOGGER.warning(
                "waiting for up to %.0f s to see whether the writes in %s are alive",
                timing.stale_seconds,
                ", ".join(map(str, watched)),
            )
        timing.sleep(timing.heartbeat_seconds / 4)
        changed = {staging for staging, content in watched.items() if _content(staging) != content}
        alive |= changed
        watched = {staging: content for staging, content in watched.items() if staging not in changed}
    return alive


def _content(staging: StoragePath) -> bytes | None:
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
            self._descriptor = os.open(_lock_path(self.name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def free(self) -> None:
        if self._descriptor is not None:
            _lock_path(self.name).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _lock_path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"mirrorspark-lease-{name}"


def _is_held(name: str) -> bool | None:
    """Return whether the owner of a lock is alive, or None if that is unknown because it is on another host."""
    if not _LOCK_NAME.fullmatch(name):
        return None
    try:
        descriptor = os.open(_lock_path(name), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        # If files of other users were trusted, those users could end our writes.
        if os.fstat(descriptor).st_uid != os.geteuid():
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)
