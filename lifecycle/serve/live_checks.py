"""What is known of a variant's last requests, and whether it may go on: pure functions over numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# A difference of means that chance explains in one comparison of 700.
_DEVIATIONS = 3.0


@dataclass(frozen=True)
class LiveChecks:
    """What a variant must keep to answer; of each bound, None is no bound.

    Attributes:
        window: Last requests of a variant that are looked at.
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
    _last: deque[tuple[bool, float, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._last = deque(maxlen=self.most)

    def add(self, seconds: float, *, has_failed: bool, scores: Sequence[float] = ()) -> None:
        """Take a request: its time, and the scores of its rows."""
        self._last.append((has_failed, seconds, sum(scores) / len(scores) if scores else math.nan))

    def measured(self) -> Measured:
        """Return what the last requests were."""
        if not self._last:
            return Measured(0, 0.0, math.nan, math.nan, math.nan)
        failed, seconds, scores = np.array(self._last, np.float64).T
        known = scores[np.isfinite(scores)]
        error = float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.inf
        mean = float(known.mean()) if len(known) else math.nan
        p99_ms = float(np.percentile(seconds, 99)) * 1000
        return Measured(len(self._last), float(failed.mean()), p99_ms, mean, error)


@dataclass(frozen=True)
class Measured:
    """Numbers of a window.

    Attributes:
        requests: Requests in it.
        failures: Share of these that failed.
        p99_ms: 99th percentile of their times in milliseconds; NaN without a request.
        score: Mean score of a request; NaN where there are no scores.
        score_error: Standard error of that mean.
    """

    requests: int
    failures: float
    p99_ms: float
    score: float
    score_error: float


def fault(variant: Measured, control: Measured, checks: LiveChecks) -> str | None:
    """Return in words what a variant does not keep; None if it may go on, or too little is known."""
    if variant.requests < checks.min_requests:
        return None
    if checks.failures_at_most is not None and variant.failures > checks.failures_at_most:
        return (
            f"{variant.failures:.1%} of {variant.requests} requests failed, at most {checks.failures_at_most:.1%} may"
        )
    if checks.p99_ms is not None and variant.p99_ms > checks.p99_ms:
        return (
            f"99 % of {variant.requests} requests took up to {variant.p99_ms:.1f} ms, at most {checks.p99_ms:g} may be"
        )
    if checks.score_change_at_most is None or control.requests < checks.min_requests:
        return None
    change = abs(variant.score - control.score)
    by_chance = _DEVIATIONS * math.hypot(variant.score_error, control.score_error)
    if change > checks.score_change_at_most + by_chance:
        return (
            f"the mean score is {variant.score:.4g}, and {control.score:.4g} of the control: they differ by "
            f"{change:.4g}, at most {checks.score_change_at_most:g} may be beyond chance ({by_chance:.2g})"
        )
    return None
