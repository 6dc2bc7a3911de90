"""Local copies of models from remote stores. Each version is fetched once for all processes of this host.

The folder contains, in addition to the files of :mod:`storage.host_cache`::

    entries/DIGEST   a model; versions with equal files share it
    known/KEY.json   the model that a URI of a store led to at the last look-up

:class:`scoring.model.loading.ModelCache` is another cache: it holds loaded models in memory.
"""

import atexit
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.model.stored.digest import cached_digest, folder_digest, model_files
from mirrorspark.storage import atomic_file, host_cache

# The library itself reads these and XDG_CACHE_HOME, because they belong to a host, a container or a CI job and apply to
# every entry point; notebooks, UDFs and the SQL function have no command line.
FOLDER_VARIABLE = "MIRRORSPARK_MODEL_CACHE"
OFFLINE_VARIABLE = "MIRRORSPARK_OFFLINE"

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})
"""Errors of a download that come from the local folder, not from the store."""

_READ_ONLY = (errno.EACCES, errno.EROFS)
_KNOWN = "known"
# Leases protect the models that this process has resolved until it ends.
_LEASES: dict[Path, host_cache.Lease] = {}
_LOGGER = logging.getLogger(__name__)


class FetchedModelsError(ClearError, OSError):
    """Raised when a folder cannot hold copies of models; the message gives the reason and the remedy."""


class ReadOnlyModelsError(FetchedModelsError):
    """Raised when the folder is read-only; copies in it may still be used."""


@dataclass(frozen=True)
class StoredVersion:
    """A version of a model in a store.

    Attributes:
        store: Addresses of the store, without credentials.
        uri: The URI of exactly this version.
        location: URI of the files, without credentials.
    """

    store: str
    uri: str
    name: str
    version: str
    location: str


@dataclass(frozen=True)
class FetchedVersion(StoredVersion):
    """A version whose files were fetched.

    Attributes:
        digest: SHA-256 over the files.
        bytes: Total size of the files.
        fetched: Time of the fetch, in ISO 8601.
        asked: Time of the last look-up in the store that led to this version, in ISO 8601.
    """

    digest: str
    bytes: int
    fetched: str
    asked: str

    def __str__(self) -> str:
        return f"{self.uri} (fetched {self.fetched})"


def is_offline_by_environment() -> bool:
    """Return whether the environment turns off all remote stores.

    Raises:
        ValueError: The variable is neither true nor false.
    """
    said = os.environ.get(OFFLINE_VARIABLE, "")
    if said.lower() not in ("1", "true", "0", "false", ""):
        raise ValueError(f"{OFFLINE_VARIABLE} is '{said}'; set it to 1 or true, or to 0 or false, or leave it unset")
    return said.lower() in ("1", "true")


def _is_named() -> bool:
    """Return whether the environment names the folder."""
    return bool(os.environ.get(FOLDER_VARIABLE) or os.environ.get("XDG_CACHE_HOME"))


def _default_folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).absolute() if named else host_cache.user_folder("models")


