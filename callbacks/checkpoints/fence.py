"""The fence: ``FENCE.json`` beside the checkpoints says which attempt of a training may publish them.

A chief that was only cut off must not publish into the training that continued without it. The driver therefore sets
the fence before an attempt, and the chief checks it right before and after each commit. It may still be paused between
check and commit. Therefore the name of a checkpoint has the fence that it was committed under, so no commit replaces or
removes another attempt's; and once the driver has chosen where the attempt begins, the fence lists the earlier
checkpoints that count (`adopt`): what a chief of before commits later does not. (Different names also make conditional
puts unnecessary on object stores: no two chiefs write the same marker.)
"""

import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mirrorspark.callbacks.checkpoints.store import STORE_ERRORS, Location, open_store, store_error
from mirrorspark.storage.paths import StoragePath

FENCE = "FENCE.json"

# Environment variables for a training function: the folder for its checkpoints, the number of the attempt, and the id
# of its fence. With them the checkpoints are fenced even if the function does not handle attempts itself.
CHECKPOINTS_VARIABLE = "MIRRORSPARK_CHECKPOINTS"
ATTEMPT_VARIABLE = "MIRRORSPARK_ATTEMPT"
FENCE_VARIABLE = "MIRRORSPARK_FENCE"


class StaleAttemptError(RuntimeError):
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
    """The attempt that may publish, and the checkpoints that count besides its own.

    Attributes:
        attempt: Its number.
        id: Distinguishes equal numbers of different drivers.
        earlier: Ids of fences before it, all of whose checkpoints count; empty once those are listed in ``kept``.
        kept: Names of the folders of earlier checkpoints that count.
    """

    attempt: int
    id: str
    earlier: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

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
            # An empty folder where there should be a fence means that the disk is gone.
            raise FileNotFoundError(f"it has no {FENCE} of attempt {attempt - 1}: is the disk still there?")
        store.make()
        former = read_fence(directory)
        earlier, kept = ((*former.earlier, former.id), former.kept) if former else ((), ())
        mine = Fence(attempt, uuid.uuid4().hex, earlier, kept)
        _write(directory, mine)
    except STORE_ERRORS as error:
        raise store_error(directory, error) from error
    return mine


def adopt(directory: Location, mine: Fence, names: Iterable[str]) -> Fence:
    """Let only the checkpoints in the folders ``names`` count from now on, besides those of the attempt itself.

    Raises:
        StaleAttemptError: Another attempt has set its fence since.
        OSError: The store does not answer, or refuses.
    """
    now = read_fence(directory)
    if now is not None and now.id != mine.id:
        raise StaleAttemptError(str(directory), mine.attempt, now.attempt)
    adopted = mine._replace(earlier=(), kept=tuple(names))
    _write(directory, adopted)
    return adopted


def _write(directory: Location, fence: Fence) -> None:
    (StoragePath.of(directory) / FENCE).write_bytes(json.dumps(fence._asdict()).encode())


def read_fence(directory: Location) -> Fence | None:
    """Return the current fence, or None if none is set.

    Raises:
        OSError: The store does not answer, or the fence is unreadable.
    """
    path = StoragePath.of(directory) / FENCE
    try:
        document = json.loads(path.read_bytes())
        lists = (tuple(map(str, document.get(name, ()))) for name in ("earlier", "kept"))
        return Fence(int(document["attempt"]), str(document["id"]), *lists)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        # Without a readable fence nothing is published. OSError is retried: another program may be writing the file.
        raise OSError(f"{path} cannot be read ({error!r})") from error


@dataclass(frozen=True)
class Permit:
    """An attempt's right to publish.

    Attributes:
        directory: Folder of the checkpoints.
        attempt: Number of the attempt.
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
                raise FileNotFoundError(f"{FENCE} is gone from {self.directory}: is the disk still there?")
        elif now.attempt > self.attempt or (self.held is not None and now.id != self.held.id):
            raise StaleAttemptError(str(self.directory), self.attempt, now.attempt)
