"""Copies of the models that stores gave: each version is fetched once for all processes of this machine.

In the folder of the copies::

    files/DIGEST-BYTES   a model; versions with the same files share it
    known/KEY.json       which of these a URI of a store led to when that was asked last
    processes/HOST-ID    what a living process uses, and what is on its way to it (:mod:`scoring.process_marks`)
    lock, lock-XX        held while one of these changes, and by who downloads

Not to be confused with :class:`scoring.model_cache.ModelCache`, which keeps loaded models in memory.
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
from uuid import uuid4

from scoring.kept_digests import kept_digest
from scoring.model_directory import folder_digest, model_files
from scoring.process_marks import free, hold, mark, marked, own_folder

# The library reads these and XDG_CACHE_HOME itself: they belong to a machine, a container or a CI job, and hold for
# every way in (notebooks, UDFs, the SQL function), most of which have no command line.
FOLDER_VARIABLE = "MIRRORSPARK_MODEL_CACHE"
OFFLINE_VARIABLE = "MIRRORSPARK_OFFLINE"

DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})
"""What a download fails with where the folder that it writes is to blame, and not the store."""

_READ_ONLY = (errno.EACCES, errno.EROFS)
_PARTS_OF_DISK = 10
_FILES, _KNOWN = "files", "known"
_COPY = re.compile(r"[0-9a-f]{64}-(\d+)")
# What is held while folders come and go, and who uses what is written down: a moment.
_LOCK = "lock"
_LOGGER = logging.getLogger(__name__)


class FetchedModelsError(OSError):
    """A folder that cannot hold copies of models; the message says why and what to do."""


class ReadOnlyModelsError(FetchedModelsError):
    """One that this process may not write; what it holds may be used all the same."""


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
    """Whether the environment asks every call to do without stores that are elsewhere.

    Raises:
        ValueError: It says neither yes nor no.
    """
    said = os.environ.get(OFFLINE_VARIABLE, "")
    if said.lower() not in ("1", "true", "0", "false", ""):
        raise ValueError(f"{OFFLINE_VARIABLE} is '{said}'; set it to 1 or true, or to 0 or false, or leave it unset")
    return said.lower() in ("1", "true")


def _named_folder() -> Path | None:
    """Return the folder that the environment names."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).absolute() / "mirrorspark" / "models"
    return None


