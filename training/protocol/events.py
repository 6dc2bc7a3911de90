"""The channel between the ranks and the driver: JSON lines over TCP, open only to those that know the run's token.

The driver listens on one interface (loopback for a local session, the driver's own address for a cluster). Both sides
prove that they know the token without sending it (HMAC over both sides' nonces): a rank before its events are accepted,
the driver before it gets events or is obeyed. Nothing is unpickled. Lines are bounded.

Guarantees: sending never waits. An event arrives at most once, and a client's events arrive in the order of sending.
Events that are unacknowledged when the connection breaks are sent again over the next one, except those of
:data:`DROPPABLE`, which the next event of the kind supersedes. A client whose queue is full drops these first.
Commands go to the tasks; only ``peers`` goes to the ranks themselves. Commands of :data:`RETAINED` also reach clients
that connect later, or again; the others reach only connected clients.
"""

from dataclasses import dataclass
from typing import Any, Literal

# Limit of a line after the handshake.
LINE_BYTES = 1 << 20

# Events that may be lost: the next one of the kind supersedes them.
DROPPABLE = frozenset({"progress", "validation", "alive", "system"})

# Commands that also reach a client that connects later, or again. The last one of each kind counts.
RETAINED = frozenset({"stop", "abort", "peers"})
# Commands for the ranks themselves, which wait for them; they need not pass through the tasks.
FOR_RANKS = frozenset({"peers"})

Event = dict[str, Any]
Command = dict[str, Any]
Sender = Literal["rank", "task"]


@dataclass(frozen=True)
class EventAddress:
    """The address of the driver's event server, and the secret that opens the channel."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        """Return the address without the token, since this text lands in logs."""
        return f"EventAddress({self.host}:{self.port})"
