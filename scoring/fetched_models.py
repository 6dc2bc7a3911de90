"""Copies of the models that stores gave: each version is fetched once for all processes of this machine.

In the folder of the copies::

    files/DIGEST-BYTES   a model; versions with the same files share it
    known/KEY.json       which of these a URI of a store led to when that was asked last
    processes/ID         what a living process uses, and what is on its way to it
    lock, lock-XX        held while one of these changes; the system frees the locks of processes that die

Not to be confused with :class:`scoring.model_cache.ModelCache`, which keeps loaded models in memory.
"""

import fcntl
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
from uuid import uuid4

from scoring.kept_digests import kept_digest
from scoring.model_directory import folder_digest, model_files

FOLDER_VARIABLE = "MIRRORSPARK_MODEL_CACHE"
OFFLINE_VARIABLE = "MIRRORSPARK_OFFLINE"

_PARTS_OF_DISK = 10
_FILES, _KNOWN, _PROCESSES = "files", "known", "processes"
# What is held while folders come and go, and who uses what is written down: a moment.
_LOCK = "lock"
_LOGGER = logging.getLogger(__name__)


class FetchedModelsError(OSError):
    """A folder that cannot hold copies of models; the message says why and what to do."""


@dataclass(frozen=True)
class StoredVersion:
    """A version of a model, in a store.

    Attributes:
        store: Addresses of the store, without secrets.
        uri: The URI that leads to this very version.
        name: That of the pinned model.
        version: As there.
        location: URI of the files, without secrets.
    """

    store: str
    uri: str
    name: str
    version: str
    location: str


@dataclass(frozen=True)
class FetchedVersion(StoredVersion):
    """One whose files were fetched.

    Attributes:
        digest: SHA-256 over the files.
        bytes: Their size.
        fetched: When, in ISO 8601.
        asked: When the store said last that what was asked for is this version, in ISO 8601.
    """

    digest: str
    bytes: int
    fetched: str
    asked: str

    def __str__(self) -> str:
        return f"{self.uri} (fetched {self.fetched})"


def asks_to_be_offline() -> bool:
    """Whether the environment asks every call to do without stores that are elsewhere."""
    return os.environ.get(OFFLINE_VARIABLE, "").lower() in ("1", "true")


def _default_folder() -> Path:
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirrorspark" / "models"


