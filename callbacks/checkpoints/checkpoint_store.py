"""Stores of checkpoints, in which files become visible all at once: local folders, and object stores without rename."""

import contextlib
import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mirrorspark.callbacks.checkpoints.checksums import CRC32, KINDS
from mirrorspark.clear_error import ClearError, one_visible_line
from mirrorspark.storage import StorageError, StoragePath, abilities

Location = str | Path | StoragePath

# Errors of a store that is missing, full or out of reach, or (StorageError) that this machine cannot open.
STORE_ERRORS = (OSError, StorageError)

# Prefixes that no checkpoint's name has.
STAGING = ".staging-"
DISCARDED = ".discarded-"
PROBE = ".staging-probe"

_BLOCK_BYTES = 4 << 20
# Bytes per flush: a slow disk may take minutes to flush a large file in one call without any progress.
_FLUSH_BYTES = 64 << 20
# The flags of sync_file_range(2) that write a part of a file and wait for it.
_WAIT_WRITE_WAIT = 7

Marker = Callable[[str], bytes]
Parts = Callable[[str], set[str] | None]


class CheckpointStoreError(ClearError, OSError):
    """A store of checkpoints is missing, full, out of reach or not writable.

    Attributes:
        store: Location of the store.
        reason: The store's own message.
        last_good: Newest checkpoint that is known to be in the store.
    """

    def __init__(self, store: str, reason: str, last_good: str | None = None, number: int | None = None) -> None:
        """Build the message from the store, its reason and the last good checkpoint; ``number`` becomes ``errno``."""
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
        """Return the message without the error number that OSError puts in front."""
        return one_visible_line(str(self.args[0]))

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
        source: Local folder with the files, which is not changed.
        files: Names of the files, relative to ``source``.
        marker_name: Name of the file that is written last.
        marker: Returns its content, given the subfolder of ``name`` in which this store keeps the files ("" for none).
        last_check: Called right before the folder becomes visible; an exception stops the delivery.
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
    """A folder of a file system. A delivery is prepared under another name and renamed in one step, safe in a crash."""

    directory: StoragePath

    @property
    def _folder(self) -> Path:
        return self.directory.local

    def make(self) -> None:
        """Create the folder, and check that it can be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        probe = self._folder / f"{PROBE}-{uuid.uuid4().hex}"
        probe.mkdir()
        with contextlib.suppress(FileNotFoundError):  # Another attempt's `clean` may be faster.
            probe.rmdir()

    def folders(self) -> list[str]:
        """Return the names of the folders in the store; none if it does not exist."""
        return [path.name for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []

    def deliver(self, delivery: Delivery) -> None:
        """Publish ``delivery``, replacing a folder of that name; after an error nothing has changed.

        Raises:
            OSError: The store is full, not writable or gone. It is not created again, because an empty folder may be a
                mount point without its disk.
        """
        inbox = self._folder / f"{STAGING}{delivery.name}-{uuid.uuid4().hex}"
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
            # Data is flushed before the marker that lists it, and everything before the rename that publishes it.
            for path in [marker, *{(inbox / name).parent for name in delivery.files}, inbox]:
                flush(path)
            delivery.last_check()
            self.remove(delivery.name)
            inbox.replace(self._folder / delivery.name)
            flush(self._folder)
        finally:
            shutil.rmtree(inbox, ignore_errors=True)

    def remove(self, name: str) -> None:
        """Remove a folder if it exists; it is renamed first, so its name never shows a partly removed folder."""
        aside = self._folder / f"{DISCARDED}{name}-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).replace(aside)
            flush(self._folder)  # Else a power cut could leave a part of the files under the former name.
            shutil.rmtree(aside, ignore_errors=True)

    def clean(self, is_former: Callable[[str], bool], parts: Parts) -> list[str]:
        """Remove leftovers of crashes and return their names.

        Args:
            is_former: Returns for the name of a delivery's folder if whoever delivered it does so no more.
            parts: Not needed here: a staging folder's name identifies it.
        """

        def is_left_over(name: str) -> bool:
            if name.startswith((DISCARDED, PROBE)):
                return True  # Nobody misses them, however young they are.
            return name.startswith(STAGING) and is_former(name.removeprefix(STAGING).rpartition("-")[0])

        left_over = [name for name in self.folders() if is_left_over(name)]
        for name in left_over:
            shutil.rmtree(self._folder / name, ignore_errors=True)
        return left_over


@dataclass(frozen=True)
class ObjectStore:
    """A store without rename. Files are written to a unique subfolder, then the marker that lists them.

    The marker is a single object: writing it is the commit, and a folder without it does not exist for readers. Every
    delivery has its own subfolder of the checkpoint's folder, so two writers of one step cannot mix files.
    """

    directory: StoragePath

    def make(self) -> None:
        """Check that the store can be written; object stores need no folder."""
        probe = self.directory / f"{PROBE}-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.delete()

    def folders(self) -> list[str]:
        """Return the names of the folders in the store."""
        return [folder.name for folder in self.directory.folders()]

    def deliver(self, delivery: Delivery) -> None:
        """Publish ``delivery``, replacing a folder of that name; after an error nothing has changed."""
        folder = self.directory / delivery.name
        token = uuid.uuid4().hex[:12]
        former = [inner.name for inner in folder.folders()]
        try:
            for name in delivery.files:
                _copy(delivery.source / name, folder / token / name, delivery.beat)
            # It may wait for checksums: nothing slow may come between the last check and the commit.
            marker = delivery.marker(token)
            delivery.last_check()
            (folder / delivery.marker_name).write_bytes(marker)
        except BaseException:
            # `clean` removes later what cannot be removed now; the first error says more.
            with contextlib.suppress(*STORE_ERRORS):
                if not self._names(folder / delivery.marker_name, token):
                    (folder / token).delete()
            raise
        delivery.beat()
        for name in former:
            with contextlib.suppress(OSError):
                (folder / name).delete()

    def _names(self, marker: StoragePath, token: str) -> bool:
        # The store may have stored the marker although it reported a failure.
        return marker.is_file() and token.encode() in marker.read_bytes()

    def remove(self, name: str) -> None:
        """Remove a folder if it exists; from the first deletion on it does not exist for readers."""
        folder = self.directory / name
        for file in folder.files(recursive=False):
            file.path.delete()
        folder.delete()

    def clean(self, is_former: Callable[[str], bool], parts: Parts) -> list[str]:
        """Remove leftovers of crashes, and return their names.

        Args:
            is_former: Returns for the name of a delivery's folder if whoever delivered it does so no more.
            parts: Returns for a folder's name the subfolders that its marker lists: an empty set without a marker, None
                for a folder to leave alone.
        """
        for file in self.directory.files(recursive=False):
            if file.path.name.startswith(PROBE):
                file.path.delete()
        left_over = []
        for name in self.folders():
            kept = parts(name) if is_former(name) else None
            for inner in (self.directory / name).folders() if kept is not None else ():
                if inner.name not in (kept or ()):
                    inner.delete()
                    left_over.append(f"{name}/{inner.name}")
        return left_over


def open_store(location: Location) -> LocalStore | ObjectStore:
    """Return the store at ``location``."""
    directory = StoragePath.of(location)
    is_folder = directory.is_local and abilities.can_rename(directory.local)
    return LocalStore(directory) if is_folder else ObjectStore(directory)


def store_error(directory: Location, error: Exception, last_good: str | None = None) -> CheckpointStoreError:
    """Return ``error`` as one that names the store, the remedy and the last good checkpoint."""
    if isinstance(error, CheckpointStoreError):
        return CheckpointStoreError(error.store, error.reason, last_good or error.last_good, error.errno)
    reason = getattr(error, "strerror", None) or str(error)
    return CheckpointStoreError(str(directory), reason, last_good, getattr(error, "errno", None))


def native(location: Location) -> Path | StoragePath:
    """Return a ``pathlib.Path`` for a local location, and a ``StoragePath`` for any other."""
    path = StoragePath.of(location)
    return path.local if path.is_local else path


def flush(path: Path, beat: Callable[[], None] = _nothing) -> None:
    """Wait until the disk has a file, or the names in a folder; ``beat`` is called after each part of a file."""
    if path.is_file():
        _flush_parts(path, beat)
    StoragePath.of(path).flush_to_disk()
    beat()


def _flush_parts(path: Path, beat: Callable[[], None]) -> None:
    # Not by mmap's flush, which holds Python's global lock: training would wait for a slow disk.
    flush_range = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if flush_range is None:
        return
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _FLUSH_BYTES):
            part = (ctypes.c_int64(start), ctypes.c_int64(min(_FLUSH_BYTES, size - start)))
            if flush_range(file.fileno(), *part, ctypes.c_uint(_WAIT_WRITE_WAIT)):
                number = ctypes.get_errno()
                if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ESPIPE):
                    return  # Flushing in parts only shows progress, and some systems cannot, or forbid it.
                # Other errors are not suppressed: the system may report a failed write only once.
                raise OSError(number, os.strerror(number), str(path))
            beat()


def download(
    source: StoragePath, target: Path, kind: str = CRC32, arrived: Callable[[int], None] = lambda _: None
) -> str:
    """Copy a stored file to the local ``target``; return the checksum of the copied bytes.

    Args:
        source: The stored file.
        target: The local copy.
        kind: The kind of checksum.
        arrived: Called with the number of bytes copied since its last call.
    """
    found = KINDS[kind]()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open_stream() as stored, target.open("wb") as file:
        while block := stored.read(_BLOCK_BYTES):
            found.update(block)
            file.write(block)
            arrived(len(block))
    return f"{kind}:{found.hexdigest()}"


def _link_or_copy(source: Path, target: StoragePath, beat: Callable[[], None]) -> None:
    # A hard link costs nothing and keeps the source for a retry. Another disk, and some file systems, need a copy,
    # written sequentially, because mounted object stores support nothing else (horovod#2109).
    try:
        os.link(source, target.local)
    except OSError:
        _copy(source, target, beat)


def _copy(source: Path, target: StoragePath, beat: Callable[[], None]) -> None:
    with source.open("rb") as content, target.open_write() as file:
        while block := content.read(_BLOCK_BYTES):
            file.write(block)
            beat()
