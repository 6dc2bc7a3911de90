"""The fences: files next to the checkpoints that name the attempt which may publish them.

A chief that was only cut off must not publish into the training that continued without it. The driver therefore sets
a fence before an attempt, and the chief checks right before and after each commit that no later one is there. It may
still be paused between check and commit. Therefore the name of a checkpoint has the fence that it was committed under,
so no commit replaces or removes another attempt's; and once the driver has chosen where the attempt begins, its fence
lists the earlier checkpoints that count (`adopt`): a later commit of an earlier chief does not. (Different names
also make conditional puts unnecessary on object stores: no two chiefs write the same marker.)

A driver may be paused as well. Every fence is therefore a file of its own, ``FENCE-<number>-<id>.json``, which only its
own driver writes and nobody removes; that of the highest number counts, of equal numbers that of the highest id. A
driver that wakes up late can change only its own fence.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from mirrorspark.callbacks.checkpoints.checkpoint_store import STORE_ERRORS, Location, open_store, store_error
from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoragePath, atomic_file

# How messages name the files.
FENCE = "FENCE-*.json"
_FILE = re.compile(r"FENCE-(\d+)-([0-9a-f]+)\.json")
_UNFINISHED = re.compile(r"\.(FENCE-.*\.json)\.[0-9a-f]{32}")
# The only fence of runs by earlier versions, older than all others.
_FORMER_FILE = "FENCE.json"

# Environment variables for a training function: the folder for its checkpoints, the number of the attempt, and the id
# of its fence. With them the checkpoints are fenced even if the function does not handle attempts itself.
CHECKPOINTS_VARIABLE = "MIRRORSPARK_CHECKPOINTS"
ATTEMPT_VARIABLE = "MIRRORSPARK_ATTEMPT"
FENCE_VARIABLE = "MIRRORSPARK_FENCE"


class StaleAttemptError(ClearError, RuntimeError):
    """This chief was given up and a later attempt has taken over, so its checkpoints must not be published."""

    def __init__(self, directory: str, attempt: int, holder: int) -> None:
        """Build the message from the store, this attempt and the one that now holds the fence."""
        super().__init__(
            f"attempt {attempt} may not publish checkpoints to {directory} any more: attempt {holder} has taken over; "
            "end this process"
        )
        self.directory = directory
        self.attempt = attempt
        self.holder = holder

    def __reduce__(self) -> tuple[type, tuple[str, int, int]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.directory, self.attempt, self.holder)


class Fence(NamedTuple):
    """The attempt that may publish, and the earlier checkpoints that count.

    Attributes:
        id: Distinguishes equal numbers of different drivers.
        earlier: Ids of fences before it, all of whose checkpoints count; empty once those are listed in ``kept``.
        kept: Names of the folders of earlier checkpoints that count.
        retired: Ids of all fences before it.
    """

    attempt: int
    id: str
    earlier: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    file: str = ""

    def counts(self, folder: str, fence_digits: str) -> bool:
        """Return whether the checkpoint in a folder counts, whose name has these first digits of a fence's id."""
        is_of_fence = any(id_.startswith(fence_digits) for id_ in (self.id, *self.earlier))
        return is_of_fence or folder in self.kept


def fence_from_environment(directory: Location) -> Fence | None:
    """Return the fence in the environment, or None if it is not set or is for another folder than ``directory``."""
    checkpoints = os.environ.get(CHECKPOINTS_VARIABLE)
    if not checkpoints or StoragePath.of(checkpoints) != StoragePath.of(directory):
        return None
    attempt, id_ = os.environ.get(ATTEMPT_VARIABLE), os.environ.get(FENCE_VARIABLE)
    return Fence(int(attempt), id_) if attempt and id_ else None


def fence(directory: Location, attempt: int) -> Fence:
    """Allow only ``attempt`` to publish from now on; call this before looking for the newest checkpoint.

    Args:
        directory: Folder of this training's checkpoints; created if needed.
        attempt: Number for the new chief's `ChiefCheckpoint`; a new driver may start at 1 again.

    Raises:
        CheckpointStoreError: The store cannot be written, or is not the one of the previous attempt.
    """
    store = open_store(directory)
    try:
        if attempt > 1 and read_fence(directory) is None:
            # An empty folder where there should be a fence means that the disk is not mounted.
            raise FileNotFoundError(f"it has no {FENCE} of attempt {attempt - 1}: is the disk still there?")
        store.make()
        number = max((found.number for found in _files(directory)), default=0) + 1
        id_ = uuid.uuid4().hex
        file = f"FENCE-{number:06d}-{id_}.json"
        _remove_unfinished(directory)
        _write(directory, file, attempt, id_, kept=None)
        mine = read_fence(directory, id_)
        if mine is None:
            raise _gone(directory)
    except STORE_ERRORS as error:
        raise store_error(directory, error) from error
    return mine


