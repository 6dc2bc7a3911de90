"""Copies of remote datasets on this machine: made once for all its processes, checked, and evicted to make room.

A copy is named after its dataset and a hash of its manifest, so a dataset that is written again gets a copy of its own.
"""

import hashlib
import logging
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.dataset.manifest import (
    FEATURES_FOLDER,
    MANIFEST_FILE,
    TEST_ROWS_FILE,
    DatasetError,
    Manifest,
    check_directory,
)
from mirrorspark.storage import StoragePath, StoredFile, host_cache, leads_out

_SOURCES = "sources"
_LOGGER = logging.getLogger(__name__)


class CacheError(ClearError, OSError):
    """A dataset that cannot be copied to this machine; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class CachedDataset:
    """A copy of a dataset.

    Attributes:
        path: Its directory.
        source: The location it was copied from.
        bytes: Its size.
        last_used: The time of its last use, in seconds since the epoch.
    """

    path: Path
    source: str
    bytes: int
    last_used: float


def _default_folder() -> Path:
    return Path.home() / ".cache" / "mirrorspark" / "datasets"


@dataclass(frozen=True)
class DatasetCache:
    """The dataset copies of a machine.

    Attributes:
        folder: A folder on a local disk; created when needed, readable by its owner only.
        limit_bytes: The most that all copies together may take; None for half of the disk.
    """

    folder: Path = field(default_factory=_default_folder)
    limit_bytes: int | None = None

    @property
    def _copies(self) -> host_cache.HostCache:
        # An interrupted copy is continued: datasets are large.
        return host_cache.HostCache(self.folder, self.limit_bytes, disk_parts=2, continues=True)

    def stage(self, location: StoragePath) -> host_cache.Lease:
        """Return the copy of the dataset at ``location``, and make it first if there is none.

        If several processes ask at once, one copies and the others wait. The next process continues the copy of one
        that died.

        Raises:
            DatasetError: There is no whole dataset.
            CacheError: There is no room for it, or the folder cannot be written.
            OSError: The store fails.
        """
        manifest = Manifest.load(location)
        content = (location / MANIFEST_FILE).read_bytes()
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", location.name).lstrip(".")[:100]
        key = f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
        try:
            return self._copies.lease(key) or self._copy(location, manifest, content, key)
        except host_cache.HostCacheFullError as error:
            raise CacheError(
                f"{error}; give DatasetCache a higher limit_bytes or a folder on a larger disk, or make room"
            ) from error
        except host_cache.HostCacheError as error:
            raise CacheError(
                f"{self.folder} cannot hold copies of datasets: {error}; give DatasetCache a folder that can be written"
            ) from error

    def entries(self) -> list[CachedDataset]:
        """Return all copies, complete and incomplete, the least recently used first."""
        return [self._described(entry) for entry in self._copies.entries()]

    def clean_up(self, unused_seconds: float = 0.0) -> list[CachedDataset]:
        """Remove the copies that are not in use and were not used in the last ``unused_seconds``; return them."""
        copies, oldest = self._copies, time.time() - unused_seconds
        old = [entry for entry in copies.entries() if entry.last_used <= oldest]
        return [self._described(entry) for entry in old if copies.evict(entry)]

    def _copy(self, location: StoragePath, manifest: Manifest, content: bytes, key: str) -> host_cache.Lease:
        copies = self._copies
        with copies.filling(key, str(location)) as partial:
            if lease := copies.lease(key):  # another process has copied it meanwhile
                return lease
            files = _files_of(location, manifest)
            copies.reserve(partial, str(location), sum(file.bytes for file in files) + len(content))
            self._keep_source(key, location)
            _LOGGER.info("copying %s to %s", location, copies.path(key))
            for file in files:
                target = partial / file.path.relative_to(location)
                # Downloads appear when complete; their checksums are compared below.
                if not (target.is_file() and target.stat().st_size == file.bytes):
                    file.path.download(target)
            (partial / MANIFEST_FILE).write_bytes(content)
            try:
                check_directory(partial, checksums=True)
            except DatasetError as error:
                shutil.rmtree(partial)
                raise DatasetError(
                    f"the copy of {location} differs from its manifest ({error}); if nobody was writing it meanwhile, "
                    f"the dataset itself is damaged: convert it again"
                ) from error
            return copies.publish(key, partial)

    def _described(self, entry: host_cache.Entry) -> CachedDataset:
        try:
            source = (self.folder / _SOURCES / entry.key).read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):  # a power cut may leave anything
            source = ""
        return CachedDataset(self._copies.path(entry.key), source, entry.bytes, entry.last_used)

    def _keep_source(self, key: str, location: StoragePath) -> None:
        """Record the source of a copy, and delete the records of copies that no longer exist."""
        sources = self.folder / _SOURCES
        sources.mkdir(exist_ok=True)
        (sources / key).write_text(location.uri, encoding="utf-8")
        there = {entry.key for entry in self._copies.entries()}
        for source in sources.iterdir():
            if source.name not in there:
                source.unlink(missing_ok=True)


def _files_of(location: StoragePath, manifest: Manifest) -> list[StoredFile]:
    """Return the files of the dataset without the manifest."""
    # Deferred, because drawing loads matplotlib, and only the process that copies needs it.
    from mirrorspark.data_pipelines.quality import PAGE_FILE, PROFILE_FILE

    shards = {shard.path for shards in manifest.splits.values() for shard in shards}
    files = {file.path.relative_to(location): file for file in location.files()}
    missing = sorted(shards - set(files))
    if missing:
        raise DatasetError(f"shard {location / missing[0]} is missing; delete {location} and convert again")
    own = shards | {PROFILE_FILE, PAGE_FILE, TEST_ROWS_FILE}
    wanted = {name: file for name, file in files.items() if name in own or name.startswith(FEATURES_FOLDER + "/")}
    # The keys of an object store may be any text.
    if outside := next(filter(leads_out, wanted), None):
        raise DatasetError(f"{location} has a file {outside!r}, which leads out of it; delete that file")
    return list(wanted.values())
