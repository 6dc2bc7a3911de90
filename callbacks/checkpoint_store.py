"""How files reach a store of checkpoints so that they count all at once: local folders, and stores without rename."""

import contextlib
import hashlib
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.storage import StorageError, StoragePath

Location = str | Path | StoragePath

# What a store raises that is gone, full, out of reach, or that this machine cannot open: a StorageError.
STORE_ERRORS = (OSError, StorageError)

# Beginnings of names that are never a checkpoint's.
STAGING = ".staging-"
DISCARDED = ".discarded-"
PROBE = ".staging-probe"

_BLOCK_BYTES = 4 << 20
# What the disk is given at a time to make durable: a slow one takes minutes for a large file, in one silent call.
_FLUSH_BYTES = 64 << 20

Marker = Callable[[str], bytes]
Parts = Callable[[str], set[str] | None]


class CheckpointStoreError(OSError):
    """A store of checkpoints is gone, full, out of reach or not writable.

    Attributes:
        store: Its location.
        reason: What it said.
        last_good: Newest checkpoint that is known to lie there.
    """

    def __init__(self, store: str, reason: str, last_good: str | None = None, number: int | None = None) -> None:
        """Keep which store, what it said, the last good checkpoint, and the error number of the operating system."""
        kept = f"; the last good checkpoint is {last_good}" if last_good else ""
        message = (
            f"cannot write a checkpoint to {store} ({reason}); make it reachable, free space there or choose a "
            f"writable directory, then start again{kept}"
        )
        super().__init__(message)
        self.errno = number
        self.store = store
        self.reason = reason
        self.last_good = last_good

    def __str__(self) -> str:
        """Return the message without the number in front of it, which OSError would put there."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[type, tuple[str, str, str | None, int | None]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.store, self.reason, self.last_good, self.errno)


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Delivery:
    """Files that become one folder of the store.

    Attributes:
        name: The folder's name.
        source: Local folder that holds the files; it is left as it is.
        files: Their names relative to ``source``.
        marker_name: The file that is written last.
        marker: Returns its content, given the folder below ``name`` in which this store keeps the files ("" for none).
        last_check: Called right before the moment from which the folder counts; what it raises stops the delivery.
        beat: Called whenever some bytes have moved.
    """

    name: str
    source: Path
    files: Sequence[str]
    marker_name: str
    marker: Marker
    last_check: Callable[[], None] = _nothing
    beat: Callable[[], None] = _nothing


@dataclass(frozen=True)
class LocalStore:
    """A folder of a file system. A delivery is prepared beside its name and renamed: one step, whole at any crash."""

    directory: StoragePath

    @property
    def _folder(self) -> Path:
        return self.directory.local

    def make(self) -> None:
        """Make the folder, and show that it can be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        probe = self._folder / f"{PROBE}-{uuid.uuid4().hex}"
        probe.mkdir()
        probe.rmdir()

    def folders(self) -> list[str]:
        """Return the names of the folders here, none where the store does not exist."""
        return [path.name for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []

    def deliver(self, delivery: Delivery) -> None:
        """Make ``delivery`` count, in place of a folder of that name; after an error nothing has changed.

        Raises:
            OSError: The store is gone (it is not made anew: an empty folder may be a mount point without its disk),
                full or not writable.
        """
        inbox = self._folder / f"{STAGING}{uuid.uuid4().hex}"
        inbox.mkdir()
        within = StoragePath.of(inbox).kept_within()
        try:
            for name in delivery.files:
                target = within / name
                target.parent.make_folder()
                _link_or_copy(delivery.source / name, target, delivery.beat)
                flush(target.local, delivery.beat)
            marker = inbox / delivery.marker_name
            marker.write_bytes(delivery.marker(""))
            # Data reach the disk before the marker that vouches for them, and all of it before the name that counts.
            for path in [marker, *{(inbox / name).parent for name in delivery.files}, inbox]:
                flush(path)
            delivery.last_check()
            self.remove(delivery.name)
            inbox.replace(self._folder / delivery.name)
            flush(self._folder)
        finally:
            shutil.rmtree(inbox, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a folder, if there is one; at no moment is there a half-removed folder under its name."""
        aside = self._folder / f"{DISCARDED}{name}-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).replace(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def clean(self, parts: Parts) -> list[str]:
        """Remove what crashes left, and return the names; ``parts`` is not asked, since here the names tell."""
        left_over = [name for name in self.folders() if name.startswith((STAGING, DISCARDED))]
        for name in left_over:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return left_over


@dataclass(frozen=True)
class ObjectStore:
    """A store without rename. Files are written under a name of their own, then the marker that names them.

    The marker is one object, there or not there: writing it is the commit, and a folder without it does not exist.
    Every delivery has a folder of its own below the checkpoint's, so that two writers of one step cannot mix files.
    """

    directory: StoragePath

    def make(self) -> None:
        """Show that the store can be written; there is nothing to make."""
        probe = self.directory / f"{PROBE}-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.delete()

    def folders(self) -> list[str]:
        """Return the names of the folders here."""
        return [folder.name for folder in self.directory.folders()]

    def deliver(self, delivery: Delivery) -> None:
        """Make ``delivery`` count, in place of a folder of that name; after an error nothing has changed."""
        folder = self.directory / delivery.name
        token = uuid.uuid4().hex[:12]
        former = [inner.name for inner in folder.folders()]
        try:
            for name in delivery.files:
                _copy(delivery.source / name, folder / token / name, delivery.beat)
            delivery.last_check()
            (folder / delivery.marker_name).write_bytes(delivery.marker(token))
        except BaseException:
            # What cannot be removed now is left to `clean`; the first error says more.
            with contextlib.suppress(*STORE_ERRORS):
                if not self._names(folder / delivery.marker_name, token):
                    (folder / token).delete()
            raise
        delivery.beat()
        for name in former:
            with contextlib.suppress(OSError):
                (folder / name).delete()

    def _names(self, marker: StoragePath, token: str) -> bool:
        # The store may have taken the marker and failed to say so.
        return marker.is_file() and token.encode() in marker.read_bytes()

    def remove(self, name: str) -> None:
        """Remove a folder, if there is one: from its first deletion on it does not count."""
        folder = self.directory / name
        for file in folder.files(recursive=False):
            file.path.delete()
        folder.delete()

    def clean(self, parts: Parts) -> list[str]:
        """Remove what crashes left, and return the names.

        Args:
            parts: Returns for a folder's name the folders below it that its marker names: none without a marker, None
                for a folder to leave alone.
        """
        for file in self.directory.files(recursive=False):
            if file.path.name.startswith(PROBE):
                file.path.delete()
        left_over = []
        for name in self.folders():
            kept = parts(name)
            for inner in (self.directory / name).folders() if kept is not None else ():
                if inner.name not in (kept or ()):
                    inner.delete()
                    left_over.append(f"{name}/{inner.name}")
        return left_over


def open_store(location: Location) -> LocalStore | ObjectStore:
    """Return the store at ``location``."""
    directory = StoragePath.of(location)
    return LocalStore(directory) if directory.is_local else ObjectStore(directory)


def store_error(directory: Location, error: Exception, last_good: str | None = None) -> CheckpointStoreError:
    """Return ``error`` as one that names the store, says what to do, and names the last good checkpoint."""
    if isinstance(error, CheckpointStoreError):
        return CheckpointStoreError(error.store, error.reason, last_good or error.last_good, error.errno)
    reason = getattr(error, "strerror", None) or str(error)
    return CheckpointStoreError(str(directory), reason, last_good, getattr(error, "errno", None))


def native(location: Location) -> Path | StoragePath:
    """Return a path that everybody knows where the location is local, and a path of its store where it is not."""
    path = StoragePath.of(location)
    return path.local if path.is_local else path


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a local folder that others may be writing into."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # Files are renamed while they are written.
            with contextlib.suppress(FileNotFoundError):
                size += (Path(root) / name).stat().st_size
    return size


def flush(path: Path, beat: Callable[[], None] = _nothing) -> None:
    """Wait until the disk has a file, or which names a folder holds; ``beat`` is called after each part of a file."""
    if path.is_file():
        _flush_parts(path, beat)
    StoragePath.of(path).flush_to_disk()
    beat()


def _flush_parts(path: Path, beat: Callable[[], None]) -> None:
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("r+b"))
            content = opened.enter_context(mmap.mmap(file.fileno(), 0))
        except (OSError, ValueError):
            # Parts only show that the disk gets on. An empty file has none, and some file systems map nothing.
            return
        for start in range(0, len(content), _FLUSH_BYTES):
            # Its errors count: the system tells of a failed write once.
            content.flush(start, min(_FLUSH_BYTES, len(content) - start))
            beat()


def sha256(path: Path | StoragePath, beat: Callable[[], None] = _nothing) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") if isinstance(path, Path) else path.open_stream() as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            beat()
    return digest.hexdigest()


def download(source: StoragePath, target: Path, arrived: Callable[[int], None] = lambda _: None) -> str:
    """Copy a stored file to the local ``target``; return the SHA-256 of what came, in hex.

    Args:
        source: What to copy.
        target: Its copy.
        arrived: Takes the number of bytes that have come since its last call.
    """
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open_stream() as stored, target.open("wb") as file:
        while block := stored.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
            arrived(len(block))
    return digest.hexdigest()


def _link_or_copy(source: Path, target: StoragePath, beat: Callable[[], None]) -> None:
    # A second name costs nothing and leaves the source to a second try; another disk, and some file systems, need a
    # copy. It goes from front to back, which is all that mounted object stores can take (horovod#2109).
    try:
        os.link(source, target.local)
    except OSError:
        _copy(source, target, beat)


def _copy(source: Path, target: StoragePath, beat: Callable[[], None]) -> None:
    with source.open("rb") as content, target.open_write() as file:
        while block := content.read(_BLOCK_BYTES):
            file.write(block)
            beat()
