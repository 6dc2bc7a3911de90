"""Finish, restart or raise, decided from the attempts so far. Pure: values in, value out."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Cause = Literal["cancelled", "user", "lost", "spark", "peer"]

# Which failure of an attempt explains the others: the first cause that any of them has.
_EXPLAINING_FIRST: tuple[Cause, ...] = ("cancelled", "user", "lost", "spark", "peer")


@dataclass(frozen=True)
class RankError:
    """One failure of an attempt.

    Attributes:
        cause: ``cancelled`` (somebody ended the job), ``user`` (model, data or configuration: it would come again),
            ``lost`` (the process was killed), ``spark`` (the job failed without a word from a rank) or ``peer``
            (another rank's end, seen from here).
        rank: Who said so; None when Spark did.
        type: Class of the exception, or ``killed``.
        message: What it says.
        time: Seconds since the epoch, on the rank's clock.
        traceback: Where it was raised, as text.
        is_from_tensorflow: Whether TensorFlow's runtime raised it, and not Python code.
    """

    cause: Cause
    rank: int | None
    type: str
    message: str
    time: float
    traceback: str = ""
    is_from_tensorflow: bool = False

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> "RankError":
        """Read the event that :func:`training.rank.describe` made."""
        return cls(
            cause=event["cause"],
            rank=event["rank"],
            type=event["type"],
            message=event["message"],
            time=event["time"],
            traceback=event.get("traceback", ""),
            is_from_tensorflow=event.get("is_from_tensorflow", False),
        )


@dataclass(frozen=True)
class Attempt:
    """One launch and how it ended.

    Attributes:
        number: Counts from 1.
        epochs: Epochs completed when it finished; None when it did not.
        errors: Failures in the order of arrival.
        resumed_from: Step of the checkpoint it began with; 0 for a fresh start.
    """

    number: int
    epochs: int | None
    errors: tuple[RankError, ...]
    resumed_from: int

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self.epochs is not None

    @property
    def first_error(self) -> RankError:
        """The failure to show: the earliest that no other rank's end explains.

        Ranks whose peer is gone fail as well, and their words may arrive first.
        """
        has_lost_a_rank = any(error.cause == "lost" for error in self.errors)

        def order(error: RankError) -> tuple[int, float]:
            # TensorFlow has many words for a peer that is gone; when one is known to be, it needs none of ours.
            is_consequence = has_lost_a_rank and error.is_from_tensorflow
            return _EXPLAINING_FIRST.index("peer" if is_consequence else error.cause), error.time

        return min(self.errors, key=order)


class Decision(enum.Enum):
    """What the supervisor does next."""

    FINISH = "finish"
    RESTART = "restart"
    RAISE = "raise"


def decide(attempts: Sequence[Attempt], max_restarts: int) -> Decision:
    """Return what to do after ``attempts``, of which the last has just ended.

    A fault of the user's code ends the run at once: it would come again. So does a job that somebody cancelled. A lost
    worker restarts it, until the budget is spent.
    """
    last = attempts[-1]
    if last.finished:
        return Decision.FINISH
    if last.first_error.cause in ("cancelled", "user") or len(attempts) > max_restarts:
        return Decision.RAISE
    return Decision.RESTART
