"""Times several ways to do the same work side by side, and judges them: medians, spreads, ratios, marks; and memory."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


def _nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: Its name in the table.
        work: Does it once. Where it returns a float, these are the seconds it took, without what it had to do before
            (for example start a child process); else the call is timed.
        prepare: Runs before each time, unmeasured: for example removes the files of the last time.
    """

    name: str
    work: Callable[[], object]
    prepare: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Timing:
    """Times of one contender.

    Attributes:
        name: The contender.
        seconds: Seconds of each round.
    """

    name: str
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) <= 0:
            raise ValueError(f"'{self.name}' has the times {self.seconds}; measure one round or more, each above 0 s")

    @property
    def median(self) -> float:
        """The middle one of the times, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the slowest and the fastest round, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Mark:
    """A figure to reach.

    Attributes:
        what: The comparison, in words.
        found: The figure.
        limit: The figure to reach.
        bound: The side of ``limit`` on which the figure has to be.
    """

    what: str
    found: float
    limit: float
    bound: Literal["at least", "at most"] = "at least"

    @property
    def is_met(self) -> bool:
        """True if the figure reaches the limit, or is better."""
        return self.found >= self.limit if self.bound == "at least" else self.found <= self.limit


def interleave(
    contenders: Sequence[Contender], rounds: int, *, warm_ups: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """Run every contender once per round and return the times by name.

    Rounds go through all contenders, so that a machine that grows slower or busier does so for all of them alike; each
    round begins with another one, so that none always runs behind the same neighbour.

    Args:
        contenders: The ways to do the work; names are different.
        rounds: Measurements of each.
        warm_ups: Rounds before that, which do not count: caches fill, and code is compiled.
        clock: Seconds that only grow.

    Raises:
        ValueError: Two contenders have the same name.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    if len(seconds) < len(contenders):
        raise ValueError(f"contenders {[one.name for one in contenders]} are not told apart by name; rename one")
    for number in range(-warm_ups, rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            contender.prepare()
            start = clock()
            own = contender.work()
            elapsed = clock() - start
            if number >= 0:
                seconds[contender.name].append(own if isinstance(own, float) else elapsed)
    return {name: Timing(name, tuple(times)) for name, times in seconds.items()}


def speed_ratio(timings: Mapping[str, Timing], name: str, reference: str) -> float:
    """Return the ratio of the speeds of ``name`` and ``reference``, by their medians."""
    return timings[reference].median / timings[name].median


def peak_bytes(process: int, *, root: Path = Path("/proc")) -> int:
    """Return the peak resident memory of a process, in bytes; 0 where it has ended."""
    try:
        status = (root / str(process) / "status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
