"""A cache of folders on a local disk, shared by all processes of a machine: filled once, leased in use, evictable.

The folder of a cache contains::

    entries/KEY         a complete entry, renamed into place
    arriving/KEY        an entry that a process is filling, or was filling when it died
    processes/ID        one folder per process: a locked file, and a mark for each lease that the process holds
    locks/XXX           locked while an entry is filled
    locks/moment        locked briefly while anything above changes

Kernel locks alone show which processes are alive. They end with their process, and nothing is read from a locked file,
so zeros left there by a power cut do no harm. Locks are visible to all processes of a kernel, and of a host; the ID of
a process names both, since containers have host names of their own, and a machine that was started again has another
kernel. On a network disk a process of another host counts as alive for ever, because living processes change nothing
that could be watched: folders of a host that does not come back are removed by hand.

The locks are those of ``filelock``, except its reader-writer locks: one is an SQLite database, the other trusts the
clocks of other processes. A locked file per leased entry would be simpler than marks, but a process may use thousands
of models, and the usual limit is 1,024 open files.
"""

import logging
import os
import re
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

from mirrorspark.clear_error import ClearError
from mirrorspark.storage.lease import boot_id, lock_state

_ENTRIES, _ARRIVING, _PROCESSES, _LOCKS = "entries", "arriving", "processes", "locks"
_LOCK, _MOMENT = "lock", "moment"
# Names that do not end in a digest are not entries and are left alone.
_KEY = re.compile(r"(?!\.)[\w.-]{0,180}[0-9a-f]{12}", re.ASCII)
# Intervals at which a process polls the lock of an entry that another one fills, and the lock for changes.
_LOOK_SECONDS, _MOMENT_SECONDS = 0.2, 0.005
_LOGGER = logging.getLogger(__name__)


def user_folder(name: str) -> Path:
    """Return the folder for a kind of cached files of this user, which may not exist yet."""
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).absolute() / "mirrorspark" / name
    try:
        home = Path.home()
    except RuntimeError:
        # The user is not in the system's user database, as in many containers; their home is usually /.
        home = Path("/")
    return home / ".cache" / "mirrorspark" / name


class HostCacheError(ClearError, OSError):
    """The cache folder cannot be written or locked; ``errno`` says why."""


class HostCacheFullError(HostCacheError):
    """An entry does not fit next to those in use."""


@dataclass(frozen=True)
class Entry:
    """An entry, complete or partly filled.

    Attributes:
        path: Current folder.
        bytes: Size; for a partly filled entry the expected size if that is larger.
        last_used: Time of the last lease or change, in seconds since the epoch.
    """

    path: Path
    bytes: int
    last_used: float

    @property
    def key(self) -> str:
        """The key under which the entry is found."""
        return self.path.name

    @property
    def is_whole(self) -> bool:
        """True if the entry is complete."""
        return self.path.parent.name == _ENTRIES


class Lease:
    """The right to read an entry, which is not evicted before :meth:`release` or the end of this object or process.

    Attributes:
        path: The folder of the entry.
    """

    def __init__(self, path: Path, process: "_Process") -> None:
        self.path = path
        mark = process.folder / f"{path.name}~{uuid4().hex}"
        try:
            mark.hardlink_to(process.folder / _LOCK)  # much faster than a new file
        except OSError:  # a disk without links
            mark.touch()
        self._release = weakref.finalize(self, _remove_mark, mark, process, os.getpid())
        self._release.atexit = False  # a child process may still read

    def release(self) -> None:
        """Allow the entry to be evicted."""
        self._release()


