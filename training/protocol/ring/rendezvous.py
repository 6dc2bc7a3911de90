"""The rendezvous of a ring: each rank reports its address to the driver, and the driver sends all addresses to all."""

import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from mirrorspark.training.protocol.messages import Command, EventClient
from mirrorspark.training.protocol.outcomes import Activity, ranks_in_words
from mirrorspark.training.protocol.ring.connection import open_listener
from mirrorspark.training.protocol.ring.errors import RingConnectError
from mirrorspark.training.protocol.ring.ring import Ring


class AddressBook:
    """The driver's list of the ranks' addresses; ``has_news`` is True if it changed since the last :meth:`command`."""

    def __init__(self, ranks: int) -> None:
        self.has_news = False
        self._addresses: list[str | None] = [None] * ranks

    def add(self, rank: int, address: str) -> None:
        """Set the address of ``rank``.

        Raises:
            ValueError: There is no such rank, or the address is not a text.
        """
        if not 0 <= rank < len(self._addresses) or not isinstance(address, str):
            raise ValueError(f"rank {rank} of {len(self._addresses)} reports the address {str(address)[:80]!r}")
        self._addresses[rank] = address
        self.has_news = True

    def is_complete(self) -> bool:
        """Return True if every rank has an address."""
        return all(self._addresses)

    def command(self) -> Command:
        """Return the command with all addresses so far; null stands for a missing one."""
        self.has_news = False
        return {"command": "peers", "addresses": list(self._addresses)}


@dataclass(frozen=True)
class Rendezvous:
    """A rank's side of the rendezvous.

    Attributes:
        host: This rank's host, as the others reach it.
        events: The channel to the driver.
        commands: Received commands ``peers``; the last one has all addresses.
        activity: Shows the rank that is waited for.
    """

    rank: int
    host: str
    events: EventClient
    commands: SimpleQueue[Command]
    activity: Activity

    def connect(self, token: str, timeout_seconds: float, limit_seconds: float) -> Ring:
        """Return the ring of all ranks; an attempt has one. See `Ring.connect`.

        Raises:
            RingConnectError: A rank did not connect in time.
        """
        # The other ranks connect as they have the address, so it is reported only while this rank listens.
        with open_listener(self.host) as listener:
            return Ring.connect(
                self.rank,
                self.exchange_addresses(listener.getsockname()[1], timeout_seconds),
                token,
                listener=listener,
                timeout_seconds=timeout_seconds,
                limit_seconds=limit_seconds,
                observer=self.activity,
            )

    def exchange_addresses(self, port: int, timeout_seconds: float) -> list[str]:
        """Report this rank's ``port``, and return ``host:port`` of all ranks, in the order of the ranks.

        Raises:
            RingConnectError: A rank has not reported in time, or the driver does not answer.
        """
        self.events.send({"event": "listening", "address": f"{self.host}:{port}"})
        deadline = time.monotonic() + timeout_seconds
        addresses: list[str | None] = []
        while not (addresses and all(addresses)):
            missing = [rank for rank, address in enumerate(addresses) if not address]
            with self.activity.waiting_for(f"rank {missing[0]}" if missing else "the driver"):
                try:
                    addresses = self.commands.get(timeout=max(0.0, deadline - time.monotonic()))["addresses"]
                except Empty:
                    raise self._timeout_error(missing, timeout_seconds) from None
        return [address for address in addresses if address]

    def _timeout_error(self, missing: list[int], seconds: float) -> RingConnectError:
        if not missing:
            return RingConnectError(self.rank, f"has received no addresses from the driver in {seconds:g} s")
        others = f", nor {ranks_in_words(missing[1:])}" if missing[1:] else ""
        return RingConnectError(missing[0], f"has not reported its address in {seconds:g} s{others}")
