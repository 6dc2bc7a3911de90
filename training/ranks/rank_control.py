"""What the process of a rank hands to the training in it: whom to tell, whom to meet, what it does, when to stop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from training.channel.events import Command, EventClient
from training.fitting.activity import Activity
from training.fitting.ring_errors import RingConnectError
from training.live.messages import ranks_in_words

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
class Meeting:
    """How this rank finds the others: each tells the driver where it listens, and the driver tells all of them.

    Attributes:
        rank: Which rank this is.
        host: Where the others reach it.
        events: Tells the driver.
        heard: What the driver said: commands ``peers``, the last of which names all ranks.
        activity: Is told who is waited for.
    """

    rank: int
    host: str
    events: EventClient
    heard: SimpleQueue[Command]
    activity: Activity

    def peers(self, port: int, timeout_seconds: float) -> list[str]:
        """Tell where this rank listens, and return ``host:port`` of all ranks, in their order, when all have told.

        Args:
            port: Of this rank.
            timeout_seconds: Longest time until all have told.

        Raises:
            RingConnectError: A rank has not told in time, or the driver does not say who has.
        """
        self.events.send({"event": "listening", "address": f"{self.host}:{port}"})
        deadline = time.monotonic() + timeout_seconds
        addresses: list[str | None] = []
        while not (addresses and all(addresses)):
            absent = [rank for rank, address in enumerate(addresses) if not address]
            with self.activity.waiting_for(f"rank {absent[0]}" if absent else "the driver"):
                try:
                    addresses = self.heard.get(timeout=max(0.0, deadline - time.monotonic()))["addresses"]
                except Empty:
                    raise self._not_met(absent, timeout_seconds) from None
        return [address for address in addresses if address]

    def _not_met(self, absent: list[int], seconds: float) -> RingConnectError:
        if not absent:
            return RingConnectError(self.rank, f"has not heard from the driver where the others are in {seconds:g} s")
        others = f", nor {ranks_in_words(absent[1:])}" if absent[1:] else ""
        return RingConnectError(absent[0], f"has not told where it listens in {seconds:g} s{others}")


@dataclass(frozen=True)
class RankControl:
    """The training's side of its rank.

    Attributes:
        rank: Which rank this is.
        events: Tells the driver.
        stop_request: Whether to stop; ranks may learn of it at different steps, and have to agree on one.
        activity: What is being done; the driver hears of it every two seconds.
        payload: What came along with the plan, for a training that is not ours.
        meeting: How to find the other ranks; None where ``TF_CONFIG`` names them.
    """

    rank: int
    events: EventClient
    stop_request: StopRequest
    activity: Activity
    payload: bytes | None = None
    meeting: Meeting | None = None