@dataclass(frozen=True)
class HostCache:
    """A cache of folders. Fetching an entry and checking it for damage is the caller's part.

    A key is made of letters, digits, ``_``, ``.`` and ``-``, and ends in twelve hexadecimal digits of a digest. Every
    method raises ``ValueError`` for any other key, and ``HostCacheError`` if the folder cannot be written or locked.

    Attributes:
        folder: Created when it is needed, readable by its owner only.
        max_bytes: Limit for all entries together; leased entries stay even above it. None means a share of the disk.
        disk_parts: That share: 10 means a tenth.
        continues: Whether a partly filled entry stays for the next process that fills it, if there is room.
    """

    folder: Path
    max_bytes: int | None = None
    disk_parts: int = 10
    continues: bool = False

    def path(self, key: str) -> Path:
        """Return the path of the entry, which need not exist."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} cannot name an entry of {self.folder}; end it with a digest, without slashes")
        return self.folder / _ENTRIES / key

    def lease(self, key: str) -> Lease | None:
        """Return a lease on the entry for this process, or None if there is no entry."""
        path = self.path(key)
        with self._changing():
            return self._leased(path) if path.is_dir() else None

    @contextmanager
    def filling(self, key: str, name: str, arrived: Callable[[int], None] = lambda count: None) -> Iterator[Path]:
        """Yield a private folder in which to build an entry, to one process of the machine at a time.

        Another process may have published the entry while this one waited, so look again inside the block. The folder
        is removed at the end, unless the cache continues partly filled entries: then it contains the files of earlier
        attempts, and stays.

        Args:
            key: Name of the folder: the key of the entry if that is known beforehand.
            name: Readable name for the log.
            arrived: Called with the number of bytes that another process has fetched, whenever that grows.
        """
        arriving = self.folder / _ARRIVING / self.path(key).name
        self.check()
        with _locked(self._lock_of(key), name, lambda: bytes_in(arriving), arrived):
            if not self.continues:
                shutil.rmtree(arriving, ignore_errors=True)
            with self._changing():
                arriving.mkdir(parents=True, exist_ok=True)
            try:
                yield arriving
            finally:
                if not self.continues:
                    shutil.rmtree(arriving, ignore_errors=True)
                with suppress(OSError):
                    _expectation(arriving).unlink(missing_ok=True)
                    arriving.rmdir()  # only if it exists and is empty

    def reserve(self, arriving: Path, name: str, size: int) -> None:
        """Make room for the entry that is filled in ``arriving``; all processes count its size from now on.

        Raises:
            HostCacheFullError: There is not enough room.
        """
        with self._changing():
            taken, limit = self._make_room(size, excluded=arriving), self._limit()
            free = shutil.disk_usage(self.folder).free
            if taken + size > limit:
                raise HostCacheFullError(
                    f"{name} has {size} bytes; {self.folder} may take {limit}, of which {taken} are in use"
                )
            if size > free:
                raise HostCacheFullError(f"{name} has {size} bytes, the disk of {self.folder} has {free} free")
            _expectation(arriving).write_text(str(size), encoding="utf-8")

    def publish(self, key: str, folder: Path, *, replace: bool = False) -> Lease:
        """Move a complete folder into the cache as entry ``key``, evict others if needed, and return a lease.

        Args:
            key: Identifies the content, so an existing entry is kept.
            folder: The folder that :meth:`filling` yielded, or one in it.
            replace: Replace an existing entry, which is damaged.
        """
        path = self.path(key)
        with self._changing():
            if replace and path.is_dir():
                self._discard(path)
            if not path.is_dir():
                path.parent.mkdir(exist_ok=True)
                folder.rename(path)
            lease = self._leased(path)
            self._make_room()
        return lease

    def entries(self) -> list[Entry]:
        """Return all entries, least recently used first."""
        found = []
        for folder in (self.folder / _ENTRIES, self.folder / _ARRIVING):
            with suppress(FileNotFoundError), os.scandir(folder) as listed:
                for item in listed:
                    if _KEY.fullmatch(item.name):
                        with suppress(FileNotFoundError):  # another process has evicted it
                            found.append(_entry(item, is_whole=folder.name == _ENTRIES))
        return sorted(found, key=lambda entry: (entry.last_used, entry.path))

    def evict(self, entry: Entry) -> bool:
        """Remove an entry unless it is leased or being filled; return whether it was removed."""
        with self._changing():
            return entry.path.is_dir() and self._evict(entry, self._used())

    def check(self) -> None:
        """Raise ``HostCacheError`` if the folder cannot be written or locked."""
        with self._changing():
            pass

    def _limit(self) -> int:
        return shutil.disk_usage(self.folder).total // self.disk_parts if self.max_bytes is None else self.max_bytes

    def _open_lock(self) -> int:
        path = self.folder / _LOCKS / _MOMENT
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def _lock_of(self, key: str) -> FileLock:
        # Keys with the same end share a lock; otherwise each would leave a file behind. The library's substitute for
        # disks without locks would outlive its process.
        return FileLock(self.folder / _LOCKS / key[-3:], mode=0o600, fallback_to_soft=False)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock for changes to the cache; an ``OSError`` in the block becomes a ``HostCacheError``."""
        with _as_cache_error():
            # Every lease takes this lock, so it bypasses FileLock, which is twenty times slower (0.1 ms).
            lock = self._open_lock()
            try:
                lock_descriptor(lock, poll_interval=_MOMENT_SECONDS)
                try:
                    yield
                finally:
                    unlock_descriptor(lock)  # closing alone does not unlock if a child was forked meanwhile
            finally:
                os.close(lock)

    def _leased(self, path: Path) -> Lease:
        os.utime(path)  # eviction is in order of last use
        return Lease(path, _this_process(self.folder / _PROCESSES))

    def _make_room(self, size: int = 0, excluded: Path | None = None) -> int:
        """Evict until ``size`` bytes fit; return the bytes of the remaining entries without the ``excluded`` one."""
        for removed in (self.folder / _ARRIVING).glob(".*"):  # left by a process that died while removing it
            shutil.rmtree(removed, ignore_errors=True)
        used, limit = self._used(), self._limit()
        others = [entry for entry in self.entries() if entry.path != excluded]
        taken = sum(entry.bytes for entry in others)
        for entry in others:
            is_waste = not (entry.is_whole or self.continues)
            fits = taken + size <= limit and (not size or size <= shutil.disk_usage(self.folder).free)
            if (is_waste or not fits) and self._evict(entry, used):
                taken -= entry.bytes
        return taken

    def _evict(self, entry: Entry, used: set[str]) -> bool:
        if entry.is_whole:
            if entry.key in used:
                return False
            _LOGGER.info("evicting %s, %d bytes", entry.path, entry.bytes)
            self._discard(entry.path)
            return True
        try:
            with self._lock_of(entry.key).acquire(timeout=0):
                self._discard(entry.path)
        except Timeout:  # it is being filled
            return False
        return True

    def _discard(self, path: Path) -> None:
        # Renamed first: a partly removed entry must not look complete.
        removed = self.folder / _ARRIVING / f".{uuid4().hex}"
        removed.parent.mkdir(exist_ok=True)
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        _expectation(path).unlink(missing_ok=True)

    def _used(self) -> set[str]:
        """Return the keys leased by living processes; marks of ended processes of this host are removed."""
        used: set[str] = set()
        for folder in (self.folder / _PROCESSES).glob("*"):
            # On a network disk the locks of another host may be invisible here, so its processes count as alive.
            if _shows_locks(folder.name) and not _is_locked(folder / _LOCK):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                used.update(mark.name.partition("~")[0] for mark in folder.iterdir())
        return used