@dataclass(frozen=True)
class FetchedModels:
    """Where copies lie, and how much room they may take.

    Attributes:
        folder: On a local disk; made when it is needed, readable by its owner only.
        limit_bytes: Most that all copies together may take, but for those that living processes use; None is a tenth
            of the disk.
    """

    folder: Path = field(default_factory=_default_folder)
    limit_bytes: int | None = None

    def path(self, version: FetchedVersion) -> Path:
        """Return the folder of a version's files."""
        return self.folder / _FILES / f"{version.digest}-{version.bytes}"

    def find(self, store: str, uri: str) -> FetchedVersion | None:
        """Return what ``uri`` led to when ``store`` was asked last; None where there is no copy of it."""
        try:
            version = FetchedVersion(**json.loads(self._record(store, uri).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            # A power cut may have left half of it; it is written again with the next fetch.
            return None
        return version if self.path(version).is_dir() else None

    def recall(self, store: str, uri: str) -> FetchedVersion | None:
        """Return what :meth:`find` does, if its files are still those that were fetched; this process may use them.

        Raises:
            FetchedModelsError: The folder cannot be written.
        """
        return self._whole(self.find(store, uri))

    def fetch(self, wanted: StoredVersion, download: Callable[[Path], Path], *, again: bool = False) -> FetchedVersion:
        """Return the copy of ``wanted``, which is made first where there is no whole one; this process may use it.

        Of several processes that ask at once, one downloads and the others wait. What a process uses stays until it
        ends.

        Args:
            wanted: The version.
            download: Takes an empty folder, and returns the one in it that is the model.
            again: Make a new copy in any case: the files may be others now.

        Raises:
            FetchedModelsError: The folder cannot be written.
        """
        lock = f"{_LOCK}-{_key(wanted.store, wanted.uri)[:2]}"
        if not again:
            with self._locked(lock, fcntl.LOCK_SH):
                if found := self._copy_of(wanted):
                    return found
        with self._locked(lock):
            # Another process may have made it while this one waited.
            return (None if again else self._copy_of(wanted)) or self._add(wanted, download)

    def remember(self, uri: str, version: FetchedVersion) -> None:
        """Put down that ``uri``, such as one with an alias, leads to ``version`` now.

        Raises:
            FetchedModelsError: The folder cannot be written.
        """
        with self._locked(_LOCK):
            self._write(uri, replace(version, asked=_now()))

    def _copy_of(self, wanted: StoredVersion) -> FetchedVersion | None:
        found = self.find(wanted.store, wanted.uri)
        # A model that is deleted and registered anew begins with version 1 again, and its files are elsewhere.
        return self._whole(found) if found is not None and found.location == wanted.location else None

    def _whole(self, version: FetchedVersion | None) -> FetchedVersion | None:
        """Return ``version``, kept for this process; None where its files are gone or others than those fetched."""
        if version is None:
            return None
        path = self.path(version)
        with self._locked(_LOCK):
            if not path.is_dir():
                return None
            self._use(path)
        if kept_digest(path) != version.digest:
            _LOGGER.warning("the copy of %s in %s is damaged: it is not used", version, path)
            return None
        return version

    def _add(self, wanted: StoredVersion, download: Callable[[Path], Path]) -> FetchedVersion:
        with self._locked(_LOCK):
            arriving = Path(tempfile.mkdtemp(prefix="arriving-", dir=_own_folder(self.folder)))
        try:
            model = download(arriving)
            size = sum(path.stat().st_size for _, path in model_files(model))
            now = _now()
            version = FetchedVersion(**asdict(wanted), digest=folder_digest(model), bytes=size, fetched=now, asked=now)
            with self._locked(_LOCK):
                self._publish(model, version)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        return version

    def _publish(self, model: Path, version: FetchedVersion) -> None:
        """Have the folder ``model`` take its place; the caller holds the lock."""
        path = self.path(version)
        if path.is_dir() and folder_digest(path) != version.digest:
            self._remove(path)
        if not path.is_dir():
            path.parent.mkdir(exist_ok=True)
            model.rename(path)
        self._use(path)
        self._write(version.uri, version)
        self._make_room()

    def _use(self, path: Path) -> None:
        """Keep ``path`` until this process ends, and longer than what others have used before."""
        (_own_folder(self.folder) / path.name).touch()
        os.utime(path)

    def _make_room(self) -> None:
        """Remove what is longest unused, until the limit is kept or living processes use all that there is."""
        limit = shutil.disk_usage(self.folder).total // _PARTS_OF_DISK if self.limit_bytes is None else self.limit_bytes
        sizes = {path: int(path.name.rpartition("-")[2]) for path in (self.folder / _FILES).iterdir()}
        taken = sum(sizes.values())
        if taken <= limit:
            return
        _remove_ended(self.folder / _PROCESSES)
        used = {mark.name for mark in (self.folder / _PROCESSES).glob("*/*")}
        for path in sorted((path for path in sizes if path.name not in used), key=lambda path: path.stat().st_mtime):
            if taken <= limit:
                break
            _LOGGER.info("removing %s, %d bytes, to make room for other models", path, sizes[path])
            self._remove(path)
            taken -= sizes[path]

    def _remove(self, path: Path) -> None:
        # Renamed first: what is removed halfway must not be taken for a model.
        removed = _own_folder(self.folder) / f"removed-{uuid4().hex}"
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _write(self, uri: str, version: FetchedVersion) -> None:
        record = self._record(version.store, uri)
        record.parent.mkdir(exist_ok=True)
        partial = _own_folder(self.folder) / record.name
        partial.write_text(json.dumps(asdict(version), indent=2), encoding="utf-8")
        partial.replace(record)

    def _record(self, store: str, uri: str) -> Path:
        return self.folder / _KNOWN / f"{_key(store, uri)}.json"

    @contextmanager
    def _locked(self, name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FetchedModelsError(
                f"{self.folder} cannot hold copies of models: {error}; have {FOLDER_VARIABLE} name a folder that can "
                f"be written"
            ) from error
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)


def _key(store: str, uri: str) -> str:
    """Return what a URI has for a name in the folder; that of ``runs://ID/model/`` and ``runs:/ID/model`` is one."""
    plain = re.sub(r":/+", ":/", uri).rstrip("/")
    return hashlib.sha256(f"{store}\n{plain}".encode()).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _own_folder(copies: Path) -> Path:
    """Return this process's folder among ``copies``; the caller holds their lock."""
    own = _begun_folder(copies)
    if not own.is_dir():
        # Somebody has emptied the folder of the copies.
        _begun_folder.cache_clear()
        own = _begun_folder(copies)
    return own


@cache
def _begun_folder(copies: Path) -> Path:
    """Make this process's folder; its lock is held until the process ends, and so it is known to live."""
    processes = copies / _PROCESSES
    processes.mkdir(exist_ok=True)
    _remove_ended(processes)
    own = Path(tempfile.mkdtemp(dir=processes))
    fcntl.flock(_open_lock(own), fcntl.LOCK_EX)
    return own


def _remove_ended(processes: Path) -> None:
    """Remove the folders of processes that have ended."""
    for folder in processes.iterdir():
        lock = _open_lock(folder)
        try:
            with suppress(BlockingIOError):  # it lives
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _open_lock(folder: Path) -> int:
    return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
