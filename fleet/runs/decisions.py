"""The decisions of a fleet's run, without a database or a file: claims, remaining work, and the time to stop."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import floor

# A full disk or a store without access fails every microbatch, after Spark's four tries of each.
_MOST_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class Standing:
    """A microbatch in the ledger.

    Attributes:
        number: Number of the microbatch, from 0.
        state: ``waiting``, ``running`` or ``failed``; ``done`` ones are left out.
        fence: Number of attempts so far.
        lease_until: When the lease of the last attempt runs out.
    """

    number: int
    state: str
    fence: int
    lease_until: float


def is_held(standing: Standing, now: float) -> bool:
    """Return whether a driver works on the microbatch, judged by its lease."""
    return standing.state == "running" and standing.lease_until > now


def to_take(standings: Iterable[Standing], now: float, count: int, tried: Collection[int]) -> list[Standing]:
    """Return up to ``count`` microbatches that a driver may take: nobody holds them, and it has not tried them."""
    free = [one for one in standings if not is_held(one, now) and one.number not in tried]
    # Microbatches that have failed come last, because they may fail again.
    return sorted(free, key=lambda one: (one.state == "failed", one.number))[:count]


def microbatches_left(count: int, published: Collection[int]) -> list[int]:
    """Return the microbatches, of ``count``, that a run still has to publish."""
    return [number for number in range(count) if number not in published]


def budget_reached(failed: int, models: int, failure_budget: float, *, fail_fast: bool) -> str | None:
    """Return why this number of failed models ends a run, or None.

    Args:
        failed: Models that have failed so far.
        models: All of them.
        failure_budget: Largest share of them that may fail.
        fail_fast: Whether one is enough.
    """
    if failed and fail_fast:
        return "fail_fast allows none"
    # Rounded up where it is next to a whole number: 0.29 * 100 is 28.999999999999996.
    most = floor(failure_budget * models + 1e-9)
    return f"failure_budget allows {failure_budget:.1%}" if failed > most else None


def hopeless(outcomes: Sequence[str], *, fail_fast: bool) -> str | None:
    """Return why the outcomes of a driver's attempts so far end it, or None."""
    if fail_fast and "failed" in outcomes:
        return "fail_fast ends the run at the first that fails"
    last = [*outcomes][-_MOST_FAILURES_IN_A_ROW:]
    if last == ["failed"] * _MOST_FAILURES_IN_A_ROW:
        return f"{_MOST_FAILURES_IN_A_ROW} have failed one after the other"
    return None