class _Process:
    """The folder of one process in a cache: its lease marks, and a file that is locked while the process lives.

    A forked child shares the open file, so inherited leases last until both processes have ended.
    """

    def __init__(self, processes: Path) -> None:
        processes.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_host()}+{_kernel()}-", dir=processes))
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, lock).atexit = False
        lock_descriptor(lock, blocking=False)


# By the cache's folder and the process id, which differs in a forked child.
_PROCESS: dict[tuple[Path, int], _Process] = {}


def _this_process(processes: Path) -> _Process:
    process = _PROCESS.get((processes, os.getpid()))
    if process is None or not process.folder.is_dir():  # the cache was emptied
        for key in [key for key, other in _PROCESS.items() if not other.folder.is_dir()]:
            _PROCESS.pop(key, None)
        process = _PROCESS[processes, os.getpid()] = _Process(processes)
    return process


def _remove_mark(mark: Path, _: _Process, pid: int) -> None:
    if pid == os.getpid():  # a forked child leaves its parent's mark
        mark.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


def _kernel() -> str:
    return boot_id().replace("-", "")


def _shows_locks(process: str) -> bool:
    """Return whether the locks of a process, given the name of its folder, are visible here."""
    # Earlier versions wrote no kernel.
    host, _, kernel = process.rpartition("-")[0].partition("+")
    return host == _host() or (kernel != "" and kernel == _kernel())


def _is_locked(path: Path) -> bool:
    return path.exists() and lock_state(path) != "free"


@contextmanager
def _locked(lock: FileLock, name: str, measure: Callable[[], int], arrived: Callable[[int], None]) -> Iterator[None]:
    """Hold the lock of an entry; while another process holds it, log that once and report its progress."""
    seen = -1

    def look() -> bool:
        nonlocal seen
        if seen < 0:
            _LOGGER.info("waiting for another process to download %s", name)
        size = measure()
        if size > max(seen, 0):
            arrived(size)
        seen = max(seen, size)
        return False

    with _as_cache_error():
        held = lock.acquire(poll_interval=_LOOK_SECONDS, cancel_check=look)
    with held:
        yield


@contextmanager
def _as_cache_error() -> Iterator[None]:
    try:
        yield
    except HostCacheError:
        raise
    except OSError as error:
        raise HostCacheError(error.errno, error.strerror or str(error), error.filename) from error


def _expectation(arriving: Path) -> Path:
    """Return the path of the file that states how many bytes an entry will take."""
    return arriving.with_name(f"{arriving.name}.bytes")


def _entry(item: "os.DirEntry[str]", *, is_whole: bool) -> Entry:
    path, state = Path(item.path), item.stat()
    if is_whole:
        return Entry(path, _size(item.path, state.st_ino), state.st_mtime)
    try:
        expected = int(_expectation(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no size is known, or a power cut has damaged the file
        expected = 0
    return Entry(path, max(expected, bytes_in(path)), state.st_mtime)


@lru_cache(maxsize=100_000)
def _size(path: str, inode: int) -> int:
    """Return the size of a complete entry, which never changes; a replacement has another ``inode``."""
    return bytes_in(path)


def bytes_in(folder: str | Path) -> int:
    """Return the total size of the files below a local folder, which other processes may be writing to."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # A file may be renamed between the listing and this call.
            with suppress(FileNotFoundError):
                size += (Path(root) / name).stat().st_size
    return size
