"""What is known of a variant's last requests, and whether it may go on: pure functions over numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Deviations of a difference of means that count as chance. The last requests are compared every second, so that a bound
# for a single look would stop a good variant within hours.
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class LiveChecks:
    """Limits for a variant; a variant beyond one is stopped. None is no limit.

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
    if checks.score_change_at_most is None or control.requests < checks.min_requests or math.isnan(control.score):
        return None
    if math.isnan(variant.score):
        return f"{variant.requests} requests have no score that is a number, and those of the control have"
    change = abs(variant.score - control.score)
    by_chance = _DEVIATIONS * math.hypot(variant.score_error, control.score_error)
    if change > checks.score_change_at_most + by_chance:
        return (
            f"the mean score is {variant.score:.4g}, and {control.score:.4g} of the control: they differ by "
            f"{change:.4g}, at most {checks.score_change_at_most:g} may be beyond chance ({by_chance:.2g})"
        )
    return None
