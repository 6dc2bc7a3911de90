"""Committed checkpoints on any store: publish, find, read and verify. This module does not import TensorFlow.

A checkpoint is a folder ``<directory>/step-00000420-1f0a9c3e``, named after its step and the fence of the attempt that
wrote it, or ``step-00000420`` without a fence (:mod:`callbacks.checkpoints.fencing`). It has the tensors (``ckpt.*``),
the state of other callbacks (``state.json``) and the marker ``COMMITTED.json``, which lists every file with its
checksum. On a file system it is prepared as ``<directory>/.staging-<its name>-*`` and renamed into place. On an object
store its files are in a subfolder, and the marker is written last (:mod:`callbacks.checkpoints.checkpoint_store`).
Either way it exists completely or not at all.
"""

import contextlib
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mirrorspark.callbacks.checkpoints.checkpoint_store import (
    STORE_ERRORS,
    Delivery,
    Location,
    native,
    open_store,
    store_error,
)
from mirrorspark.callbacks.checkpoints.checksums import KINDS, SHA256, FileChecksums, checksum_of, kind_of
from mirrorspark.callbacks.checkpoints.fencing import Permit, read_fence
from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoragePath, leads_out

MARKER = "COMMITTED.json"
TENSORS = "ckpt"
STATE = "state.json"
FORMAT_VERSION = 2
# Its checksums were SHA-256.
_FIRST_FORMAT_VERSION = 1

Mode = Literal["min", "max"]

_STEP_FOLDER = re.compile(r"step-\d{8,}(?:-([0-9a-f]{8}))?")
_FENCE_DIGITS = 8

logger = logging.getLogger(__name__)


