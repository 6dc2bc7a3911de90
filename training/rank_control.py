"""What the process of a rank hands to the training that runs in it: whom to tell, what it is doing, when to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.activity import Activity
from training.events import EventClient

Outcome = dict[str, Any]

# Takes the number of completed epochs, and what else the driver is to know, and answers; does not return in a rank.
Finish = Callable[..., None]


class StopRequest:
    """Whether the training is to save a checkpoint and stop. Any thread and any signal handler may ask for it.

    There is no lock in here, since a handler interrupts the main thread anywhere, within a lock of its own too.

    Attributes:
        reason: ``driver`` or ``preempted``; None while nobody has asked this rank.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason counts."""
        self.reason = self.reason or reason

    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self.reason is not None


@dataclass(frozen=True)
class RankControl:
    """The training's side of its rank.

    Attributes:
        rank: Which rank this is.
        events: Tells the driver.
        stop_request: Whether to stop; ranks may learn of it at different steps, and have to agree on one.
        activity: What is being done; the driver hears of it every two seconds.
        payload: What came along with the plan, for a training that is not ours.
    """

    rank: int
    events: EventClient
    stop_request: StopRequest
    activity: Activity
    payload: bytes | None = None