def _default_folder() -> Path:
    if named := _named_folder():
        return named
    try:
        home = Path.home()
    except RuntimeError:
        # A user that the system does not know, in a container: most of these say / themselves.
        home = Path("/")
    return home / ".cache" / "mirrorspark" / "models"


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

    def find(self, store: str, uri: str, location: str | None = None) -> FetchedVersion | None:
        """Return what ``uri`` led to when ``store`` was asked last; None where there is no copy of it.

        Args:
            store: As in a version.
            uri: As in a version.
            location: Where the files must be from: a model that is deleted and registered anew begins with version 1
                again, and its files are elsewhere. None where that does not matter.
        """
        try:
            version = FetchedVersion(**json.loads(self._record(store, uri).read_text(encoding="utf-8")))
            is_there = location in (None, version.location) and self.path(version).is_dir()
        except (OSError, ValueError, TypeError):
            # A power cut may have left half of it; it is written again with the next fetch.
            return None
        return version if is_there else None

    def recall(self, store: str, uri: str, location: str | None = None) -> FetchedVersion | None:
        """Return what :meth:`find` does, if its files are still those that were fetched; this process may use them.

        Raises:
            FetchedModelsError: The folder cannot hold copies. One that is only read-only may.
        """
        found = self.find(store, uri, location)
        if found is None:
            return None
        try:
            return self._whole(found)
        except ReadOnlyModelsError:
            # Such as one in the image of a container: who cannot put down a mark has nobody to tell.
            return found if self._is_unchanged(found) else None

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
        if not again and (found := self._copy_of(wanted)):
            return found
        # Some versions share a lock: files for all would be left behind.
        lock = f"{_LOCK}-{_key(wanted.store, wanted.uri)[:2]}"
        with self._locked(lock, f"waiting for a download of another process before {wanted.uri} is fetched"):
            # Another process may have made it while this one waited.
            return (None if again else self._copy_of(wanted)) or self._add(wanted, download)

    def remember(self, uri: str, version: FetchedVersion) -> None:
        """Put down that ``uri``, such as one with an alias, leads to ``version`` now.

        Raises:
            FetchedModelsError: The folder cannot be written.
        """
        with self._changing():
            self._write(uri, replace(version, asked=_now()))

    def try_to_write(self) -> None:
        """Do what every fetch does first.

        Raises:
            FetchedModelsError: It failed.
        """
        with self._changing():
            own_folder(self.folder)

    def _copy_of(self, wanted: StoredVersion) -> FetchedVersion | None:
        found = self.find(wanted.store, wanted.uri, wanted.location)
        return None if found is None else self._whole(found)

    def _whole(self, version: FetchedVersion) -> FetchedVersion | None:
        """Return ``version``, kept for this process; None where its files are gone or others than those fetched."""
        path = self.path(version)
        with self._changing():
            if not path.is_dir():
                return None
            self._use(path)
        return version if self._is_unchanged(version) else None

    def _is_unchanged(self, version: FetchedVersion) -> bool:
        path = self.path(version)
        # A file may go while it is read: another process replaces a copy that is damaged.
        with suppress(FileNotFoundError):
            if kept_digest(path) == version.digest:
                return True
        _LOGGER.warning("the copy of %s in %s is damaged: it is not used", version, path)
        return False

    def _add(self, wanted: StoredVersion, download: Callable[[Path], Path]) -> FetchedVersion:
        with self._changing():
            arriving = Path(tempfile.mkdtemp(prefix="arriving-", dir=own_folder(self.folder)))
        try:
            try:
                model = download(arriving)
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise self._cannot_hold(error) from error
                raise
            size = sum(path.stat().st_size for _, path in model_files(model))
            now = _now()
            version = FetchedVersion(**asdict(wanted), digest=folder_digest(model), bytes=size, fetched=now, asked=now)
            # Reading files takes long, so it is done before the lock is taken.
            damaged = _folder_unlike(self.path(version), version.digest)
            with self._changing():
                self._publish(model, version, damaged)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        return version

    def _publish(self, model: Path, version: FetchedVersion, damaged: int | None) -> None:
        """Have the folder ``model`` take its place, also that of the folder with the inode ``damaged``."""
        path = self.path(version)
        if path.is_dir() and path.stat().st_ino == damaged:
            self._remove(path)
        if not path.is_dir():
            path.parent.mkdir(exist_ok=True)
            model.rename(path)
        self._use(path)
        self._write(version.uri, version)
        self._make_room()

    def _use(self, path: Path) -> None:
        """Keep ``path`` until this process ends, and longer than what others have used before."""
        mark(self.folder, path.name)
        os.utime(path)

    def _make_room(self) -> None:
        """Remove what is longest unused, until the limit is kept or living processes use all that there is."""
        limit = shutil.disk_usage(self.folder).total // _PARTS_OF_DISK if self.limit_bytes is None else self.limit_bytes
        entries = [(path, _COPY.fullmatch(path.name)) for path in (self.folder / _FILES).iterdir()]
        # What else lies there is nobody's, and left alone.
        sizes = {path: int(copy[1]) for path, copy in entries if copy}
        taken = sum(sizes.values())
        if taken <= limit:
            return
        used = marked(self.folder)
        for path in sorted((path for path in sizes if path.name not in used), key=lambda path: path.stat().st_mtime):
            if taken <= limit:
                break
            _LOGGER.info("removing %s, %d bytes, to make room for other models", path, sizes[path])
            self._remove(path)
            taken -= sizes[path]

    def _remove(self, path: Path) -> None:
        # Renamed first: what is removed halfway must not be taken for a model.
        removed = own_folder(self.folder) / f"removed-{uuid4().hex}"
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _write(self, uri: str, version: FetchedVersion) -> None:
        record = self._record(version.store, uri)
        record.parent.mkdir(exist_ok=True)
        partial = own_folder(self.folder) / record.name
        partial.write_text(json.dumps(asdict(version), indent=2), encoding="utf-8")
        partial.replace(record)

    def _record(self, store: str, uri: str) -> Path:
        return self.folder / _KNOWN / f"{_key(store, uri)}.json"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock that is held a moment; what fails meanwhile is the folder's fault."""
        with self._locked(_LOCK):
            try:
                yield
            except OSError as error:
                raise self._cannot_hold(error) from error

    @contextmanager
    def _locked(self, name: str, waiting: str = "") -> Iterator[None]:
        """Hold a lock; while another holds it, the log says what ``waiting`` says."""

        def tell() -> None:
            if waiting:
                _LOGGER.info(waiting)

        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = hold(self.folder / name, tell)
        except OSError as error:
            raise self._cannot_hold(error) from error
        try:
            yield
        finally:
            free(lock)

    def _cannot_hold(self, error: OSError) -> FetchedModelsError:
        kind = ReadOnlyModelsError if error.errno in _READ_ONLY else FetchedModelsError
        return kind(
            f"{self.folder} cannot hold copies of models: {error}; have {FOLDER_VARIABLE} name a folder on a local "
            f"disk that can be written and has room"
        )


def models_to_fetch_into() -> FetchedModels:
    """Return the copies of this machine.

    Where the environment names no folder, and none can be had below the user's home, they are this process's own.
    """
    models = FetchedModels()
    return models if _named_folder() else FetchedModels(_that_or_scratch(models.folder))


@cache
def _that_or_scratch(folder: Path) -> Path:
    """Return ``folder`` if copies can be kept there, else one that is gone when this process exits, with a warning."""
    try:
        FetchedModels(folder).try_to_write()
    except FetchedModelsError as error:
        scratch, owner = Path(tempfile.mkdtemp(prefix="mirrorspark-models-")), os.getpid()
        _LOGGER.warning("models that are fetched are kept in %s until this process ends: %s", scratch, error)

        def remove() -> None:
            if os.getpid() == owner:  # and not a child that was forked
                shutil.rmtree(scratch, ignore_errors=True)

        atexit.register(remove)
        return scratch
    return folder


def _folder_unlike(path: Path, digest: str) -> int | None:
    """Return the inode of the folder at ``path`` if its files have another digest; None where there is none."""
    try:
        inode = path.stat().st_ino
        return inode if folder_digest(path) != digest else None
    except FileNotFoundError:
        # Another process has removed it, or is replacing it.
        return None


def _key(store: str, uri: str) -> str:
    """Return what a URI has for a name in the folder; that of ``runs://ID/model/`` and ``runs:/ID/model`` is one."""
    plain = re.sub(r":/+", ":/", uri).rstrip("/")
    return hashlib.sha256(f"{store}\n{plain}".encode()).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
