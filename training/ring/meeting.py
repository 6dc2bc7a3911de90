"""How the workers of a ring find each other: each tells the driver where it listens, and the driver tells all."""

import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from mirrorspark.training.protocol.activity import Activity
from mirrorspark.training.protocol.event_client import EventClient
from mirrorspark.training.protocol.events import Command
from mirrorspark.training.protocol.words import ranks_in_words
from mirrorspark.training.ring.errors import RingConnectError


class AddressBook:
    """The driver's list of where each rank listens.

    Attributes:
        has_news: Whether a rank has been added since the last :meth:`command`.
    """

    def __init__(self, ranks: int) -> None:
        self.has_news = False
        self._addresses: list[str | None] = [None] * ranks

    def add(self, rank: int, address: str) -> None:
        """Note where ``rank`` listens."""
        self._addresses[rank] = address
        self.has_news = True

    def is_complete(self) -> bool:
        """Whether all ranks have told."""
        return all(self._addresses)

    def command(self) -> Command:
        """Return the command with all addresses known so far; null stands for a rank that is still to come."""
        self.has_news = False
        return {"command": "peers", "addresses": list(self._addresses)}


@dataclass(frozen=True)
class Meeting:
    """A worker's way to the others: it tells the driver where it listens, and waits for the addresses of all.

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