def adopt(directory: Location, mine: Fence, names: Iterable[str]) -> Fence:
    """Let only the checkpoints in the folders ``names`` and those of the attempt itself count from now on.

    Raises:
        StaleAttemptError: Another attempt has set its fence since.
        OSError: The store does not answer, or refuses.
    """
    file = _current(directory, mine).file
    _write(directory, file, mine.attempt, mine.id, list(names))
    # Asked again: if a later fence was set in between, its driver may have chosen among more than these checkpoints.
    return _current(directory, mine)


def _current(directory: Location, mine: Fence) -> Fence:
    now = read_fence(directory)
    if now is None:
        raise _gone(directory)
    if now.id != mine.id:
        raise StaleAttemptError(str(directory), mine.attempt, now.attempt)
    return now


def _gone(directory: Location) -> FileNotFoundError:
    return FileNotFoundError(f"{FENCE} is missing in {directory}: is the disk still there?")


def _write(directory: Location, file: str, attempt: int, id_: str, kept: list[str] | None) -> None:
    document = {"attempt": attempt, "id": id_, "kept": kept}
    (StoragePath.of(directory) / file).write_bytes(json.dumps(document).encode())


def _remove_unfinished(directory: Location) -> None:
    """Remove leftovers of drivers that were killed while they wrote to a disk; a living driver holds a lock on them."""
    for path in (file.path for file in StoragePath.of(directory).files(recursive=False)):
        if path.is_local and (left := _UNFINISHED.fullmatch(path.name)):
            with atomic_file.temporary_beside(path.local.with_name(left[1])):
                pass


class _File(NamedTuple):
    number: int
    id: str
    path: StoragePath


def _files(directory: Location) -> list[_File]:
    """Return the files of all fences, that of the current one first."""
    found = []
    for path in (file.path for file in StoragePath.of(directory).files(recursive=False)):
        if name := _FILE.fullmatch(path.name):
            found.append(_File(int(name[1]), name[2], path))
        elif path.name == _FORMER_FILE:
            found.append(_File(0, str(_read(path)["id"]), path))
    return sorted(found, reverse=True)


def read_fence(directory: Location, id_: str | None = None) -> Fence | None:
    """Return the current fence, or that with this id; None if there is none.

    Raises:
        OSError: The store does not answer, or a fence is unreadable.
    """
    files = _files(directory)
    if id_ is not None:
        files = files[next((place for place, file in enumerate(files) if file.id == id_), len(files)) :]
    if not files:
        return None
    own = _read(files[0].path)
    whole: list[str] = []
    kept: list[str] | None = own["kept"]
    # Until a fence lists what counts, all that counted under the one before does.
    for file in files[1:]:
        if kept is not None:
            break
        before = _read(file.path)
        whole += [file.id, *before["earlier"]]
        kept = before["kept"]
    return Fence(
        attempt=own["attempt"],
        id=files[0].id,
        earlier=(*own["earlier"], *whole),
        kept=tuple(kept or ()),
        retired=(*own["earlier"], *(file.id for file in files[1:])),
        file=files[0].path.name,
    )


def _read(path: StoragePath) -> dict[str, Any]:
    """Return a fence's own lines; ``kept`` is None as nothing is adopted."""
    try:
        document = json.loads(path.read_bytes())
        kept = document.get("kept")
        return {
            "attempt": int(document["attempt"]),
            "id": str(document["id"]),
            "earlier": [str(id_) for id_ in document.get("earlier", ())],
            "kept": None if kept is None else [str(name) for name in kept],
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        # Without a readable fence nothing is published. OSError is retried: another program may be writing the file.
        raise OSError(f"{path} cannot be read ({error!r})") from error


@dataclass(frozen=True)
class Permit:
    """An attempt's right to publish.

    Attributes:
        directory: Folder of the checkpoints.
        held: The fence that was found when it began, or None.
        fence: Id of the fence that was set for this attempt, by which its checkpoints are named; None if it has none.
    """

    directory: Location
    attempt: int
    held: Fence | None
    fence: str | None = None

    def check(self) -> None:
        """Compare with the current fence.

        Raises:
            StaleAttemptError: Another attempt holds the fence.
            OSError: The store does not answer, or has lost its fence.
        """
        now = read_fence(self.directory)
        if now is None:
            if self.held is not None:
                raise _gone(self.directory)
        elif now.attempt > self.attempt or (self.held is not None and now.id != self.held.id):
            raise StaleAttemptError(str(self.directory), self.attempt, now.attempt)
