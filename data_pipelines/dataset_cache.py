"""Copies of remote datasets on this machine: staged once for all its processes, checked, and evicted to make room.

A copy is named after its dataset and a hash of its manifest, so that a dataset that is written again gets a copy of
its own. Beside each lies a lock file, which processes hold shared while they read the copy and exclusively while they
make or remove it. The system frees the locks of processes that die, so nothing has to be cleared by hand.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.manifest import FEATURES_FOLDER, MANIFEST_FILE, DatasetError, Manifest, check_directory
from data_pipelines.storage import StoragePath, StoredFile

_LOCK_SUFFIX = ".lock"
_PARTIAL_SUFFIX = ".partial"
_ROOM_LOCK = "room"
_LOGGER = logging.getLogger(__name__)


class CacheError(OSError):
    """A dataset that cannot be copied to this machine; the message says why and what to do."""


class Lease:
    """The right to read a copy: it is not evicted before :meth:`release`, or the end of this object or its process.

    Attributes:
        path: The copy.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._close = weakref.finalize(self, os.close, lock)

    def release(self) -> None:
        """Allow the copy to be evicted."""
        self._close()


@dataclass(frozen=True)
class CachedDataset:
    """One copy.

    Attributes:
        path: Its directory.
        source: Where it was copied from.
        bytes: Its size.
        last_used: When a process last asked for it, seconds since the epoch.
    """

    path: Path
    source: str
    bytes: int
    last_used: float


def _default_folder() -> Path:
    return Path.home() / ".cache" / "mirrorspark" / "datasets"


@dataclass(frozen=True)
class DatasetCache:
    """Where copies lie, and how much room they may take.

    Attributes:
        folder: On a local disk; made when it is needed, readable by its owner only.
        limit_bytes: Most that all copies together may take; None is half of the disk.
    """

    folder: Path = field(default_factory=_default_folder)
    limit_bytes: int | None = None

    def stage(self, location: StoragePath) -> Lease:
        """Return the copy of the dataset at ``location``, which is made first where there is none.

        Of several processes that ask at once, one copies and the others wait. What a process that died has copied is
        used by the next one.

        Raises:
            DatasetError: There is no whole dataset.
            CacheError: There is no room for it, or the folder cannot be written.
            OSError: The store refuses.
        """
        manifest = Manifest.load(location)
        content = (location / MANIFEST_FILE).read_bytes()
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", location.name).lstrip(".")
        path = self.folder / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
        with ExitStack() as on_failure:
            lock = self._open_lock(path)
            on_failure.callback(os.close, lock)
            while not _is_shared_with(lock, path):
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.is_dir():
                    self._copy(location, manifest, content, path, lock)
            os.utime(lock)  # what was used last is evicted last
            on_failure.pop_all()
        return Lease(path, lock)

    def entries(self) -> list[CachedDataset]:
        """Return all copies, finished and begun, the longest unused first."""
        found = []
        for lock in self.folder.glob(f"*{_LOCK_SUFFIX}"):
            path = lock.with_suffix("")
            if path.is_dir() or _partial(path).is_dir():
                described = json.loads(lock.read_text(encoding="utf-8") or "{}")
                source, size = str(described.get("source", "")), int(described.get("bytes", 0))
                found.append(CachedDataset(path, source, size, lock.stat().st_mtime))
        return sorted(found, key=lambda entry: (entry.last_used, entry.path))

    def clean_up(self, unused_seconds: float = 0.0) -> list[CachedDataset]:
        """Remove the copies that nobody uses and nobody has asked for in ``unused_seconds``; return them."""
        oldest = time.time() - unused_seconds
        return [entry for entry in self.entries() if entry.last_used <= oldest and _evict(entry)]

    def _open_lock(self, path: Path) -> int:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path.with_name(path.name + _LOCK_SUFFIX), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CacheError(
                f"{self.folder} cannot hold copies of datasets: {error}; give DatasetCache a folder that can be written"
            ) from error

    def _copy(self, location: StoragePath, manifest: Manifest, content: bytes, path: Path, lock: int) -> None:
        """Copy the dataset to ``path``, whose lock the caller holds exclusively."""
        files = _files_of(location, manifest)
        self._reserve(sum(file.bytes for file in files) + len(content), location, path, lock)
        partial = _partial(path)
        partial.mkdir(exist_ok=True)
        _LOGGER.info("copying %s to %s", location, path)
        for file in files:
            target = partial / file.path.relative_to(location)
            # Downloads appear when they are whole; that their bytes are right is checked below.
            if not (target.is_file() and target.stat().st_size == file.bytes):
                file.path.download(target)
        (partial / MANIFEST_FILE).write_bytes(content)
        try:
            check_directory(partial, checksums=True)
        except DatasetError as error:
            shutil.rmtree(partial)
            raise DatasetError(
                f"the copy of {location} differs from its manifest ({error}); if nobody was writing it meanwhile, the "
                f"dataset itself is damaged: convert it again"
            ) from error
        partial.rename(path)

    def _reserve(self, size: int, location: StoragePath, path: Path, lock: int) -> None:
        """Make room for ``size`` bytes by evicting what is longest unused, and put down that ``path`` will take it."""
        with _exclusive(self._open_lock(self.folder / _ROOM_LOCK)):
            limit = shutil.disk_usage(self.folder).total // 2 if self.limit_bytes is None else self.limit_bytes
            others = [entry for entry in self.entries() if entry.path != path]
            taken = sum(entry.bytes for entry in others)
            for entry in others:
                if taken + size <= limit and size <= shutil.disk_usage(self.folder).free:
                    break
                if _evict(entry):
                    taken -= entry.bytes
            if taken + size > limit:
                raise CacheError(
                    f"{location} has {size} bytes; {self.folder} may take {limit}, of which {taken} are in use; "
                    f"give DatasetCache a higher limit_bytes or a folder on a larger disk"
                )
            free = shutil.disk_usage(self.folder).free
            if size > free:
                raise CacheError(
                    f"{location} has {size} bytes, the disk of {self.folder} has {free} free; make room, or give "
                    f"DatasetCache a folder on a larger disk"
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps({"source": location.uri, "bytes": size}).encode(), 0)
            # From here on the others count it.
            _partial(path).mkdir(exist_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL_SUFFIX)


