"""What a committed checkpoint is on disk: publish, find, verify and prune. Plain file code, no TensorFlow.

A checkpoint is a folder ``<directory>/step-00000420`` with the tensors (``ckpt.*``), the state of other callbacks
(``state.json``) and the marker ``COMMITTED.json``. It is prepared as ``<directory>/.staging-*``; the marker is written
last and the folder is renamed into place, so a folder named ``step-*`` is whole at any crash.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

MARKER = "COMMITTED.json"
TENSORS = "ckpt"
STATE = "state.json"
FORMAT_VERSION = 1

Mode = Literal["min", "max"]

_STAGING = ".staging-"
_DISCARDED = ".discarded-"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_READ_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class CheckpointDamagedError(ValueError):
    """A checkpoint folder's marker is missing or unreadable, or a file differs from what the marker names."""

    def __init__(self, path: Path, damage: str) -> None:
        """Keep the folder and what is wrong with it."""
        super().__init__(f"checkpoint {path} is damaged: {damage}; resume from an earlier one or remove the folder")
        self.path = path
        self.damage = damage

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.path, self.damage)


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint: its name relative to the folder, size in bytes and SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CommittedCheckpoint:
    """A checkpoint whose marker has been read.

    Attributes:
        path: The checkpoint's folder.
        step: Optimizer updates done.
        epoch: Epochs completed; also the 0-based index of the epoch to go on with.
        step_in_epoch: Steps done of the epoch after those; the batches to skip when going on. 0 at an epoch's end.
        metrics: Values at that moment; those of validation are there at an epoch's end only.
        files: Every file but the marker.
        format_version: Version of the marker's format.
    """

    path: Path
    step: int
    epoch: int
    step_in_epoch: int
    metrics: Mapping[str, float]
    files: tuple[CheckpointFile, ...]
    format_version: int = FORMAT_VERSION

    @property
    def prefix(self) -> str:
        """The path that ``tf.train.Checkpoint.read`` takes."""
        return str(self.path / TENSORS)

    def damage(self) -> str | None:
        """Return the first difference between the files and the marker, or None when all agree."""
        for file in self.files:
            path = self.path / file.name
            try:
                if path.stat().st_size != file.bytes:
                    return f"{file.name} has {path.stat().st_size} bytes instead of {file.bytes}"
                if _sha256(path) != file.sha256:
                    return f"{file.name} has another checksum than when it was written"
            except OSError as error:
                return f"{file.name} cannot be read ({error.strerror or error})"
        return None

    def states(self) -> dict[str, Any]:
        """Return the saved states of other callbacks by name; empty when none were saved."""
        path = self.path / STATE
        return json.loads(path.read_text("utf-8")) if path.exists() else {}


def folder(directory: Path, step: int) -> Path:
    """Return the folder of the checkpoint of ``step``, whether or not it exists."""
    return directory / f"step-{step:08d}"


def new_staging(directory: Path) -> Path:
    """Create and return an empty folder in ``directory`` (made when absent) to prepare a checkpoint in.

    Raises:
        OSError: The store cannot be written; the message names it.
    """
    staging = directory / f"{_STAGING}{uuid.uuid4().hex}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise store_error(directory, error) from error
    return staging


