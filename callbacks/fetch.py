"""Checkpoints from any store on a local disk, where TensorFlow can read them."""

import logging
import shutil
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

from callbacks.checkpoint_store import Location, download
from callbacks.commit import (
    MARKER,
    CheckpointDamagedError,
    CommittedCheckpoint,
    committed,
    is_whole,
    marker_text,
)

logger = logging.getLogger(__name__)


def fetch(checkpoint: CommittedCheckpoint, local_cache: str | Path) -> CommittedCheckpoint:
    """Return ``checkpoint`` as it lies on a local disk, copied there when it is on another store.

    TensorFlow reads local files only. Call it before a limit on the start of the ranks begins to run. Processes of one
    machine may share the cache. A local checkpoint is returned as it is, unverified.

    Args:
        checkpoint: What to fetch.
        local_cache: Folder for copies, made when absent. Copies of other checkpoints of the same store are removed.

    Raises:
        CheckpointDamagedError: What came is not what was written; nothing stays.
        OSError: The store does not answer, or the local disk is full.
    """
    if isinstance(checkpoint.path, Path):
        return checkpoint
    # The marker's text tells versions of a step apart: a damaged one may have been replaced.
    origin = uuid.uuid5(uuid.NAMESPACE_URL, str(checkpoint.path.parent)).hex[:12]
    version = uuid.uuid5(uuid.NAMESPACE_URL, marker_text(checkpoint)).hex[:12]
    cache = Path(local_cache)
    target = cache / f"{origin}-{checkpoint.path.name}-{version}"
    local = replace(checkpoint, path=target)
    if target.is_dir() and local.damage(checksums=False) is None:
        return local
    cache.mkdir(parents=True, exist_ok=True)
    arriving = Path(tempfile.mkdtemp(prefix=".arriving-", dir=cache))
    try:
        for file in checkpoint.files:
            try:
                digest = download(checkpoint.path / file.name, arriving / file.name)
            except FileNotFoundError as error:
                raise CheckpointDamagedError(checkpoint.path, f"{file.name} is missing") from error
            if digest != file.sha256:
                raise CheckpointDamagedError(
                    checkpoint.path, f"{file.name} has another checksum than when it was written"
                )
        (arriving / MARKER).write_bytes(marker_text(checkpoint).encode())
        if target.is_dir() and local.damage(checksums=False) is not None:
            shutil.rmtree(target, ignore_errors=True)
        try:
            arriving.replace(target)
        except OSError:
            # Another process of this machine was faster.
            if local.damage(checksums=False) is not None:
                raise
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    for other in cache.glob(f"{origin}-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return local


def fetch_latest(directory: Location, local_cache: str | Path) -> CommittedCheckpoint | None:
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