class CheckpointDamagedError(ClearError, ValueError):
    """A checkpoint folder's marker is missing or unreadable, or a file differs from the marker."""

    def __init__(self, path: Path | StoragePath, damage: str) -> None:
        """Build the message from the folder and its damage."""
        super().__init__(f"checkpoint {path} is damaged: {damage}; resume from an earlier one or remove the folder")
        self.path = path
        self.damage = damage

    def __reduce__(self) -> tuple[type, tuple[Path | StoragePath, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.path, self.damage)


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint: its name relative to the folder, size in bytes and checksum (``crc32:0fa1b2c3``)."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A checkpoint whose marker has been read.

    Attributes:
        path: The checkpoint's folder: a ``Path`` if it is local, a ``StoragePath`` on another store.
        step: Optimizer updates done.
        epoch: Epochs completed; also the 0-based index of the epoch to resume with.
        step_in_epoch: Steps done in that epoch, which are the batches to skip; 0 at an epoch's end.
        metrics: Values at that step; validation metrics exist only at an epoch's end.
        files: All files except the marker.
        format_version: Version of the marker's format.
        attempt: Number of the attempt that wrote it, if it had one.
    """

    path: Path | StoragePath
    step: int
    epoch: int
    step_in_epoch: int
    metrics: Mapping[str, float]
    files: tuple[CheckpointFile, ...]
    format_version: int = FORMAT_VERSION
    attempt: int | None = None

    @property
    def prefix(self) -> str:
        """The path that ``tf.train.Checkpoint.read`` takes.

        Raises:
            StorageError: The checkpoint is not on a local disk: `fetch` it first.
        """
        index = self._name_of(f"{TENSORS}.index") or f"{TENSORS}.index"
        return str(StoragePath.of(self.path).local / index.removesuffix(".index"))

    def damage(self, *, beat: Callable[[], None] = lambda: None) -> str | None:
        """Return the first difference between the files, which are all read, and the marker; None if there is none.

        Args:
            beat: Called whenever some bytes have been read.

        Raises:
            OSError: The store does not answer, or refuses; the state of the checkpoint is unknown.
        """
        for file in self.files:
            path = self.path / file.name
            try:
                size = path.stat().st_size if isinstance(path, Path) else path.size()
                if size != file.bytes:
                    return f"{file.name} has {size} bytes instead of {file.bytes}"
                if checksum_of(path, kind_of(file.checksum), beat) != file.checksum:
                    return f"{file.name} has another checksum than when it was written"
            except (FileNotFoundError, NotADirectoryError):
                return f"{file.name} is missing"
        return None

    def states(self) -> dict[str, Any]:
        """Return the saved states of other callbacks by name; empty when none were saved."""
        content = self.content(STATE)
        return {} if content is None else dict(json.loads(content))

    def content(self, name: str) -> bytes | None:
        """Return the content of the file ``name``, or None if the checkpoint does not have it."""
        stored = self._name_of(name)
        return None if stored is None else (self.path / stored).read_bytes()

    def _name_of(self, name: str) -> str | None:
        """Return the name of a file with the subfolder in which the store keeps it."""
        return next((file.name for file in self.files if PurePosixPath(file.name).name == name), None)


def folder(directory: Location, step: int, fence: str | None = None) -> Path | StoragePath:
    """Return the folder for a checkpoint of ``step`` under the fence with this id, whether or not it exists."""
    return native(StoragePath.of(directory) / _folder_name(step, fence))


def checkpoint_of_step(directory: Location, step: int) -> CommittedCheckpoint:
    """Return the checkpoint of ``step``, of the last attempt if several attempts wrote one.

    Raises:
        FileNotFoundError: There is none.
        OSError: The store does not answer, or refuses.
    """
    for checkpoint in committed(directory):
        if checkpoint.step == step:
            return checkpoint
    raise FileNotFoundError(
        f"there is no checkpoint of step {step} in {directory}; see the folder for those that exist"
    )


def publish(
    staging: Path,
    directory: Location,
    *,
    step: int,
    epoch: int,
    step_in_epoch: int = 0,
    metrics: Mapping[str, float] | None = None,
    permit: Permit | None = None,
    checksums: FileChecksums | None = None,
    beat: Callable[[], None] = lambda: None,
) -> CommittedCheckpoint:
    """Commit the files in ``staging`` as the checkpoint of ``step`` and return it.

    If this attempt has committed an intact checkpoint of that step before, it stays; a damaged one is replaced. One of
    another attempt is not touched.

    Args:
        staging: Local folder with the checkpoint's files; removed on success, unchanged after an error.
        directory: Folder of this training's checkpoints.
        step: Optimizer updates done.
        epoch: Epochs completed.
        step_in_epoch: Steps done of the next epoch.
        metrics: Values to store with the checkpoint.
        permit: The right to publish, checked right before and after the commit.
        checksums: Checksums of the files in ``staging``, which another try after an error reuses.
        beat: Called whenever some bytes have moved.

    Raises:
        CheckpointStoreError: The store cannot be written; nothing is committed.
        StaleAttemptError: A later attempt holds the fence; nothing that counts is committed.
    """
    fence = permit.fence if permit else None
    target = folder(directory, step, fence)
    checkpoint = CommittedCheckpoint(
        path=target,
        step=step,
        epoch=epoch,
        step_in_epoch=step_in_epoch,
        metrics=dict(metrics or {}),
        files=(),
        attempt=permit.attempt if permit else None,
    )
    with contextlib.ExitStack() as done:
        if checksums is None:
            checksums = done.enter_context(contextlib.closing(FileChecksums(staging, beat)))
        try:
            if (existing := _read_whole(target, beat)) is None:
                checkpoint = _deliver(checkpoint, staging, directory, checksums, permit, beat)
            else:
                checkpoint = existing
            if permit:
                # If a later attempt has taken over since the last check, the checkpoint may not count, and is left
                # alone. So may one that is there although its commit reported an error.
                permit.check()
        except STORE_ERRORS as error:
            raise store_error(directory, error) from error
    shutil.rmtree(staging, ignore_errors=True)
    return checkpoint


def _deliver(
    checkpoint: CommittedCheckpoint,
    staging: Path,
    directory: Location,
    checksums: FileChecksums,
    permit: Permit | None,
    beat: Callable[[], None],
) -> CommittedCheckpoint:
    """Deliver the files in ``staging`` as ``checkpoint``, and return it with the marker's content."""
    names = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
    names = [name for name in names if name != MARKER]
    # The store needs them last, for the marker: until then they are computed while it writes.
    checksums.begin(names)

    def marker(inner: str) -> bytes:
        nonlocal checkpoint
        files = tuple(
            CheckpointFile(f"{inner}/{name}" if inner else name, (staging / name).stat().st_size, checksums.of(name))
            for name in names
        )
        checkpoint = replace(checkpoint, files=files)
        return marker_text(checkpoint).encode()

    open_store(directory).deliver(
        Delivery(
            name=checkpoint.path.name,
            source=staging,
            files=names,
            marker_name=MARKER,
            marker=marker,
            last_check=permit.check if permit else lambda: None,
            beat=beat,
        )
    )
    return checkpoint


def read_committed(path: Location) -> CommittedCheckpoint:
    """Return the checkpoint in folder ``path`` from its marker; the other files are not read.

    Raises:
        FileNotFoundError: There is no such folder; on an object store, no such folder with a marker.
        CheckpointDamagedError: The marker is missing, unreadable or of another format version.
    """
    place = native(path)
    if isinstance(place, Path) and not place.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {place}; see its parent folder for those that exist")
    try:
        marker = json.loads((place / MARKER).read_bytes())
        _check_version(place, marker["format_version"])
        return CommittedCheckpoint(
            path=place,
            step=int(marker["step"]),
            epoch=int(marker["epoch"]),
            step_in_epoch=int(marker["step_in_epoch"]),
            metrics={name: float(value) for name, value in marker["metrics"].items()},
            files=tuple(_file_entry(entry) for entry in marker["files"]),
            attempt=None if marker.get("attempt") is None else int(marker["attempt"]),
        )
    except FileNotFoundError as error:
        if not isinstance(place, Path):
            raise FileNotFoundError(f"there is no checkpoint {place}; see its parent for those that exist") from error
        raise CheckpointDamagedError(place, f"it has no {MARKER}") from error
    except CheckpointDamagedError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointDamagedError(place, f"{MARKER} cannot be read ({error!r})") from error


def _check_version(place: Path | StoragePath, version: object) -> None:
    if version not in (_FIRST_FORMAT_VERSION, FORMAT_VERSION):
        raise CheckpointDamagedError(
            place, f"its format version is {version}, this program reads up to {FORMAT_VERSION}"
        )


def committed(directory: Location) -> list[CommittedCheckpoint]:
    """Return the checkpoints in ``directory``, newest first; a folder without a readable marker is logged and skipped.

    Of equal steps, the last attempt's checkpoint comes first. Checkpoints of a chief whose attempt had been replaced
    before the commit are left out. Checksums are not verified. If the directory does not exist, the list is empty.

    Raises:
        OSError: The store does not answer, or refuses.
    """
    store = open_store(directory)
    fence = read_fence(directory)
    found = []
    for name in store.folders():
        mark = mark_in(name)
        if mark is None or (mark and fence and not fence.counts(name, mark)):
            continue
        try:
            found.append(read_committed(store.directory / name))
        except CheckpointDamagedError as error:
            logger.warning("Skipped: %s", error)
        except FileNotFoundError:
            # Pruned since it was listed, or files on an object store whose marker is not written (yet).
            continue
    return sorted(found, key=lambda c: (c.step, c.attempt or 0, c.path.name), reverse=True)


def latest_committed(directory: Location, *, verify: bool = True) -> CommittedCheckpoint | None:
    """Return the newest checkpoint, or None if there is none.

    Args:
        directory: Folder of a training's checkpoints.
        verify: Compare sizes and checksums, which reads the files; a damaged checkpoint is logged, and the next older
            one is tried.

    Raises:
        OSError: The store does not answer, or refuses; this does not fall back to an older checkpoint.
    """
    return next((c for c in committed(directory) if not verify or is_whole(c)), None)


def best_committed(
    directory: Location, metric: str, mode: Mode, *, verify: bool = True, beat: Callable[[], None] = lambda: None
) -> CommittedCheckpoint | None:
    """Return the checkpoint with the best ``metric``, the earliest of equals; None if there is no checkpoint.

    Args:
        directory: Folder of a training's checkpoints.
        metric: Name among the checkpoints' metrics; checkpoints without it, or with NaN, are ignored.
        mode: ``max`` when larger is better, ``min`` when smaller is.
        verify: Skip checkpoints whose checksums differ, with a logged warning.
        beat: Called whenever some bytes have been read for verification.

    Raises:
        ValueError: Checkpoints exist, but none has the metric.
    """
    checkpoints = committed(directory)
    ranked = best_first(checkpoints, metric, mode)
    if checkpoints and not ranked:
        available = sorted({name for checkpoint in checkpoints for name in checkpoint.metrics})
        raise ValueError(f"no checkpoint in {directory} has a finite metric {metric!r}; available: {available}")
    return next((c for c in ranked if not verify or is_whole(c, beat)), None)


def mark_of(fence: str | None) -> str:
    """Return the mark of a fence in names: the first digits of its id; empty without a fence."""
    return (fence or "")[:_FENCE_DIGITS]


def mark_in(name: str) -> str | None:
    """Return the mark of the fence in a checkpoint's name, empty without a fence; None for any other name."""
    found = _STEP_FOLDER.fullmatch(name)
    return None if found is None else found[1] or ""


def _folder_name(step: int, fence: str | None) -> str:
    return f"step-{step:08d}" if fence is None else f"step-{step:08d}-{mark_of(fence)}"


def _read_whole(path: Path | StoragePath, beat: Callable[[], None]) -> CommittedCheckpoint | None:
    try:
        checkpoint = read_committed(path)
    except FileNotFoundError:
        return None
    except CheckpointDamagedError as error:
        logger.warning("Replaced: %s", error)
        return None
    return checkpoint if is_whole(checkpoint, beat) else None


def is_whole(checkpoint: CommittedCheckpoint, beat: Callable[[], None] = lambda: None) -> bool:
    """Return whether sizes and checksums agree; damage is logged.

    Raises:
        OSError: The store does not answer, or refuses.
    """
    damage = checkpoint.damage(beat=beat)
    if damage is not None:
        logger.warning("Checkpoint %s is damaged: %s; passed over", checkpoint.path, damage)
    return damage is None


def best_first(checkpoints: list[CommittedCheckpoint], metric: str, mode: Mode) -> list[CommittedCheckpoint]:
    """Return the checkpoints that have a finite value of ``metric``, the best one first."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode is {mode!r}; use 'min' or 'max'")
    sign = -1.0 if mode == "max" else 1.0
    comparable = [c for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))]
    return sorted(comparable, key=lambda c: (sign * c.metrics[metric], c.step))


def marker_text(checkpoint: CommittedCheckpoint) -> str:
    """Return the content of the marker."""
    marker = {
        "format_version": checkpoint.format_version,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "step_in_epoch": checkpoint.step_in_epoch,
        "attempt": checkpoint.attempt,
        # JSON has no NaN or infinity; float() reads them back from their names.
        "metrics": {k: v if math.isfinite(v) else str(v) for k, v in checkpoint.metrics.items()},
        "files": [asdict(file) for file in checkpoint.files],
    }
    return json.dumps(marker, indent=1, allow_nan=False)


def _file_entry(entry: Mapping[str, Any]) -> CheckpointFile:
    name = str(entry["name"])
    # The marker is read from storage, so its names must not lead out of the checkpoint's folder.
    if leads_out(name):
        raise KeyError(f"file name {name!r} leaves the folder")
    checksum = str(entry["checksum"]) if "checksum" in entry else f"{SHA256}:{entry['sha256']}"
    if kind_of(checksum) not in KINDS:
        raise KeyError(f"checksum {checksum!r} is of none of the kinds {', '.join(KINDS)}")
    return CheckpointFile(name, int(entry["bytes"]), checksum)
