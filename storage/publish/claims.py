"""Claims of writes on stores without renames, by which another process ends a write whose owner was taken for dead.

On a disk that process renames the staging folder, and an owner that goes on finds nothing: these functions create
nothing there, and every write is open and unclaimed. An object store, mounted or not, cannot rename, and changes one
object at a time.
So both sides write first and look second, and one of them sees the other:

- The owner creates ``open`` before anything else. It begins and commits its journal, and each time looks for a claim.
- The other process creates ``claimed``, then reads the journal, and records in ``outcome`` how it ends the write.

An owner that sees no claim after its commit is published, since whoever claims later finds the commit and finishes the
write. An owner that sees a claim changes nothing more in the target. ``open`` is deleted before all else in the folder,
and only the owner's begin creates it: later writes of an owner there have no effect, and any write deletes them.

``If-None-Match`` would let both sides create one and the same ``outcome``, and only the first succeed. Arrow's S3 does
not offer it, so two recoverers and a commit between the readings of both would still have to meet in the same moment.
"""

from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.staging import is_open, renames

_CLAIMED = "claimed"
_OUTCOME = "outcome"
_FINISHED = b"finished"
_TAKEN_BACK = b"taken back"


def claim(staging: StoragePath) -> None:
    """Announce that this process is going to end another's write, before looking at how far it got."""
    if not renames(staging):
        (staging / _CLAIMED).write_bytes(b"")


def is_claimed(staging: StoragePath) -> bool:
    """Return whether another process is ending the write."""
    return not renames(staging) and (staging / _CLAIMED).is_file()


def is_lost(staging: StoragePath) -> bool:
    """Return whether another process is ending the write or has ended it, so that the owner must not go on."""
    # In this order: of the two objects `open` is deleted first.
    return is_claimed(staging) or not is_open(staging)


def record_outcome(staging: StoragePath, *, is_finished: bool) -> None:
    """Record how a claimed write ends, for the owner may still change its journal."""
    if not renames(staging):
        (staging / _OUTCOME).write_bytes(_FINISHED if is_finished else _TAKEN_BACK)


def recorded_outcome(staging: StoragePath) -> bool | None:
    """Return whether a claimed write is to be finished, or None if that is undecided."""
    if renames(staging):
        return None
    try:
        return (staging / _OUTCOME).read_bytes() == _FINISHED
    except FileNotFoundError:
        return None