def publish(
    staging: Path,
    directory: Path,
    *,
    step: int,
    epoch: int,
    step_in_epoch: int = 0,
    metrics: Mapping[str, float] | None = None,
) -> CommittedCheckpoint:
    """Commit the files in ``staging`` as the checkpoint of ``step`` and return it.

    A step that is committed and whole already stays as it is and ``staging`` is removed; a damaged folder of that
    step is replaced.

    Args:
        staging: Folder with the checkpoint's files, on the same file system as ``directory``; gone afterwards.
        directory: Where the checkpoints of this training live.
        step: Optimizer updates done.
        epoch: Epochs completed.
        step_in_epoch: Steps done of the next epoch.
        metrics: Values to keep with the checkpoint.

    Raises:
        OSError: The store cannot be written; the message names it. Nothing is committed then.
    """
    target = folder(directory, step)
    try:
        if target.exists():
            existing = _read_whole(target)
            if existing is not None:
                shutil.rmtree(staging)
                return existing
            discard(target)
        paths = sorted(path for path in staging.rglob("*") if path.is_file() and path.name != MARKER)
        checkpoint = CommittedCheckpoint(
            path=target,
            step=step,
            epoch=epoch,
            step_in_epoch=step_in_epoch,
            metrics=dict(metrics or {}),
            files=tuple(
                CheckpointFile(path.relative_to(staging).as_posix(), path.stat().st_size, _sha256(path))
                for path in paths
            ),
        )
        # Data reach the disk before the marker that vouches for them, and all of it before the name that counts.
        for path in paths:
            _fsync(path)
        marker = staging / MARKER
        marker.write_text(_marker_text(checkpoint), "utf-8")
        _fsync(marker)
        for parent in {path.parent for path in paths} | {staging}:
            _fsync(parent)
        staging.replace(target)
        _fsync(directory)
    except OSError as error:
        raise store_error(directory, error) from error
    return checkpoint


def read_committed(path: Path) -> CommittedCheckpoint:
    """Return the checkpoint in folder ``path`` from its marker; the other files are not looked at.

    Raises:
        FileNotFoundError: There is no such folder.
        CheckpointDamagedError: The marker is missing, unreadable or of another format version.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {path}; see its parent folder for those that exist")
    try:
        marker = json.loads((path / MARKER).read_text("utf-8"))
        if marker["format_version"] != FORMAT_VERSION:
            raise CheckpointDamagedError(
                path, f"its format version is {marker['format_version']}, this program reads {FORMAT_VERSION}"
            )
        return CommittedCheckpoint(
            path=path,
            step=int(marker["step"]),
            epoch=int(marker["epoch"]),
            step_in_epoch=int(marker["step_in_epoch"]),
            metrics={name: float(value) for name, value in marker["metrics"].items()},
            files=tuple(_file_entry(entry) for entry in marker["files"]),
        )
    except FileNotFoundError as error:
        raise CheckpointDamagedError(path, f"it has no {MARKER}") from error
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointDamagedError(path, f"{MARKER} cannot be read ({error!r})") from error


def committed(directory: Path) -> list[CommittedCheckpoint]:
    """Return the checkpoints in ``directory``, newest first; a folder without a readable marker is logged and skipped.

    Checksums are not verified. A directory that does not exist holds none.
    """
    found = []
    if not directory.is_dir():
        return []
    for path in directory.iterdir():
        if _STEP_FOLDER.fullmatch(path.name) and path.is_dir():
            try:
                found.append(read_committed(path))
            except CheckpointDamagedError as error:
                logger.warning("Skipped: %s", error)
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def latest_committed(directory: Path, *, verify: bool = True) -> CommittedCheckpoint | None:
    """Return the newest checkpoint, or None when there is none.

    Args:
        directory: Where the checkpoints of a training live.
        verify: Compare sizes and checksums; a damaged checkpoint is logged and the one before it is tried.
    """
    return next((c for c in committed(directory) if not verify or _is_whole(c)), None)


def best_committed(directory: Path, metric: str, mode: Mode, *, verify: bool = True) -> CommittedCheckpoint | None:
    """Return the checkpoint with the best ``metric``, the earliest of equals; None when there is no checkpoint.

    Args:
        directory: Where the checkpoints of a training live.
        metric: Name among the checkpoints' metrics; checkpoints without it, or with NaN, do not take part.
        mode: ``max`` when larger is better, ``min`` when smaller is.
        verify: Skip checkpoints whose checksums differ, with a logged warning.

    Raises:
        ValueError: Checkpoints exist, and none has the metric.
    """
    checkpoints = committed(directory)
    ranked = _best_first(checkpoints, metric, mode)
    if checkpoints and not ranked:
        available = sorted({name for checkpoint in checkpoints for name in checkpoint.metrics})
        raise ValueError(f"no checkpoint in {directory} has a finite metric {metric!r}; available: {available}")
    return next((c for c in ranked if not verify or _is_whole(c)), None)


def prune(
    directory: Path,
    *,
    keep_last: int,
    keep_best: int = 0,
    monitor: str | None = None,
    mode: Mode = "max",
    known_good: CommittedCheckpoint | None = None,
) -> list[Path]:
    """Remove checkpoints beyond those to keep and return the removed folders. The newest whole one always stays.

    Args:
        directory: Where the checkpoints of a training live.
        keep_last: Newest checkpoints to keep, at least 1.
        keep_best: Best ones by ``monitor`` to keep besides.
        monitor: Metric that ``keep_best`` looks at.
        mode: ``max`` or ``min``, see `best_committed`.
        known_good: A checkpoint written just now, to save reading it again for its checksums.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; keep at least 1 checkpoint")
    checkpoints = committed(directory)
    kept = {c.path for c in checkpoints[:keep_last]}
    if monitor is not None:
        kept |= {c.path for c in _best_first(checkpoints, monitor, mode)[:keep_best]}
    doomed = [c for c in checkpoints if c.path not in kept]
    if doomed:
        # Counting names is not enough: were all the kept ones damaged, pruning would end the training's memory.
        newest_good = next((c for c in checkpoints if (known_good and c.path == known_good.path) or _is_whole(c)), None)
        doomed = [c for c in doomed if newest_good is not None and c.path != newest_good.path]
    for checkpoint in doomed:
        discard(checkpoint.path)
    return [checkpoint.path for checkpoint in doomed]


