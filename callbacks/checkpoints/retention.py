"""Removal of checkpoints beyond those to keep, and of leftovers of interrupted attempts."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mirrorspark.callbacks.checkpoints.checkpoint_store import Location, native, open_store
from mirrorspark.callbacks.checkpoints.commit import (
    CheckpointDamagedError,
    CommittedCheckpoint,
    Mode,
    best_first,
    committed,
    is_whole,
    mark_in,
    mark_of,
    read_committed,
)
from mirrorspark.callbacks.checkpoints.fencing import read_fence
from mirrorspark.storage import StoragePath


def prune(
    directory: Location,
    *,
    keep_last: int,
    keep_best: int = 0,
    monitor: str | None = None,
    mode: Mode = "max",
    known_good: CommittedCheckpoint | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[Path | StoragePath]:
    """Remove checkpoints beyond those to keep and return their folders. The newest intact one always stays.

    Args:
        directory: Folder of a training's checkpoints.
        keep_last: Number of newest checkpoints to keep, at least 1. Of several of one step only the first counts.
        keep_best: Number of best checkpoints by ``monitor`` to keep in addition.
        monitor: Metric for ``keep_best``.
        mode: ``max`` or ``min``, see `best_committed`.
        known_good: A checkpoint that was just written, so that its checksums need not be verified again; it stays.
        beat: Called whenever some bytes have been read, and after each removal.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; keep at least 1 checkpoint")
    checkpoints = committed(directory)
    of_step = {c.step: c for c in reversed(checkpoints)}
    if known_good is not None and known_good.step in of_step:
        of_step[known_good.step] = known_good
    of_steps = list(of_step.values())[::-1]
    kept = {c.path for c in of_steps[:keep_last]}
    if monitor is not None:
        kept |= {c.path for c in best_first(of_steps, monitor, mode)[:keep_best]}
    if known_good is not None:
        # Checkpoints of later steps may be damaged, or of a training that was resumed from an earlier one.
        kept.add(known_good.path)
    expired = [c for c in checkpoints if c.path not in kept]
    if expired:
        # If all the kept checkpoints were damaged, pruning would remove the last intact one.
        # Of several of one step the one to keep is asked first.
        newest_first = sorted(checkpoints, key=lambda c: (-c.step, c.path not in kept))
        newest_good = next(
            (c for c in newest_first if (known_good and c.path == known_good.path) or is_whole(c, beat)), None
        )
        expired = [c for c in expired if newest_good is not None and c.path != newest_good.path]
    for checkpoint in expired:
        discard(checkpoint.path)
        beat()
    return [checkpoint.path for checkpoint in expired]


def clean_staging(directory: Location, fence: str | None = None) -> list[Path | StoragePath]:
    """Remove leftovers of interrupted publishing and pruning from ``directory``, and return their folders.

    Checkpoints that do not count, because their chief committed them too late, are leftovers as well.

    The caller may have been paused since it last saw its fence. Therefore only what attempts before it have left is
    removed, which its own fence names; anything unknown may be a later attempt's and stays.

    Args:
        directory: Folder of this training's checkpoints.
        fence: Id of the caller's fence. Without one, only leftovers without a fence are removed; nothing else may
            publish without a fence meanwhile.
    """
    store = open_store(directory)
    former = former_marks(directory, fence)
    mine = None if fence is None else read_fence(directory, fence)
    late = [
        name
        for name in store.folders()
        if mine and (mark := mark_in(name)) and mark in former and not mine.counts(name, mark)
    ]
    for name in late:
        store.remove(name)

    def parts(name: str) -> set[str] | None:
        if mark_in(name) is None:
            return None
        try:
            return {PurePosixPath(file.name).parts[0] for file in read_committed(store.directory / name).files}
        except FileNotFoundError:
            return set()
        except CheckpointDamagedError:
            return None

    return [
        native(store.directory / name)
        for name in (*late, *store.clean(lambda name: (mark_in(name) or "") in former, parts))
    ]


def former_marks(directory: Location, fence: str | None) -> set[str]:
    """Return the marks of attempts whose leftovers an attempt with this fence may remove.

    They are those of the fences before it; without a fence only the empty one.

    Raises:
        OSError: The store does not answer, or refuses.
    """
    if fence is None:
        return {""}
    mine = read_fence(directory, fence)
    return {mark_of(id_) for id_ in mine.retired} if mine else set()


def discard(path: Location) -> None:
    """Remove a checkpoint's folder; from the first deletion on the checkpoint no longer exists for readers."""
    place = StoragePath.of(path)
    open_store(place.parent).remove(place.name)
