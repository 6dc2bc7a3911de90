"""The right of one process to something, which others may take over once that process has ended.

Three signs show whether the holder lives, the surest first:

- Its kernel lock, which ends with the process, however that ends. Processes of the same kernel see it, and those that
  share a file system which shows locks to all its machines, such as NFS 4.
- The process, for an observer on the same machine since its last start.
- Its renewals: the holder rewrites a small file, on a disk or an object store, and an observer measures with its own
  clock for how long the content has not changed. Clocks of different machines are never compared.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from uuid import uuid4

import psutil

from mirrorspark.clear_error import ClearError

if TYPE_CHECKING:
    from mirrorspark.storage.paths import StoragePath

HEARTBEAT_SECONDS = 2.0
"""Interval at which the holder rewrites its file."""

STALE_SECONDS = 60.0
"""Time without a change after which an observer considers the holder gone."""

LockState = Literal["held", "free", "unknown"]

_BOOT_ID, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
# The clock may have been adjusted since, which shifts the start time of a process a little.
_SAME_START_SECONDS = 2.0
_LOCK_NAME = re.compile(r"[0-9a-f]{32}")

_LOGGER = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")


class LeaseLostError(ClearError, OSError):
    """The holder sent no heartbeat for so long that another process may have taken over."""


def running_seconds() -> float:
    """Return the seconds since this machine started, with those in which it was suspended.

    ``time.monotonic`` stops meanwhile, so a suspended holder would not notice for how long others saw no heartbeat.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the id of the running kernel, which it draws when it starts; empty if the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Timing:
    """The intervals of a lease, and the clock and sleep functions."""

    heartbeat_seconds: float = HEARTBEAT_SECONDS
    stale_seconds: float = STALE_SECONDS
    look_seconds: float = HEARTBEAT_SECONDS / 4
    clock: Callable[[], float] = running_seconds
    sleep: Callable[[float], None] = time.sleep


TIMING = Timing()


@dataclass(frozen=True)
class Holder:
    """The process that holds something; two are equal if host and process id are.

    Attributes:
        started: Start of the process in seconds since the epoch; distinguishes it from a later one of that id. None
            if it is unknown.
        boot: Boot id of its machine and, after a slash, the namespace of its id there: containers may number their own
            processes. Empty if unknown.
    """

    host: str
    pid: int
    started: float | None = field(default=None, compare=False)
    boot: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @classmethod
    def here(cls, pid: int | None = None) -> "Holder":
        """Return this process, or the process of this host with that id."""
        if pid is not None:
            return cls(socket.gethostname(), pid)
        boot = f"{boot_id()}/{_namespace()}" if boot_id() else ""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time(), boot)

    @property
    def is_on_this_machine(self) -> bool:
        """True if the process is one of this host, since its last start."""
        return self.host == socket.gethostname() and self.boot.partition("/")[0] in ("", boot_id())

    @property
    def has_ended(self) -> bool | None:
        """True if the process has ended, False if it lives.

        None if that cannot be seen from here, or the id may be a later process's.
        """
        if not self.is_on_this_machine or self.boot.partition("/")[2] not in ("", _namespace()):
            return None
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            return True
        return None if self.started is None else abs(started - self.started) >= _SAME_START_SECONDS


def _namespace() -> str:
    try:
        return str(_NAMESPACE.readlink())
    except OSError:
        return ""


def file_lock(path: Path, wait_seconds: float, look_seconds: float = 0.05) -> AbstractContextManager[object]:
    """Take the kernel lock of a file, which is created and stays; the context that is returned ends with a release.

    A negative ``wait_seconds`` means without limit.

    Raises:
        BlockingIOError: Another process still holds the lock.
        OSError: The file cannot be opened, or its file system has no locks.
    """
    # Tasks that write files never take one, so they need not wait for the import.
    from filelock import FileLock, Timeout

    # The library's fallback for file systems without locks would outlive its process.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        return lock.acquire(timeout=wait_seconds, poll_interval=look_seconds)
    except Timeout as error:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process holds the lock", str(path)) from error


def lock_state(path: Path, user: int | None = None) -> LockState:
    """Return the state of the kernel lock of a file as seen from here; unknown without that file, of that ``user``."""
    try:
        # Network file systems lock only what is open for writing.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return "unknown"
    try:
        if user not in (None, os.fstat(descriptor).st_uid):
            return "unknown"
        # Shared, so that two observers do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone does not unlock if a child was forked meanwhile
    except (BlockingIOError, PermissionError):  # which of them depends on the file system
        return "held"
    except OSError:
        return "unknown"
    else:
        return "free"
    finally:
        os.close(descriptor)


