"""Download of checkpoints from any store to a local disk, where TensorFlow can read them."""

import contextlib
import errno
import logging
import os
import stat
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mirrorspark.callbacks.checkpoints.checkpoint_store import Location, download
from mirrorspark.callbacks.checkpoints.checksums import kind_of
from mirrorspark.callbacks.checkpoints.commit import (
    MARKER,
    CheckpointDamagedError,
    CommittedCheckpoint,
    committed,
    is_whole,
    marker_text,
)
from mirrorspark.storage import StoragePath, host_cache

# The copies that this process uses: one per cache folder and training.
_IN_USE: dict[tuple[Path, str], host_cache.Lease] = {}

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


def copies_folder() -> Path:
    """Return this user's own folder for copies, below the system's for temporary files; created if absent.

    Raises:
        PermissionError: Other users may write there, and could plant files for TensorFlow to read.
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
    """Return ``checkpoint`` on a local disk, downloaded if it is on another store.

    TensorFlow reads local files only. Call this before a time limit on the start of the ranks begins. Processes of one
    machine may share the cache: one of them downloads, the others wait for it. The checksums of an existing copy are
    verified. A local checkpoint is returned as it is, unverified.

    Args:
        checkpoint: The checkpoint to fetch.
        local_cache: Folder for copies, created if absent; by default `copies_folder`. This process uses the copy until
            it ends, or fetches another checkpoint of the same training. Copies that no process uses are removed when
            another one arrives.
        progress: Called with the bytes so far and the total whenever bytes have been downloaded, here or in the process
            that this one waits for, or verified.

    Raises:
        CheckpointDamagedError: The download differs from the original; nothing is kept.
        OSError: The store does not answer, the local disk is full, or other users may write to the cache.
    """
    if isinstance(checkpoint.path, Path):
        return checkpoint
    # The marker's text distinguishes versions of a step: a damaged checkpoint may have been replaced.
    origin = uuid.uuid5(uuid.NAMESPACE_URL, str(checkpoint.path.parent)).hex[:12]
    version = uuid.uuid5(uuid.NAMESPACE_URL, marker_text(checkpoint)).hex[:12]
    key = f"{origin}-{checkpoint.path.name}-{version}"
    # Unused copies get no room: a restart seldom uses the same checkpoint as the one before.
    copies = host_cache.HostCache(copies_folder() if local_cache is None else Path(local_cache), max_bytes=0)
    local = replace(checkpoint, path=copies.path(key))
    total = sum(file.bytes for file in checkpoint.files)

    def whole() -> host_cache.Lease | None:
        lease = copies.lease(key)
        return lease if lease and local.damage(beat=lambda: progress(0, total)) is None else None

    def arrived(done: int) -> None:
        progress(done, total)

    lease = whole()
    # The previous checkpoint of the same training is no longer needed.
    _IN_USE.pop((copies.folder, origin), None)
    if lease is None:
        with copies.filling(key, str(checkpoint.path), arrived) as arriving:
            lease = whole()
            if lease is None:
                _download(checkpoint, arriving, arrived)
                lease = copies.publish(key, arriving, replace=True)
    _IN_USE[copies.folder, origin] = lease
    return local


def _download(checkpoint: CommittedCheckpoint, folder: Path, report: Callable[[int], None]) -> None:
    done = 0

    def arrived(count: int) -> None:
        nonlocal done
        done += count
        report(done)

    for file in checkpoint.files:
        try:
            stored, kind = StoragePath.of(checkpoint.path / file.name), kind_of(file.checksum)
            checksum = download(stored, folder / file.name, kind, arrived)
        except FileNotFoundError as error:
            raise CheckpointDamagedError(checkpoint.path, f"{file.name} is missing") from error
        if checksum != file.checksum:
            raise CheckpointDamagedError(checkpoint.path, f"{file.name} has another checksum than when it was written")
    (folder / MARKER).write_bytes(marker_text(checkpoint).encode())


def fetch_latest(directory: Location, local_cache: str | Path | None = None) -> CommittedCheckpoint | None:
    """Return the newest intact checkpoint on a local disk, or None; damaged ones are skipped.

    Every file is read once: a local one to verify it, a remote one while it is downloaded.
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
