"""Which attempt of a training may publish checkpoints: ``FENCE.json`` beside them.

A chief that was only cut off must not publish into the training that went on without it: the driver puts up the fence
before an attempt, and the chief looks at it right before and after each commit.
"""

import json
import os
import uuid
from dataclasses import dataclass
from typing import NamedTuple

from callbacks.checkpoint_store import STORE_ERRORS, Location, open_store, store_error
from data_pipelines.storage import StoragePath

FENCE = "FENCE.json"

# Environment variables that tell a training function where its checkpoints belong, which attempt this is, and the id of
# its fence: one that knows nothing of attempts has its checkpoints fenced, too.
CHECKPOINTS_VARIABLE = "MIRRORSPARK_CHECKPOINTS"
ATTEMPT_VARIABLE = "MIRRORSPARK_ATTEMPT"
FENCE_VARIABLE = "MIRRORSPARK_FENCE"


class StaleAttemptError(RuntimeError):
    """This training's chief was given up, and a later attempt goes on: its checkpoints must not be mixed in."""

    def __init__(self, directory: str, attempt: int, holder: int) -> None:
        """Keep the store, this attempt and the one that holds the fence now."""
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
    """Who may publish: an attempt's number, and what tells it from another driver's attempt of the same number."""

    attempt: int
    id: str


def fence_from_environment(directory: Location) -> Fence | None:
    """Return who may publish to ``directory`` by the environment; None where that speaks of no or another folder."""
    checkpoints = os.environ.get(CHECKPOINTS_VARIABLE)
    if not checkpoints or StoragePath.of(checkpoints) != StoragePath.of(directory):
        return None
    attempt, id_ = os.environ.get(ATTEMPT_VARIABLE), os.environ.get(FENCE_VARIABLE)
    return Fence(int(attempt), id_) if attempt and id_ else None


def fence(directory: Location, attempt: int) -> Fence:
    """Let only ``attempt`` publish from now on; call it before the newest checkpoint is looked for.

    Args:
        directory: Where the checkpoints of this training live; made when ``attempt`` is 1.
        attempt: The number that the new chief's `ChiefCheckpoint` is given; it may begin at 1 again with a new driver.

    Raises:
        CheckpointStoreError: The store cannot be written, or is not the one that the attempt before used.
    """
    store = open_store(directory)
    try:
        if attempt > 1 and read_fence(directory) is None:
            # An empty folder where checkpoints were is a disk that is gone, not a training that never began.
            raise FileNotFoundError(f"it has no {FENCE} of attempt {attempt - 1}: is the disk still there?")
        store.make()
        mine = Fence(attempt, uuid.uuid4().hex)
        (store.directory / FENCE).write_bytes(json.dumps(mine._asdict()).encode())
    except STORE_ERRORS as error:
        raise store_error(directory, error) from error
    return mine


def read_fence(directory: Location) -> Fence | None:
    """Return who may publish, None when nobody said.

    Raises:
        OSError: The store does not answer.
    """
    path = StoragePath.of(directory) / FENCE
    try:
        document = json.loads(path.read_bytes())
        return Fence(int(document["attempt"]), str(document["id"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        # Whoever cannot read it does not publish; retried, since another program may be writing it.
        raise OSError(f"{path} cannot be read ({error!r})") from error


@dataclass(frozen=True)
class Permit:
    """What an attempt knows of its right to publish.

    Attributes:
        directory: Where it publishes.
        attempt: Its number.
        held: The fence that was put up for it; None when there is none.
    """

    directory: Location
    attempt: int
    held: Fence | None

    def check(self) -> None:
        """Look at the fence as it is now.

        Raises:
            StaleAttemptError: Another attempt holds it.
            OSError: The store does not answer, or has lost its fence.
        """
        now = read_fence(self.directory)
        if now is None:
            if self.held is not None:
                raise FileNotFoundError(f"{FENCE} is gone from {self.directory}: is the disk still there?")
        elif now.attempt > self.attempt or (self.held is not None and now.id != self.held.id):
            raise StaleAttemptError(str(self.directory), self.attempt, now.attempt)
