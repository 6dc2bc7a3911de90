"""The channel between the ranks and the driver: JSON lines over TCP, open only to those that know the run's token.

The driver listens on one interface (loopback for a local session, the driver's own address for a cluster). Ranks that
cannot reach it send the same bytes through files (:mod:`training.protocol.messages.folder_stream`). Both sides
prove that they know the token without sending it (HMAC over both sides' nonces): a rank before its events are accepted,
the driver before it gets events or is obeyed. Nothing is unpickled. Lines are bounded.

Guarantees: sending never waits. An event arrives at most once, and a client's events arrive in the order of sending.
Events that are unacknowledged when the connection breaks are sent again over the next one, except those of
:data:`DROPPABLE`, which the next event of the kind supersedes. A client whose queue is full drops these first.
Commands go to the tasks; only ``peers`` goes to the ranks themselves. Commands of :data:`RETAINED` also reach clients
that connect later, or again; the others reach only connected clients.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mirrorspark.clear_error import ClearError

# Limit of a line after the handshake.
LINE_BYTES = 1 << 20

# Events that may be lost: the next one of the kind supersedes them.
DROPPABLE = frozenset({"progress", "validation", "alive", "system"})

# Commands that also reach a client that connects later, or again. The last one of each kind counts.
RETAINED = frozenset({"stop", "abort", "peers"})
# Commands for the ranks themselves, which wait for them; they need not pass through the tasks.
FOR_RANKS = frozenset({"peers"})

# Values that the driver counts with; the others, such as a loss, are shown as they are and need not be finite.
_COUNTED = frozenset(
    {"attempt", "beats", "collectives", "epoch", "rank", "step", "step_in_epoch", "steps", "time", "waiting_seconds"}
)
# More no column, no clock and no metric store holds.
_LARGEST = 2**63 - 1

Event = dict[str, Any]
Command = dict[str, Any]
Sender = Literal["rank", "task"]


@dataclass(frozen=True)
class EventAddress:
    """The address of the driver's event server, and the secret that opens the channel.

    Attributes:
        folder: Folder of the streams by which clients reach it; None for a connection to host and port.
    """

    host: str
    port: int
    token: str
    folder: str | None = None

    def __repr__(self) -> str:
        """Return the address without the token, since this text lands in logs."""
        return f"EventAddress({self.folder or f'{self.host}:{self.port}'})"


class OddLineError(ClearError, ValueError):
    """A line of a proven client is not an event, or has a number that cannot be counted with; names the rank."""


def event_of(line: bytes) -> tuple[int, bool, Event]:
    """Return the number of an event among those of its client, whether it wants an answer, and the event.

    Raises:
        OddLineError: The line has another form, or a number that overflows.
    """
    try:
        number, needs_answer, event = json.loads(line)
        problem = _problem(number, event)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise OddLineError(f"a client sent a line that is not an event: {str(error)[:200]}") from error
    if problem is not None:
        raise OddLineError(f"{_sender(event)} sent an event that cannot be read: {problem}")
    return number, bool(needs_answer), event


def _problem(number: object, event: object) -> str | None:
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return "it is not an object with the kind of an event"
    if type(number) is not int or not 0 < number <= _LARGEST:
        return f"its number is {str(number)[:40]}, and not a whole number from 1"
    for name in _COUNTED & event.keys():
        value = event[name]
        if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
            return f"its {name} is {str(value)[:40]}, and not a finite number"
    for name, value in event.items():
        if any(type(one) is int and abs(one) > _LARGEST for one in _leaves(value)):
            return f"its {name} has a number of more than 64 bits"
    return None


def _leaves(value: object) -> Iterator[object]:
    """Yield the numbers and texts in a value of JSON, without recursion: it may be as the parser takes."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        else:
            yield one


def _sender(event: object) -> str:
    rank = event.get("rank") if isinstance(event, dict) else None
    return f"rank {rank}" if type(rank) is int and 0 <= rank <= _LARGEST else "a client"
