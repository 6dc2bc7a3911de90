"""Statistics of a variant's requests, and the decision to stop it: pure functions over numbers.

A new check is a limit in :class:`LiveChecks`, a test of :class:`VariantComparison`, and its place in ``broken`` here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mirrorspark.lifecycle.experiments.intervals import (
    Moments,
    difference_of_means,
    mixture_precision,
    share_above_p_value,
)

FALSE_STOPS = 0.01
"""Largest share of variants that are stopped by chance: they keep their limits, however long and often one looks."""

# The share of requests that may take longer than ``LiveChecks.p99_ms``.
_SLOW = 0.01


@dataclass(frozen=True)
class LiveChecks:
    """Limits for a variant; a variant that is beyond one, and not by chance, is stopped. None sets no limit.

    Attributes:
        window: Requests of a variant in a round; each round is judged by itself, so that a late change is found.
        min_requests: Fewest requests of a round that are judged.
        failures_at_most: Largest share of its requests that it may fail to answer.
        p99_ms: Largest 99th percentile of their times in milliseconds, from the request to its answer.
        score_change_at_most: Largest difference between its mean score and the control's.
    """

    window: int = 2000
    min_requests: int = 200
    failures_at_most: float | None = 0.01
    p99_ms: float | None = None
    score_change_at_most: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_requests <= self.window:
            raise ValueError(f"min_requests is {self.min_requests}; use 1 to window ({self.window})")
        for name in ("failures_at_most", "p99_ms", "score_change_at_most"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; use 0 or more")
        if self.failures_at_most is not None and self.failures_at_most > 1:
            raise ValueError(f"failures_at_most is {self.failures_at_most}; use a share up to 1")

    def is_slow(self, seconds: float) -> bool:
        """Return whether a request took longer than ``p99_ms``."""
        return self.p99_ms is not None and seconds * 1000 > self.p99_ms


@dataclass
class Requests:
    """The requests of one side in a round: counts, and the mean and variance of their scores (Welford 1962).

    Attributes:
        count: Requests.
        failed: Requests without an answer.
        slow: Requests that took longer than ``LiveChecks.p99_ms``.
        units: Units whose score is a number.
        mean: Mean of these scores.
    """

    count: int = 0
    failed: int = 0
    slow: int = 0
    units: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, scores: Sequence[float] | None, *, is_slow: bool = False) -> None:
        """Take a request with the scores of its rows, of which the mean counts; None if it has failed."""
        self.count += 1
        self.slow += is_slow
        self.failed += scores is None
        score = sum(scores) / len(scores) if scores else math.nan
        if math.isfinite(score):
            self.units += 1
            change = score - self.mean
            self.mean += change / self.units
            self._squares += change * (score - self.mean)

    @property
    def answered(self) -> int:
        """Requests with an answer."""
        return self.count - self.failed

    def moments(self) -> Moments:
        """Return the scores as an analysis takes them; at least two requests have one."""
        return Moments(self.units, self.mean, self._squares / (self.units - 1))


@dataclass
class VariantComparison:
    """The requests of a variant and, over the same time, of the control: in rounds, so that a late change is found.

    The rounds share ``FALSE_STOPS``: the k-th has the k(k+1)-th part of it, which its tests share in turn. Each
    test holds at all looks.
    """

    number: int = 1
    variant: Requests = field(default_factory=Requests)
    control: Requests = field(default_factory=Requests)

    def broken(self, checks: LiveChecks) -> str | None:
        """Return the violated limits in words; None without any, or with too few requests.

        A round that has a window's number of requests of the variant ends here, and the next one begins.
        """
        reason = None
        if self.variant.count >= checks.min_requests:
            tests = (self._failures, self._times, self._scores)
            level = FALSE_STOPS / (self.number * (self.number + 1)) / len(tests)
            reason = next(filter(None, (test(checks, level) for test in tests)), None)
        if self.variant.count >= checks.window:
            self.number, self.variant, self.control = self.number + 1, Requests(), Requests()
        return reason

    def _failures(self, checks: LiveChecks, level: float) -> str | None:
        limit, count = checks.failures_at_most, self.variant.count
        if limit is None or not self._is_above(limit, self.variant.failed, self.control.failed, level):
            return None
        return f"{self.variant.failed / count:.1%} of {count} requests failed, at most {limit:.1%} may"

    def _times(self, checks: LiveChecks, level: float) -> str | None:
        count = self.variant.count
        if checks.p99_ms is None or not self._is_above(_SLOW, self.variant.slow, self.control.slow, level):
            return None
        return (
            f"{self.variant.slow / count:.1%} of {count} requests took longer than {checks.p99_ms:g} ms, "
            f"at most {_SLOW:.0%} may"
        )

    def _is_above(self, limit: float, of_variant: int, of_control: int, level: float) -> bool:
        """Return whether the share of the variant's requests is above ``limit``, and the control's is not.

        Both share the processor and the queue, so a limit that the control is beyond, too, is not the variant's fault.
        """
        if of_control > limit * self.control.count:
            return False
        return share_above_p_value(of_variant, self.variant.count, limit) <= level

    def _scores(self, checks: LiveChecks, level: float) -> str | None:
        variant, control, limit = self.variant, self.control, checks.score_change_at_most
        if limit is None or control.units < 2 or min(variant.answered, control.answered) < checks.min_requests:
            return None
        if variant.units < 2:
            return f"{variant.answered} requests have no score that is a number, and those of the control have"
        difference = difference_of_means(control.moments(), variant.moments())
        low, high = difference.always_valid(level, mixture_precision(2 * checks.window, FALSE_STOPS))
        if low <= limit and high >= -limit:
            return None
        return (
            f"the mean score is {variant.mean:.4g}, and {control.mean:.4g} of the control: with what chance "
            f"explains they differ by {low:.3g} to {high:.3g}, at most {limit:g} may be"
        )
