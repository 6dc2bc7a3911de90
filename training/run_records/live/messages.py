"""Groups the ranks' messages: equal messages of several ranks become one line. No I/O."""

import re
from dataclasses import dataclass, field

from mirrorspark.training.protocol.outcomes import ranks_in_words

# Long enough for all ranks of a cluster to send the same message, short enough to be live.
_GATHER_SECONDS = 1.0
# Repetitions within this time after a message was shown are counted, and shown once at its end.
_QUIET_SECONDS = 60.0

# Parts that differ between equal messages of two ranks: addresses, ports, ranks, process ids.
_DIFFERING = re.compile(r"0x[0-9a-f]+|\brank \d+|:\d{4,5}\b|\bpid \d+|\bport \d+", re.IGNORECASE)


def message_key(text: str) -> str:
    """Return ``text`` without the parts that differ between ranks."""
    return _DIFFERING.sub("#", text)


@dataclass
class _Group:
    text: str
    due: float
    ranks: list[int] = field(default_factory=list)
    is_shown: bool = False


class Messages:
    """Collects messages for a moment, and returns equal ones once with their ranks."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def add(self, key: str, rank: int, text: str, now: float) -> None:
        """Add a message.

        Args:
            key: Equal for equal messages; see :func:`message_key`.
            rank: The sender.
            text: Follows the ranks in the line; that of the first sender is shown.
            now: Monotonic seconds.
        """
        group = self._groups.setdefault(key, _Group(text, now + _GATHER_SECONDS))
        group.ranks.append(rank)

    def lines(self, now: float, *, everything: bool = False) -> list[str]:
        """Return the lines that are due, in the order of their first message.

        Args:
            now: Monotonic seconds.
            everything: Also return lines that are not due yet, except for repetitions.
        """
        found = []
        for key, group in list(self._groups.items()):
            if not group.ranks and now >= group.due:
                del self._groups[key]
            elif group.ranks and (now >= group.due or (everything and not group.is_shown)):
                times = f" ({len(group.ranks):,} times more)" if group.is_shown else ""
                found.append(f"{ranks_in_words(group.ranks)}{group.text}{times}")
                group.ranks, group.is_shown, group.due = [], True, now + _QUIET_SECONDS
        return found
