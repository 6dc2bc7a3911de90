"""What ranks say in words: the same words of eight ranks become one line. Pure, apart from what it remembers."""

import re
from dataclasses import dataclass, field

from mirrorspark.training.protocol.words import ranks_in_words

# Long enough for all ranks of a cluster to say the same, short enough to be live.
_GATHER_SECONDS = 1.0
# What is repeated within this time after it was shown is counted, and shown once more at its end.
_QUIET_SECONDS = 60.0

# What differs between two ranks that say the same: addresses, ports, ranks, process ids.
_DIFFERING = re.compile(r"0x[0-9a-f]+|\brank \d+|:\d{4,5}\b|\bpid \d+|\bport \d+", re.IGNORECASE)


def sense_of(text: str) -> str:
    """Return what two ranks that say the same have in common."""
    return _DIFFERING.sub("#", text)


@dataclass
class _Group:
    text: str
    due: float
    ranks: list[int] = field(default_factory=list)
    is_shown: bool = False


class Messages:
    """Gathers what ranks say for a moment, and gives it out once with the ranks that said it."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def add(self, sense: str, rank: int, text: str, now: float) -> None:
        """Take a message.

        Args:
            sense: What two messages share that are the same; see :func:`sense_of`.
            rank: Who says so.
            text: What follows the ranks in the line; that of the first of them is shown.
            now: Seconds; monotonic.
        """
        group = self._groups.setdefault(sense, _Group(text, now + _GATHER_SECONDS))
        group.ranks.append(rank)

    def lines(self, now: float, *, everything: bool = False) -> list[str]:
        """Return the lines that are due, in the order in which they were first said.

        Args:
            now: Seconds; monotonic.
            everything: What is not due yet as well, except for repetitions.
        """
        found = []
        for sense, group in list(self._groups.items()):
            if not group.ranks and now >= group.due:
                del self._groups[sense]
            elif group.ranks and (now >= group.due or (everything and not group.is_shown)):
                times = f" ({len(group.ranks):,} times more)" if group.is_shown else ""
                found.append(f"{ranks_in_words(group.ranks)}{group.text}{times}")
                group.ranks, group.is_shown, group.due = [], True, now + _QUIET_SECONDS
        return found
