"""Units and days that an experiment needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import stats  # type: ignore[import-untyped]

from mirrorspark.lifecycle.experiments.definition import ExperimentError
from mirrorspark.lifecycle.experiments.intervals import planned_half_width


@dataclass(frozen=True)
class ExperimentPlan:
    """The size of an experiment.

    Attributes:
        units: Number of units by variant.
        days: Days until these units have been exposed; None if the units per day are not given. The window of the
            last actions comes on top.
    """

    units: Mapping[str, int]
    days: int | None

    @property
    def total_units(self) -> int:
        """Number of units of all variants."""
        return sum(self.units.values())


def plan_experiment(
    weights: Mapping[str, float],
    *,
    effect: float,
    rate: float | None = None,
    deviation: float | None = None,
    confidence: float = 0.95,
    power: float = 0.8,
    peeking: bool = False,
    correlation: float = 0.0,
    units_per_day: float | None = None,
) -> ExperimentPlan:
    """Return the number of units by which each variant with an effect is found with a probability of ``power``.

    The formula is that of two means with known variances, n = (z(1 - alpha / 2) + z(power))² (v₁ / n₁ + v₂ / n₂) / d²,
    with alpha divided by the number of variants without the control (Bonferroni), as in the analysis.

    Args:
        weights: Weight of each variant, the control first.
        effect: The smallest difference to the control that matters, in the metric's unit: 0.01 is a percentage point.
        rate: Share of units that convert in the control, for a metric of 0 or 1.
        deviation: Standard deviation of the metric between units, for any other one.
        confidence: Level of all intervals together.
        power: Probability to find the effect.
        peeking: Whether the always-valid intervals decide; they need almost twice the units, if nobody looks earlier.
        correlation: Correlation of the metric with the covariate that CUPED takes; it saves its square.
        units_per_day: New units that are exposed in a day, all variants together.

    Raises:
        ExperimentError: A number is out of range, both or neither of rate and deviation are given, or there is no
            second variant with a weight.
    """
    _check(weights, effect, rate, deviation, confidence, power, correlation, units_per_day)
    total_weight, (control, *others) = sum(weights.values()), weights.values()
    variance = rate * (1 - rate) if rate is not None else (deviation or 0.0) ** 2
    other_variance = (rate + effect) * (1 - rate - effect) if rate is not None else variance
    alpha = 1 - confidence
    each_alpha = alpha / len(others)
    bound = planned_half_width(each_alpha, alpha) if peeking else stats.norm.ppf(1 - each_alpha / 2)
    distance = (bound + stats.norm.ppf(power)) / effect
    spread = max(variance / control + other_variance / other for other in others) * total_weight
    total = distance**2 * spread * (1 - correlation**2)
    units = {name: max(2, math.ceil(total * weight / total_weight)) for name, weight in weights.items()}
    days = None if units_per_day is None else math.ceil(sum(units.values()) / units_per_day)
    return ExperimentPlan(units, days)


def _check(
    weights: Mapping[str, float],
    effect: float,
    rate: float | None,
    deviation: float | None,
    confidence: float,
    power: float,
    correlation: float,
    units_per_day: float | None,
) -> None:
    if len(weights) < 2 or not all(weight > 0 for weight in weights.values()):
        raise ExperimentError(f"the weights are {dict(weights)}; give a control and another variant, each above 0")
    if not math.isfinite(effect) or effect == 0:
        raise ExperimentError(f"effect is {effect}; give the smallest difference that matters")
    if (rate is None) == (deviation is None):
        raise ExperimentError(f"rate is {rate} and deviation {deviation}; give one of them")
    if rate is not None and not (0 < rate < 1 and 0 < rate + effect < 1):
        raise ExperimentError(f"rate is {rate} and with the effect {rate + effect}; both lie between 0 and 1")
    if deviation is not None and not 0 < deviation < math.inf:
        raise ExperimentError(f"deviation is {deviation}; use a number above 0")
    for name, value in (("confidence", confidence), ("power", power)):
        if not 0 < value < 1:
            raise ExperimentError(f"{name} is {value}; use a share between 0 and 1")
    if not -1 < correlation < 1:
        raise ExperimentError(f"correlation is {correlation}; use a number between -1 and 1")
    if units_per_day is not None and not units_per_day > 0:
        raise ExperimentError(f"units_per_day is {units_per_day}; use a number above 0")
