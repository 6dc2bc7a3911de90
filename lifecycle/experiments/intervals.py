"""Differences between two variants with fixed-horizon and always-valid intervals: functions of numbers or of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats  # type: ignore[import-untyped]

Numbers = Any
"""A float, or float64 ``[tests]``: formulas hold for one test and, in simulations, for many at once."""


@dataclass(frozen=True)
class Moments:
    """Sums over the units of a variant, for the analysis.

    Attributes:
        units: Number of units.
        mean: Mean of the metric.
        variance: Variance of the metric in the sample: divided by the units less one.
        before_mean: Mean of the covariate, for example the metric before the exposure; None without one.
        before_variance: Its variance in the sample.
        covariance: Covariance of covariate and metric in the sample.
    """

    units: Numbers
    mean: Numbers
    variance: Numbers
    before_mean: Numbers = None
    before_variance: Numbers = None
    covariance: Numbers = None


@dataclass(frozen=True)
class Difference:
    """An estimated difference, treatment minus control.

    Attributes:
        centre: Centre of its intervals.
        error: Standard error.
        degrees: Degrees of freedom of Student's t; infinite for the normal distribution.
        units: Number of units of both.
    """

    centre: Numbers
    error: Numbers
    degrees: Numbers
    units: Numbers

    def fixed(self, alpha: float) -> tuple[Numbers, Numbers]:
        """Return the interval for one look at a number of units that was planned: Welch's, at level 1 - ``alpha``."""
        half = stats.t.ppf(1 - alpha / 2, self.degrees) * self.error
        return self.centre - half, self.centre + half

    def fixed_p_value(self) -> Numbers:
        """Return the two-sided p-value to which the fixed interval belongs."""
        return 2 * stats.t.sf(np.abs(self.centre) / self.error, self.degrees)

    def always_valid(self, alpha: float, precision: float) -> tuple[Numbers, Numbers]:
        """Return the interval that holds at all looks at once, at level 1 - ``alpha``, for many units.

        It is the confidence sequence of a normal mixture: Robbins (1970), "Statistical methods related to the law of
        the iterated logarithm"; as mSPRT in Johari, Koomen, Pekelis and Walsh (2022), "Always valid inference:
        continuous monitoring of A/B tests", Operations Research 70; with estimated variance, asymptotically valid, in
        Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), "Time-uniform central limit theory and asymptotic
        confidence sequences", Annals of Statistics 52, equation (2).

        Args:
            alpha: The share of experiments whose interval misses the truth at any look is at most this.
            precision: Result of :func:`mixture_precision`.
        """
        half = self.error * np.sqrt(_squared_width(self.units * precision, alpha))
        return self.centre - half, self.centre + half

    def always_valid_p_value(self, precision: float) -> Numbers:
        """Return the p-value to which the always-valid interval belongs; the smallest one of all looks is valid."""
        information = self.units * precision
        squared = (self.centre / self.error) ** 2
        log_ratio = squared / 2 * information / (1 + information) - np.log1p(information) / 2
        return np.exp(-np.maximum(log_ratio, 0.0))


def mixture_precision(planned_units: float, alpha: float) -> float:
    """Return the precision of the mixture whose always-valid interval is narrowest at a number of units.

    Any precision that does not depend on the data gives valid intervals (Waudby-Smith et al. 2024, section 2.4).

    Args:
        planned_units: Number of units of both variants.
        alpha: Level of the intervals.
    """
    return (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / planned_units


def planned_half_width(alpha: float, overall_alpha: float) -> float:
    """Return half the width of the always-valid interval at the planned number of units, in standard errors."""
    return math.sqrt(_squared_width(mixture_precision(1, overall_alpha), alpha))


def _squared_width(information: Numbers, alpha: float) -> Numbers:
    return (1 + information) / information * (np.log1p(information) - 2 * math.log(alpha))


def difference_of_means(control: Moments, treatment: Moments) -> Difference:
    """Return the difference of two means with the error and the degrees of freedom of Welch (1947)."""
    # NumPy's division, which has no degrees of freedom for variances of 0, where Python's raises.
    ours, theirs = np.divide(treatment.variance, treatment.units), np.divide(control.variance, control.units)
    squared = ours + theirs
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = squared**2 / (ours**2 / (treatment.units - 1) + theirs**2 / (control.units - 1))
    return Difference(treatment.mean - control.mean, np.sqrt(squared), degrees, treatment.units + control.units)


def difference_of_proportions(
    control_units: Numbers, control_conversions: Numbers, units: Numbers, conversions: Numbers
) -> Difference:
    """Return the difference of two proportions as Agresti and Caffo (2000) do: one more unit of each outcome in each.

    The interval has its level in small samples, too, and none of width 0 where nobody converted.
    """
    ours, theirs = (conversions + 1) / (units + 2), (control_conversions + 1) / (control_units + 2)
    squared = ours * (1 - ours) / (units + 2) + theirs * (1 - theirs) / (control_units + 2)
    return Difference(ours - theirs, np.sqrt(squared), np.inf, units + control_units)


def share_above_p_value(events: int, units: int, limit: float) -> float:
    """Return a p-value of "the share of units with an event is at most ``limit``" that is valid at all looks at once.

    Its inverse is the likelihood of shares that are uniform between ``limit`` and 1, relative to that of ``limit``:
    while the hypothesis is true, it exceeds 1 / alpha at any look with a probability of at most alpha (Ville's
    inequality), for any number of independent units. Source: Robbins (1970), as in :meth:`Difference.always_valid`.
    """
    if not 0 < limit < 1:
        return float(limit > 0 or events == 0)
    others = units - events
    above = float(special.betaincc(events + 1, others + 1, limit))
    if above == 0:
        return 1.0
    log_ratio = special.betaln(events + 1, others + 1) + math.log(above)
    log_ratio -= events * math.log(limit) + (others + 1) * math.log1p(-limit)
    return math.exp(-max(float(log_ratio), 0.0))


def without_covariate(variants: Sequence[Moments]) -> tuple[list[Moments], NDArray[np.float64] | float]:
    """Return the moments of the metric without the part that its covariate explains, and the coefficient (CUPED).

    The covariate was measured before the exposure, so its mean is the same in all variants but for chance. The
    coefficient is that of the regression within variants. Source: Deng, Xu, Kohavi and Walker (2013), "Improving the
    sensitivity of online controlled experiments by utilizing pre-experiment data", equations (4) and (5).

    Args:
        variants: All variants, each with a covariate.
    """
    explained = sum((each.units - 1) * each.covariance for each in variants)
    spread = sum((each.units - 1) * each.before_variance for each in variants)
    theta = np.where(np.asarray(spread) > 0, explained / np.maximum(spread, np.finfo(float).tiny), 0.0)
    units = sum(each.units for each in variants)
    before = sum(each.units * each.before_mean for each in variants) / units
    adjusted = [
        replace(
            each,
            mean=each.mean - theta * (each.before_mean - before),
            variance=np.maximum(each.variance - 2 * theta * each.covariance + theta**2 * each.before_variance, 0.0),
        )
        for each in variants
    ]
    return adjusted, theta