def clean_staging(directory: Path) -> list[Path]:
    """Remove what interrupted publishing and pruning left in ``directory``, and return those folders.

    Only for a moment when nobody publishes: before the training starts, by the chief.
    """
    left_over = [*directory.glob(f"{_STAGING}*"), *directory.glob(f"{_DISCARDED}*")]
    for path in left_over:
        shutil.rmtree(path, ignore_errors=True)
    return left_over


def discard(path: Path) -> None:
    """Remove a checkpoint's folder; at no moment is there a half-removed folder under its name."""
    aside = path.with_name(f"{_DISCARDED}{path.name}-{uuid.uuid4().hex}")
    path.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def store_error(directory: Path, error: OSError) -> OSError:
    """Return ``error`` as one of the same kind (errno) whose message names the store and says what to do."""
    reason = error.strerror or str(error)
    message = f"cannot write a checkpoint to {directory} ({reason}); free space there or choose a writable directory"
    return OSError(error.errno, message) if error.errno else OSError(message)


def _read_whole(path: Path) -> CommittedCheckpoint | None:
    try:
        checkpoint = read_committed(path)
    except CheckpointDamagedError as error:
        logger.warning("Replaced: %s", error)
        return None
    return checkpoint if _is_whole(checkpoint) else None


def _is_whole(checkpoint: CommittedCheckpoint) -> bool:
    damage = checkpoint.damage()
    if damage is not None:
        logger.warning("Checkpoint %s is damaged: %s; passed over", checkpoint.path, damage)
    return damage is None


def _best_first(checkpoints: list[CommittedCheckpoint], metric: str, mode: Mode) -> list[CommittedCheckpoint]:
    if mode not in ("min", "max"):
        raise ValueError(f"mode is {mode!r}; use 'min' or 'max'")
    sign = -1.0 if mode == "max" else 1.0
    comparable = [c for c in checkpoints if math.isfinite(c.metrics.get(metric, math.nan))]
    return sorted(comparable, key=lambda c: (sign * c.metrics[metric], c.step))


def _marker_text(checkpoint: CommittedCheckpoint) -> str:
    marker = {
        "format_version": checkpoint.format_version,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "step_in_epoch": checkpoint.step_in_epoch,
        # JSON has no NaN or infinity; float() reads them back from their names.
        "metrics": {k: v if math.isfinite(v) else str(v) for k, v in checkpoint.metrics.items()},
        "files": [asdict(file) for file in checkpoint.files],
    }
    return json.dumps(marker, indent=1, allow_nan=False)


def _file_entry(entry: Mapping[str, Any]) -> CheckpointFile:
    name = str(entry["name"])
    # The marker comes from storage: a name in it must not lead out of the checkpoint's folder.
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise KeyError(f"file name {name!r} leaves the folder")
    return CheckpointFile(name, int(entry["bytes"]), str(entry["sha256"]))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