@dataclass(frozen=True)
class FetchedModels:
    """The local copies in one folder.

    Attributes:
        folder: Folder on a local disk; created when needed, readable by its owner only.
        limit_bytes: Limit for the total size of all copies, except those in use by live processes; None means a tenth
            of the disk.
    """

    folder: Path = field(default_factory=_default_folder)
    limit_bytes: int | None = None

    @property
    def _copies(self) -> host_cache.HostCache:
        return host_cache.HostCache(self.folder, self.limit_bytes, disk_parts=10)

    def path(self, version: FetchedVersion) -> Path:
        """Return the folder of a version."""
        return self._copies.path(version.digest)

    def find(self, store: str, uri: str, location: str | None = None) -> FetchedVersion | None:
        """Return the version that ``uri`` led to at the last look-up; None if there is no copy.

        Args:
            store: As in :class:`StoredVersion`.
            uri: As in :class:`StoredVersion`.
            location: Required location of the files, or None for any. A model that is deleted and registered again
                starts at version 1 again, with files at another location.
        """
        try:
            version = FetchedVersion(**json.loads(self._record(store, uri).read_text(encoding="utf-8")))
            is_there = location in (None, version.location) and self.path(version).is_dir()
        except (OSError, ValueError, TypeError):
            # A power failure may have left a partial file; the next fetch writes it again.
            return None
        return version if is_there else None

    def recall(self, store: str, uri: str, location: str | None = None) -> FetchedVersion | None:
        """Return the result of :meth:`find` if its files are unchanged, and lease them for this process.

        Raises:
            FetchedModelsError: The folder cannot hold copies. A read-only folder is not an error.
        """
        found = self.find(store, uri, location)
        if found is None:
            return None
        try:
            return self._leased(found)
        except ReadOnlyModelsError:
            # A read-only folder, as in a container image, cannot hold a lease.
            return found if self._is_unchanged(found) else None

    def fetch(self, wanted: StoredVersion, download: Callable[[Path], Path], *, again: bool = False) -> FetchedVersion:
        """Return the copy of ``wanted``, downloaded unless there is a valid one, and lease it for this process.

        Of several concurrent processes one downloads and the others wait. A leased copy stays until the process ends.

        Args:
            wanted: The version.
            download: Function that downloads into an empty folder and returns the model's folder in it.
            again: Download in any case, because the files may have changed.

        Raises:
            FetchedModelsError: The folder cannot be written.
        """
        if not again and (found := self._copy_of(wanted)):
            return found
        with self._explained_errors(), self._copies.filling(_key(wanted.store, wanted.uri), wanted.uri) as arriving:
            # Another process may have fetched it while this one waited.
            return (None if again else self._copy_of(wanted)) or self._add(wanted, download, arriving)

    def remember(self, uri: str, version: FetchedVersion) -> None:
        """Record that ``uri``, which may have an alias, leads to ``version`` now.

        Raises:
            FetchedModelsError: The folder cannot be written.
        """
        self._write(uri, replace(version, asked=_now()))

    def check_writable(self) -> None:
        """Check that the folder can hold copies.

        Raises:
            FetchedModelsError: It cannot.
        """
        with self._explained_errors():
            self._copies.check()

    def _copy_of(self, wanted: StoredVersion) -> FetchedVersion | None:
        found = self.find(wanted.store, wanted.uri, wanted.location)
        return None if found is None else self._leased(found)

    def _leased(self, version: FetchedVersion) -> FetchedVersion | None:
        """Lease ``version`` and return it; None if its files were removed or have changed."""
        with self._explained_errors():
            lease = self._copies.lease(version.digest)
        if lease is None:
            return None
        _LEASES[lease.path] = lease
        return version if self._is_unchanged(version) else None

    def _is_unchanged(self, version: FetchedVersion) -> bool:
        path = self.path(version)
        # A file may disappear while it is read, when another process replaces a damaged copy.
        with suppress(FileNotFoundError):
            if cached_digest(path) == version.digest:
                return True
        _LOGGER.warning("the copy of %s in %s is damaged: it is not used", version, path)
        return False

    def _add(self, wanted: StoredVersion, download: Callable[[Path], Path], arriving: Path) -> FetchedVersion:
        try:
            model = download(arriving)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise self._cannot_hold(error) from error
            raise
        size = sum(path.stat().st_size for _, path in model_files(model))
        now = _now()
        version = FetchedVersion(**asdict(wanted), digest=folder_digest(model), bytes=size, fetched=now, asked=now)
        lease = self._copies.publish(version.digest, model, replace=_is_damaged(self.path(version), version.digest))
        _LEASES[lease.path] = lease
        self._write(version.uri, version)
        return version

    def _write(self, uri: str, version: FetchedVersion) -> None:
        record = self._record(version.store, uri)
        try:
            record.parent.mkdir(exist_ok=True)
            atomic_file.write_atomically(record, json.dumps(asdict(version), indent=2))
        except OSError as error:
            raise self._cannot_hold(error) from error

    def _record(self, store: str, uri: str) -> Path:
        return self.folder / _KNOWN / f"{_key(store, uri)}.json"

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except host_cache.HostCacheError as error:
            raise self._cannot_hold(error) from error

    def _cannot_hold(self, error: OSError) -> FetchedModelsError:
        kind = ReadOnlyModelsError if error.errno in _READ_ONLY else FetchedModelsError
        return kind(
            f"{self.folder} cannot hold copies of models: {error}; have {FOLDER_VARIABLE} name a folder on a local "
            f"disk that can be written and has room"
        )


def models_to_fetch_into() -> FetchedModels:
    """Return the copies of this host.

    If the environment names no folder and the home folder cannot be used, the copies are private to this process.
    """
    models = FetchedModels()
    return models if _is_named() else FetchedModels(_folder_or_scratch(models.folder))


@cache
def _folder_or_scratch(folder: Path) -> Path:
    """Return ``folder`` if it can hold copies, else warn and return a folder that is removed at exit."""
    try:
        FetchedModels(folder).check_writable()
    except FetchedModelsError as error:
        scratch, owner = Path(tempfile.mkdtemp(prefix="mirrorspark-models-")), os.getpid()
        _LOGGER.warning("models that are fetched are kept in %s until this process ends: %s", scratch, error)

        def remove() -> None:
            if os.getpid() == owner:  # not in a forked child
                shutil.rmtree(scratch, ignore_errors=True)

        atexit.register(remove)
        return scratch
    return folder


def _is_damaged(path: Path, digest: str) -> bool:
    try:
        return path.is_dir() and folder_digest(path) != digest
    except FileNotFoundError:
        # Another process has removed the copy or is replacing it.
        return False


def _key(store: str, uri: str) -> str:
    """Return the file name of a URI; ``runs://ID/model/`` and ``runs:/ID/model`` have the same."""
    plain = re.sub(r":/+", ":/", uri).rstrip("/")
    return hashlib.sha256(f"{store}\n{plain}".encode()).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
