"""The gates of a promotion as plain values: the bounds of a candidate, alone and against the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mirrorspark.evaluation import is_better
from mirrorspark.lifecycle.gate.slices import OVERALL

Interval = Literal["ignore", "must_pass", "may_pass"]
"""The part that a metric's 95% interval has in a decision: none; all of it must pass; or some of it, so that only a
violation beyond chance fails."""

ALL_SLICES = "all"
MIN_EXAMPLES = 100


def direction_of(metric: str) -> int | None:
    """Return 1 if more of a metric is better, -1 if less is; None for a metric that has no better value."""
    if is_better(metric, 2.0, 1.0):
        return 1
    # A bias is better near 0, on either side.
    return -1 if is_better(metric, 1.0, 2.0) and not is_better(metric, 1.0, -2.0) else None


@dataclass(frozen=True)
class Threshold:
    """Bounds of a metric, in all rows or in slices.

    Attributes:
        metric: Name of the metric, such as ``auc``.
        at_least: Least value.
        at_most: Largest value.
        gain_at_least: Least improvement over the champion, in units of the metric. A negative one permits a loss:
            ``-0.002`` for a metric of which more is better lets it fall by 0.002, and for an error lets it rise.
        gain_share_at_least: The same as a share of the champion's value.
        slices: Names of slicings whose slices are judged, each on its own; ``("overall",)`` for all rows, which is the
            default; ``("all",)`` for all rows and every slice.
        interval: The part of the 95% interval, see :data:`Interval`.
        higher_is_better: Direction of the metric; by default that of :func:`is_better`.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    gain_at_least: float | None = None
    gain_share_at_least: float | None = None
    slices: tuple[str, ...] = (OVERALL,)
    interval: Interval = "ignore"
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        bounds = (self.at_least, self.at_most, self.gain_at_least, self.gain_share_at_least)
        if all(bound is None for bound in bounds):
            raise ValueError(f"the threshold of {self.metric!r} has no bound; give at_least, at_most or a gain")
        if any(bound is not None and bound != bound for bound in bounds):
            raise ValueError(f"a bound of {self.metric!r} is NaN; give a number")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(
                f"{self.metric!r} is to be at least {self.at_least} and at most {self.at_most}; no value can be both"
            )
        if self.interval not in get_args(Interval):
            raise ValueError(f"interval {self.interval!r} is unknown; use one of {list(get_args(Interval))}")
        given: object = self.slices
        if isinstance(given, str) or not given:
            raise ValueError(f"slices is {given!r}; give a tuple of names of slicings, or ('{OVERALL}',)")
        if self.has_gain and self.direction is None:
            raise ValueError(
                f"{self.metric!r} has no better direction, so it has no gain; give at_least and at_most, or "
                f"higher_is_better"
            )

    @property
    def has_gain(self) -> bool:
        """True if the champion is needed."""
        return self.gain_at_least is not None or self.gain_share_at_least is not None

    @property
    def direction(self) -> int | None:
        """1 if more is better, -1 if less is; None for a metric that has no better value."""
        if self.higher_is_better is not None:
            return 1 if self.higher_is_better else -1
        return direction_of(self.metric)


@dataclass(frozen=True)
class Gap:
    """The largest distance of a metric between the slices of a slicing, for fairness.

    Attributes:
        metric: Name of the metric.
        slicing: Name of the slicing.
        at_most: Largest difference between its best and its worst slice, of those with enough examples.
    """

    metric: str
    slicing: str
    at_most: float

    def __post_init__(self) -> None:
        if not self.at_most >= 0:
            raise ValueError(f"the gap of {self.metric!r} is to be at most {self.at_most}; give zero or more")


@dataclass(frozen=True)
class Gates:
    """All that a candidate must pass.

    Attributes:
        thresholds: Bounds of metrics.
        gaps: Bounds of differences between slices.
        min_examples: A slice with fewer rows is named, and not judged. All rows together must be as many.
        latency_p99_ms: Largest 99th percentile of the time of single rows; None to measure none.
        model_megabytes: Largest size of the model's files, in units of 10**6 bytes.
        same_schema: Whether inputs and outputs must be those of the champion.
        parity: Whether a report of parity must be there. A report that is there must pass in any case.
    """

    thresholds: tuple[Threshold, ...] = ()
    gaps: tuple[Gap, ...] = ()
    min_examples: int = MIN_EXAMPLES
    latency_p99_ms: float | None = None
    model_megabytes: float | None = None
    same_schema: bool = True
    parity: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        object.__setattr__(self, "gaps", tuple(self.gaps))
        if self.min_examples < 1:
            raise ValueError(f"min_examples is {self.min_examples}; use one or more")

    def check_slicings(self, names: tuple[str, ...]) -> None:
        """Check that all slicings that are named exist.

        Raises:
            ValueError: One does not.
        """
        named = {name for threshold in self.thresholds for name in threshold.slices} | {
            gap.slicing for gap in self.gaps
        }
        if unknown := sorted(named - {OVERALL, ALL_SLICES, *names}):
            raise ValueError(f"the gates name the slicings {unknown}; the slices are {[OVERALL, *names]}")
