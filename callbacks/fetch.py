"""Checkpoints from any store on a local disk, where TensorFlow can read them."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from callbacks.checkpoint_store import Location, bytes_in, download
from callbacks.commit import (
    MARKER,
    CheckpointDamagedError,
    CommittedCheckpoint,
    committed,
    is_whole,
    marker_text,
)
from data_pipelines.storage import StoragePath

# How often a process looks whether another one of its machine has finished the same download.
_LOOK_SECONDS = 0.2

_COPY = re.compile(r"[0-9a-f]{12}-step-\d+-[0-9a-f]{12}")
_OLD_SECONDS = 2 * 24 * 3600.0

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


def copies_folder() -> Path:
    """Return this user's own folder for copies, below the system's for temporary files; made when absent.

    Raises:
        PermissionError: Others may write there, who could put in what TensorFlow then reads.
    """
    folder = Path(tempfile.gettempdir()) / f"checkpoint-copies-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        problem = "is not a folder that this user alone may use; remove it, or name another one as local_cache"
        raise PermissionError(errno.EPERM, problem, str(folder))
    return folder


def fetch(
    checkpoint: CommittedCheckpoint,
    local_cache: str | Path | None = None,
    progress: Progress = lambda done, total: None,
) -> CommittedCheckpoint:
    """Return ``checkpoint`` as it lies on a local disk, copied there when it is on another store.

    TensorFlow reads local files only. Call it before a limit on the start of the ranks begins to run. Processes of one
    machine may share the cache: one of them downloads, the others wait for it. A copy that is there already is read
    for its checksums. A local checkpoint is returned as it is, unverified.

    Args:
        checkpoint: What to fetch.
        local_cache: Folder for copies, made when absent; by default `copies_folder`. Copies of other checkpoints of the
            same training are removed, and of other trainings those that nobody has taken for two days.
        progress: Takes the bytes that have come and those of the whole, whenever some have come, here or in the
            process that this one waits for, or been verified.

    Raises:
        CheckpointDamagedError: What came is not what was written; nothing stays.
        OSError: The store does not answer, the local disk is full, or others may write in the cache.
    """
    if isinstance(checkpoint.path, Path):
        return checkpoint
    cache = copies_folder() if local_cache is None else Path(local_cache)
    cache.mkdir(parents=True, exist_ok=True)
    # The marker's text tells versions of a step apart: a damaged one may have been replaced.
    origin = uuid.uuid5(uuid.NAMESPACE_URL, str(checkpoint.path.parent)).hex[:12]
    version = uuid.uuid5(uuid.NAMESPACE_URL, marker_text(checkpoint)).hex[:12]
    copy = cache / f"{origin}-{checkpoint.path.name}-{version}"
    local = replace(checkpoint, path=copy)
    total = sum(file.bytes for file in checkpoint.files)

    def is_there() -> bool:
        if not copy.is_dir():
            return False
        with contextlib.suppress(OSError):  # that it is in use is worth knowing, and no more
            os.utime(copy)
        return local.damage(beat=lambda: progress(0, total)) is None

    if is_there():
        return local
    arrivals = f".arriving-{origin}-"
    with _alone(cache / f".lock-{origin}", lambda: _total_bytes(cache, arrivals), lambda done: progress(done, total)):
        if is_there():
            return local
        # Whoever began these is gone, since it no longer holds the lock.
        _remove(cache, arrivals)
        arriving = Path(tempfile.mkdtemp(prefix=arrivals, dir=cache))
        try:
            _download(checkpoint, arriving, lambda done: progress(done, total))
            shutil.rmtree(copy, ignore_errors=True)
            arriving.replace(copy)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        _remove(cache, f"{origin}-", but=copy)
    _remove_old(cache, origin)
    return local


def _download(checkpoint: CommittedCheckpoint, folder: Path, told: Callable[[int], None]) -> None:
    done = 0

    def arrived(count: int) -> None:
        nonlocal done
        done += count
        told(done)

    for file in checkpoint.files:
        try:
            digest = download(StoragePath.of(checkpoint.path / file.name), folder / file.name, arrived)
        except FileNotFoundError as error:
            raise CheckpointDamagedError(checkpoint.path, f"{file.name} is missing") from error
        if digest != file.sha256:
            raise CheckpointDamagedError(checkpoint.path, f"{file.name} has another checksum than when it was written")
    (folder / MARKER).write_bytes(marker_text(checkpoint).encode())


@contextlib.contextmanager
def _alone(lock: Path, measure: Callable[[], int], told: Callable[[int], None]) -> Iterator[None]:
    """Let one process of this machine run the block at a time; the system frees the lock of one that dies.

    Args:
        lock: A file, made when absent, which stays.
        measure: Returns how far the one that runs it has come.
        told: Takes that whenever it has grown.
    """
    with lock.open("a") as file:
        seen = 0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if (now := measure()) > seen:
                    seen = now
                    told(now)
                time.sleep(_LOOK_SECONDS)
        yield


def _total_bytes(cache: Path, prefix: str) -> int:
    return sum(bytes_in(folder) for folder in cache.glob(f"{prefix}*"))


def _remove(cache: Path, prefix: str, but: Path | None = None) -> None:
    for folder in cache.glob(f"{prefix}*"):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_old(cache: Path, origin: str) -> None:
    """Remove copies of other trainings that nobody has taken for days: whoever made them has long begun."""
    for folder in cache.iterdir():
        if _COPY.fullmatch(folder.name) and not folder.name.startswith(f"{origin}-"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it, too
                if time.time() - folder.stat().st_mtime > _OLD_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def fetch_latest(directory: Location, local_cache: str | Path | None = None) -> CommittedCheckpoint | None:
    """Return the newest whole checkpoint on a local disk, None when there is none; a damaged one is passed over.

    Every file is read once: a local one to verify it, a remote one while it is copied.
    """
    for checkpoint in committed(directory):
        if isinstance(checkpoint.path, Path):
            if is_whole(checkpoint):
                return checkpoint
            continue
        try:
            return fetch(checkpoint, local_cache)
        except CheckpointDamagedError as error:
            logger.warning("Passed over: %s", error)
    return None
