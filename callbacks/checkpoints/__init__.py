"""Checkpoints on any store: snapshot, publication, commit, fencing and download.

Only committed checkpoints count, and those that a replaced attempt commits later do not.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.callbacks.checkpoints import (
        checkpoint_store,
        commit,
        fencing,
        metric_states,
        retention,
        training_state,
    )
    from mirrorspark.callbacks.checkpoints.commit import CheckpointDamagedError, Mode, read_committed
    from mirrorspark.callbacks.checkpoints.fetching import fetch, fetch_latest
    from mirrorspark.callbacks.checkpoints.publisher import CheckpointPublisher, Pending, RetentionPolicy
    from mirrorspark.callbacks.checkpoints.snapshot import Snapshot
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CheckpointDamagedError",
    "CheckpointPublisher",
    "Mode",
    "Pending",
    "RetentionPolicy",
    "Snapshot",
    "checkpoint_store",
    "commit",
    "fencing",
    "fetch",
    "fetch_latest",
    "metric_states",
    "read_committed",
    "retention",
    "training_state",
]
