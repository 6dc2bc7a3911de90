"""What is known of a variant's last requests, and whether it may go on: pure functions over numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mirrorspark.lifecycle.experiments.intervals import Moments, difference_of_means, mixture_precision

FALSE_STOPS = 0.01
"""Most variants of equal scores that are stopped for them, however long and often they are looked at."""


@dataclass(frozen=True)
class LiveChecks:
    """Limits for a variant; a variant beyond one is stopped. None is no limit.

    Attributes:
        window: Last requests of a variant that are looked at; scores are compared in rounds of so many.
        min_requests: Fewest requests of a variant that are judged.
        failures_at_most: Largest share of its requests that it failed to answer.
        p99_ms: Largest 99th percentile of their times in milliseconds, from the request to its answer.
        score_change_at_most: Largest difference between its mean score and the control's, beyond what chance explains.
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


@dataclass
class Window:
    """The last requests of a variant.

    Attributes:
        most: How many are kept.
    """

    most: int
    _last: deque[tuple[bool, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._last = deque(maxlen=self.most)

    def add(self, seconds: float, *, has_failed: bool) -> None:
        """Take a request and its time."""
        self._last.append((has_failed, seconds))

    def measured(self) -> Measured:
        """Return what the last requests were."""
        if not self._last:
            return Measured(0, 0.0, math.nan)
        failed, seconds = np.array(self._last, np.float64).T
        return Measured(len(self._last), float(failed.mean()), float(np.percentile(seconds, 99)) * 1000)


@dataclass(frozen=True)
class Measured:
    """Numbers of a window.

    Attributes:
        requests: Requests in it.
        failures: Share of these that failed.
        p99_ms: 99th percentile of their times in milliseconds; NaN without a request.
    """

    requests: int
    failures: float
    p99_ms: float


@dataclass
class Scores:
    """Mean and variance of the scores of requests, without the scores themselves (Welford 1962).

    Attributes:
        requests: Requests that were answered.
        units: Those of them whose score is a number.
        mean: Mean of these.
    """

    requests: int = 0
    units: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, scores: Sequence[float]) -> None:
        """Take the scores of a request's rows; their mean counts."""
        self.requests += 1
        score = sum(scores) / len(scores) if scores else math.nan
        if math.isfinite(score):
            self.units += 1
            change = score - self.mean
            self.mean += change / self.units
            self._squares += change * (score - self.mean)

    def moments(self) -> Moments:
        """Return them as an analysis takes them; at least two requests have a score."""
        return Moments(self.units, self.mean, self._squares / (self.units - 1))


@dataclass
class Comparison:
    """The scores of a variant and, over the same time, of the control: in rounds, so that a late change is found.

    The rounds share ``FALSE_STOPS``: the k-th has the k(k+1)-th part of it, and its interval holds at all looks.
    """

    number: int = 1
    variant: Scores = field(default_factory=Scores)
    control: Scores = field(default_factory=Scores)

    def broken(self, checks: LiveChecks) -> str | None:
        """Return in words how the scores differ beyond limit and chance; None if they do not, or too little is known.

        A round that has a window's number of requests of the variant ends here, and the next one begins.
        """
        reason = self._difference(checks)
        if self.variant.requests >= checks.window:
            self.number, self.variant, self.control = self.number + 1, Scores(), Scores()
        return reason

    def _difference(self, checks: LiveChecks) -> str | None:
        variant, control, limit = self.variant, self.control, checks.score_change_at_most
        if limit is None or control.units < 2 or min(variant.requests, control.requests) < checks.min_requests:
            return None
        if variant.units < 2:
            return f"{variant.requests} requests have no score that is a number, and those of the control have"
        level = FALSE_STOPS / (self.number * (self.number + 1))
        difference = difference_of_means(control.moments(), variant.moments())
        low, high = difference.always_valid(level, mixture_precision(2 * checks.window, FALSE_STOPS))
        if low <= limit and high >= -limit:
            return None
        return (
            f"the mean score is {variant.mean:.4g}, and {control.mean:.4g} of the control: with what chance "
            f"explains they differ by {low:.3g} to {high:.3g}, at most {limit:g} may be"
        )


def broken_check(variant: Measured, control: Measured, checks: LiveChecks) -> str | None:
    """Return in words which check a variant does not pass; None if it passes all, or too little is known.

    Both share the processor and the queue, so a limit that the control is beyond, too, is not the variant's fault.
    """
    if variant.requests < checks.min_requests:
        return None
    failures, p99_ms = checks.failures_at_most, checks.p99_ms
    if failures is not None and variant.failures > failures and not control.failures > failures:
        return f"{variant.failures:.1%} of {variant.requests} requests failed, at most {failures:.1%} may"
    if p99_ms is not None and variant.p99_ms > p99_ms and not control.p99_ms > p99_ms:
        return f"99 % of {variant.requests} requests took up to {variant.p99_ms:.1f} ms, at most {p99_ms:g} may be"
    return None