class _HostLock:
    """A kernel lock under a unique name, in this host's folder for temporary files.

    The random name identifies the host: a process that finds a file with that name in its own folder shares a kernel
    with the holder. Host names and process ids prove nothing, because containers may share them.
    """

    def __init__(self) -> None:
        self.name = uuid4().hex
        self._descriptor: int | None = None
        # Without a lock others have to watch the lease. Programs that this process starts do not inherit the lock.
        with contextlib.suppress(OSError):
            self._descriptor = os.open(_host_lock(self.name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def free(self) -> None:
        if self._descriptor is not None:
            _host_lock(self.name).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _host_lock(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"mirrorspark-lease-{name}"


@dataclass(frozen=True)
class Heartbeat:
    """Content of a lease file.

    Attributes:
        lock: Name of the lock that the holder has in its host's folder for temporary files; empty for none.
        count: Grows with every heartbeat.
        is_released: Whether the holder has given up, so that others need not wait.
    """

    host: str
    pid: int
    lock: str = ""
    count: int = 0
    is_released: bool = False

    @classmethod
    def parse(cls, content: bytes | None) -> "Heartbeat | None":
        """Return the heartbeat, or None if the file is missing, damaged or being written."""
        try:
            found = cls(**json.loads(content or b""))
        except (TypeError, ValueError):
            return None
        is_whole = isinstance(found.host, str) and isinstance(found.pid, int) and isinstance(found.lock, str)
        return found if is_whole else None

    def save(self, file: "StoragePath") -> None:
        """Write the lease file; readers may see a part of it."""
        with file.open_write() as opened:
            opened.write(json.dumps(asdict(self)).encode())

    @property
    def holder(self) -> Holder:
        """The process that holds the lease, or held it last."""
        return Holder(self.host, self.pid)

    @property
    def is_alive(self) -> bool | None:
        """True if the holder lives, None if only further heartbeats can show it."""
        # If files of other users were trusted, those users could end our leases.
        state = lock_state(_host_lock(self.lock), os.geteuid()) if _LOCK_NAME.fullmatch(self.lock) else "unknown"
        if state == "unknown":
            return False if self.is_released else None
        return state == "held"

    def discard_lock(self) -> None:
        """Delete the lock file that a dead holder left on this host, if it was of this host."""
        if _LOCK_NAME.fullmatch(self.lock):
            with contextlib.suppress(OSError):
                _host_lock(self.lock).unlink(missing_ok=True)


def lease_content(file: "StoragePath") -> bytes | None:
    """Return the content of a lease file, or None if there is none."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


class Lease:
    """The right that a lease file grants, renewed by a thread of this process."""

    def __init__(self, file: "StoragePath", holder: Holder, timing: Timing = TIMING) -> None:
        self.holder = holder
        self.timing = timing
        self._file = file.parent.kept_within() / file.name
        self._lock = _HostLock()
        self._heartbeat = Heartbeat(holder.host, holder.pid, self._lock.name)
        self._over = threading.Event()
        self._last_beat = timing.clock()
        self._thread = threading.Thread(target=self._keep, name="mirrorspark-lease", daemon=True)

    @classmethod
    def take(cls, file: "StoragePath", holder: Holder | None = None, timing: Timing = TIMING) -> "Lease":
        """Write the first heartbeat and return the lease.

        Raises:
            FileNotFoundError: The folder of the file is missing.
            OSError: The store refuses.
        """
        lease = cls(file, holder or Holder.here(), timing)
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
        self._heartbeat.save(self._file)
        self._last_beat = begun

    def check(self) -> None:
        """Make sure that no observer can have considered the holder gone.

        Raises:
            LeaseLostError: The last heartbeat is too old.
        """
        silent = self.timing.clock() - self._last_beat
        # Half of the time that observers wait; the other half is for the next action of this process.
        if not self.is_kept or silent > self.timing.stale_seconds / 2:
            raise LeaseLostError(
                f"this process has not renewed its lease for {silent:.0f} s (it was paused, or the store did not "
                f"answer)"
            )

    def end(self) -> None:
        """Stop the heartbeats, before the folder is deleted; a second call does nothing."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._lock.free()

    def release(self) -> None:
        """Stop the heartbeats, and allow others to take over at once."""
        self.end()
        # If even this fails, others find out by waiting.
        with contextlib.suppress(OSError):
            replace(self._heartbeat, is_released=True).save(self._file)

    def _keep(self) -> None:
        while not self._over.wait(self.timing.heartbeat_seconds):
            try:
                self.beat()
            except FileNotFoundError:
                return  # the folder was removed
            except OSError as error:
                _LOGGER.debug("no heartbeat in %s: %s", self._file, error)


def renewed(
    found: Mapping[K, T],
    read: Callable[[K], T],
    timing: Timing = TIMING,
    say: Callable[[Collection[K]], None] = lambda watched: None,
) -> set[K]:
    """Watch what holders rewrite until it changes, for up to ``timing.stale_seconds``; return what has changed.

    Args:
        found: The contents that were read before.
        read: Reads a content.
        timing: Intervals of the lease.
        say: Called once with what is still watched after two heartbeats.
    """
    alive: set[K] = set()
    watched, begun, has_said, seconds = dict(found), timing.clock(), False, 0.0
    while watched and seconds < timing.stale_seconds:
        if seconds > 2 * timing.heartbeat_seconds and not has_said:
            has_said = True
            say(watched)
        timing.sleep(timing.look_seconds)
        # Before they are read: after a pause of this process, they must be read once more.
        seconds = timing.clock() - begun
        changed = {key for key, content in watched.items() if read(key) != content}
        alive |= changed
        watched = {key: content for key, content in watched.items() if key not in changed}
    return alive
