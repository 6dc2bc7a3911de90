"""Finish, restart or raise, decided from the attempts so far. Pure: values in, value out."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Cause = Literal["user", "lost", "peer", "spark"]


@dataclass(frozen=True)
class RankError:
    """One failure of an attempt.

    Attributes:
        cause: ``user`` (model, data or configuration: it would come again), ``lost`` (the process was killed),
            ``peer`` (another rank's end, seen from here) or ``spark`` (the job failed without a word from a rank).
        rank: Who said so; None when Spark did.
        type: Class of the exception, or ``killed``.
        message: What it says.
        time: Seconds since the epoch, on the rank's clock.
        traceback: Where it was raised, as text.
    """

    cause: Cause
    rank: int | None
    type: str
    message: str
    time: float
    traceback: str = ""

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> "RankError":
        """Read the event that :func:`training.rank.describe` made."""
        return cls(
            event["cause"], event["rank"], event["type"], event["message"], event["time"], event.get("traceback", "")
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
        by_rank_of_cause = ("user", "lost", "spark", "peer")
        return min(self.errors, key=lambda error: (by_rank_of_cause.index(error.cause), error.time))


class Decision(enum.Enum):
    """What the supervisor does next."""

    FINISH = "finish"
    RESTART = "restart"
    RAISE = "raise"


def decide(attempts: Sequence[Attempt], max_restarts: int) -> Decision:
    """Return what to do after ``attempts``, of which the last has just ended.

    A fault of the user's code ends the run at once: it would come again. A lost worker restarts it, until the budget
    is spent.
    """
    last = attempts[-1]
    if last.finished:
        return Decision.FINISH
    if last.first_error.cause == "user" or len(attempts) > max_restarts:
        return Decision.RAISE
    return Decision.RESTART
