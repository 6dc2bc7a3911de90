"""The point from which an attempt resumes: the newest whole checkpoint, behind a fence against earlier attempts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirrorspark.callbacks.checkpoints import commit, fencing
from mirrorspark.training.protocol import AttemptPlan
from mirrorspark.training.protocol.outcomes import Attempt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FencedStart:
    """The point at which an attempt begins.

    Attributes:
        fence: Id that entitles the attempt's chief to publish.
        checkpoint: The checkpoint to resume from; None to start afresh.
        newest_step: Step of the newest checkpoint, damaged or not.
    """

    fence: str
    checkpoint: commit.CommittedCheckpoint | None
    newest_step: int


def fence_and_find_start(
    plan: AttemptPlan, earlier: Sequence[Attempt], beat: Callable[[], None], *, has_begun: bool
) -> FencedStart:
    """Put up a new fence and return the resume point; from then on no earlier attempt may publish checkpoints.

    Args:
        plan: Names the store.
        earlier: The earlier attempts.
        beat: Called whenever data has arrived from the store, since the check of a large checkpoint takes long.
        has_begun: An earlier driver of this run has used the store.

    Raises:
        OSError: The store cannot be used, or has lost its checkpoints, which a fresh start would discard for good.
        StorageError: This machine cannot open the store.
    """
    is_first = not any(attempt.workers for attempt in earlier)
    if is_first and has_begun and fencing.read_fence(plan.checkpoints) is None:
        raise FileNotFoundError(
            f"{plan.checkpoints} has no {fencing.FENCE}, though this run has put one there: is the disk mounted? Make "
            f"it available again, or start another run with resume=False (--no-resume)"
        )
    mine = fencing.fence(plan.checkpoints, 1 if is_first else len(earlier) + 1)
    beat()
    found = commit.committed(plan.checkpoints)
    beat()
    checkpoint = next((one for one in found if commit.is_whole(one, beat)), None)
    known_step = earlier[-1].committed if earlier else 0
    if checkpoint is None and known_step:
        raise FileNotFoundError(
            f"no whole checkpoint is left in {plan.checkpoints}, which held step {known_step:,}; make the store "
            f"available again, or start another run with resume=False (--no-resume)"
        )
    if checkpoint is None and has_begun:
        logger.warning("there is no whole checkpoint in %s; the training starts afresh", plan.checkpoints)
    fencing.adopt(plan.checkpoints, mine, [one.path.name for one in found])
    return FencedStart(mine.id, checkpoint, found[0].step if found else 0)
