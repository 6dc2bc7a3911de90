"""The fence: ``FENCE.json`` beside the checkpoints says which attempt of a training may publish them.

A chief that was only cut off must not publish into the training that continued without it. The driver therefore sets
the fence before an attempt, and the chief checks it right before and after each commit.
"""

import json
import os
import uuid
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
    """The attempt that may publish: its number, and an id that distinguishes equal numbers of different drivers."""

    attempt: int
    id: str


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
        mine = Fence(attempt, uuid.uuid4().hex)
        (store.directory / FENCE).write_bytes(json.dumps(mine._asdict()).encode())
    except STORE_ERRORS as error:
        raise store_error(directory, error) from error
    return mine


def read_fence(directory: Location) -> Fence | None:
    """Return the current fence, or None if none is set.

    Raises:
        OSError: The store does not answer, or the fence is unreadable.
    """
    path = StoragePath.of(directory) / FENCE
    try:
        document = json.loads(path.read_bytes())
        return Fence(int(document["attempt"]), str(document["id"]))
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
        held: The fence that was set for it, or None.
    """

    directory: Location
    attempt: int
    held: Fence | None

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