def _files_of(location: StoragePath, manifest: Manifest) -> list[StoredFile]:
    """Return what belongs to the dataset, the manifest apart."""
    # Deferred, for drawing loads matplotlib: only the one process that copies needs it.
    from data_pipelines.quality.dataset_page import PAGE_FILE
    from data_pipelines.quality.profile import PROFILE_FILE

    shards = {shard.path for shards in manifest.splits.values() for shard in shards}
    files = {file.path.relative_to(location): file for file in location.files()}
    missing = sorted(shards - set(files))
    if missing:
        raise DatasetError(f"shard {location / missing[0]} is missing; delete {location} and convert again")
    own = shards | {PROFILE_FILE, PAGE_FILE}
    return [file for name, file in files.items() if name in own or name.startswith(FEATURES_FOLDER + "/")]


def _is_shared_with(lock: int, path: Path) -> bool:
    """Share the lock of ``path``; return whether there is a copy. It stays while the lock is held."""
    fcntl.flock(lock, fcntl.LOCK_SH)
    return path.is_dir()


@contextmanager
def _exclusive(lock: int) -> Iterator[None]:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _evict(entry: CachedDataset) -> bool:
    """Remove a copy unless it is in use; return whether it is gone."""
    lock = os.open(entry.path.with_name(entry.path.name + _LOCK_SUFFIX), os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        _LOGGER.info("evicting %s, the copy of %s", entry.path, entry.source)
        # Renamed first: a copy that is removed halfway must not be taken for a whole one.
        if entry.path.is_dir():
            shutil.rmtree(_partial(entry.path), ignore_errors=True)
            entry.path.rename(_partial(entry.path))
        shutil.rmtree(_partial(entry.path), ignore_errors=True)
        return True
    finally:
        os.close(lock)
