"""The analysis of an experiment: effects with intervals, the sample-ratio check, and a conclusion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats  # type: ignore[import-untyped]

from mirrorspark.lifecycle.experiments.definition import HOLDOUT, Experiment, ExperimentError
from mirrorspark.lifecycle.experiments.intervals import (
    Difference,
    Moments,
    difference_of_means,
    difference_of_proportions,
    mixture_precision,
    without_covariate,
)
from mirrorspark.spark_session import on_running_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SAMPLE_RATIO_P_VALUE = 1e-3
"""Below it, the numbers of units contradict the weights (Fabijan et al. 2019, "Diagnosing sample ratio mismatch")."""

# Where the always-valid intervals are narrowest, of an experiment without a plan.
_UNPLANNED_UNITS = 10_000

# Fewer conversions, or units that did not convert, and the intervals of proportions are rough.
_FEWEST_OUTCOMES = 10


@dataclass(frozen=True)
class Arm:
    """The results of one variant.

    Attributes:
        variant: Its name.
        moments: Units, mean and variance of the metric, and its covariate.
        conversions: Number of units that converted, if the metric is 0 or 1; otherwise None.
    """

    variant: str
    moments: Moments
    conversions: int | None = None

    @classmethod
    def of_counts(cls, variant: str, units: int, conversions: int) -> Arm:
        """Return the results of a metric that is 0 or 1.

        Raises:
            ExperimentError: There are fewer than two units, or more conversions than units.
        """
        if units < 2 or not 0 <= conversions <= units:
            raise ExperimentError(
                f"variant '{variant}' has {conversions} conversions of {units} units; give two units or more, and at "
                f"most as many conversions"
            )
        rate = conversions / units
        return cls(variant, Moments(units, rate, rate * (1 - rate) * units / (units - 1)), conversions)

    @classmethod
    def of_values(cls, variant: str, values: ArrayLike, before: ArrayLike | None = None) -> Arm:
        """Return the results of a metric from its value for each unit.

        Args:
            variant: Name of the variant.
            values: Metric of each unit, ``[units]``.
            before: Covariate of each unit, measured before its exposure, ``[units]``.

        Raises:
            ExperimentError: There are fewer than two units, a value is not a number, or the lengths differ.
        """
        metric = np.asarray(values, np.float64)
        columns = [metric] if before is None else [metric, np.asarray(before, np.float64)]
        if metric.ndim != 1 or len(metric) < 2 or any(of.shape != metric.shape for of in columns):
            raise ExperimentError(
                f"variant '{variant}' has values of shape {[of.shape for of in columns]}; give one for each of two or "
                f"more units"
            )
        if not all(np.isfinite(of).all() for of in columns):
            raise ExperimentError(
                f"variant '{variant}' has a value that is not a finite number; correct it or leave it out"
            )
        if before is None:
            return cls(variant, Moments(len(metric), float(metric.mean()), float(metric.var(ddof=1))))
        matrix = np.cov(np.stack(columns))
        moments = Moments(
            len(metric), float(metric.mean()), matrix[0, 0], float(columns[1].mean()), matrix[1, 1], matrix[0, 1]
        )
        return cls(variant, moments)

    @classmethod
    def of_row(cls, row: Mapping[str, Any], *, is_proportion: bool = False) -> Arm:
        """Return the results in a row of :func:`~lifecycle.experiments.units.variant_results`.

        Args:
            row: The row, as a mapping.
            is_proportion: Whether the metric is 0 or 1.

        Raises:
            ExperimentError: There are fewer than two units, or the metric is null or no number.
        """
        names = ("units", "mean", "variance", "before_mean", "before_variance", "covariance")
        moments = Moments(*(row.get(name) for name in names))
        if moments.units < 2 or not all(
            np.isfinite(np.nan if of is None else of) for of in (moments.mean, moments.variance)
        ):
            raise ExperimentError(
                f"variant '{row['variant']}' has {moments.units} units with a mean of {moments.mean} and a variance of "
                f"{moments.variance}; an analysis needs two units or more, and numbers"
            )
        return cls(row["variant"], moments, row["conversions"] if is_proportion else None)


@dataclass(frozen=True)
class Effect:
    """The effect of a variant: its difference to the control, with intervals.

    Attributes:
        variant: Name of the variant.
        difference: Mean of the variant minus that of the control, less what a covariate explains.
        relative: The difference divided by the control's mean; None if that is 0.
        low: Lower end of the fixed-horizon interval: right for one look at the planned number of units.
        high: Its upper end.
        p_value: Its p-value.
        always_low: Lower end of the always-valid interval: right for any number of looks.
        always_high: Its upper end.
        always_p_value: Its p-value.
        variance_left: Variance that is left after CUPED, as a share; 1 without a covariate.
    """

    variant: str
    difference: float
    relative: float | None
    low: float
    high: float
    p_value: float
    always_low: float
    always_high: float
    always_p_value: float
    variance_left: float

    @property
    def is_significant(self) -> bool:
        """True if the fixed-horizon interval excludes 0, which counts only at the planned number of units."""
        return not self.low <= 0 <= self.high

    @property
    def is_always_significant(self) -> bool:
        """True if the always-valid interval excludes 0."""
        return not self.always_low <= 0 <= self.always_high


@dataclass(frozen=True)
class SampleRatio:
    """The numbers of units next to the expected ones by the weights.

    Attributes:
        units: Number of units by variant.
        expected: Expected number by variant.
        p_value: P-value of the chi-square test.
    """

    units: Mapping[str, int]
    expected: Mapping[str, float]
    p_value: float

    @property
    def is_mismatch(self) -> bool:
        """True if the numbers contradict the weights: something other than the assignment chose units."""
        return self.p_value < SAMPLE_RATIO_P_VALUE


@dataclass(frozen=True)
class Analysis:
    """Result of an experiment.

    Attributes:
        experiment: Name of the experiment.
        metric: Name of the metric.
        control: Name of the control.
        arms: Results by variant, the control first.
        means: Mean of each variant, less what a covariate explains.
        effects: Effects of each other variant.
        sample_ratio: The check of the numbers of units.
        confidence: Level of the intervals, for all effects together.
        planned_units: Number of units at which the experiment ends; None without a plan.
        higher_is_better: Whether a larger metric is better.
        notes: Remarks for readers of the numbers, sentences.
    """

    experiment: str
    metric: str
    control: str
    arms: tuple[Arm, ...]
    means: Mapping[str, float]
    effects: tuple[Effect, ...]
    sample_ratio: SampleRatio
    confidence: float
    planned_units: int | None
    higher_is_better: bool
    notes: tuple[str, ...]

    @property
    def units(self) -> int:
        """Number of units of all variants that are expected to have some."""
        return sum(self.sample_ratio.units.values())

    @property
    def has_planned_units(self) -> bool:
        """True if the planned number of units is reached, so that the fixed-horizon intervals are right."""
        return self.planned_units is not None and self.units >= self.planned_units

    @property
    def is_proportion(self) -> bool:
        """True if the metric is 0 or 1."""
        return all(arm.conversions is not None for arm in self.arms)

    @property
    def conclusion(self) -> str:
        """Result of the experiment, in one sentence."""
        from mirrorspark.lifecycle.experiments.conclusion import conclusion_of

        return conclusion_of(self)


@on_running_session
def arms_of_results(results: DataFrame, experiment: Experiment, *, is_proportion: bool = False) -> list[Arm]:
    """Return the results of an experiment from a table of :func:`~lifecycle.experiments.units.variant_results`.

    Args:
        results: The table; rows of other experiments do not count.
        experiment: The experiment.
        is_proportion: Whether the metric is 0 or 1, such as ``converted``.

    Raises:
        ExperimentError: A variant has fewer than two units.
    """
    from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

    rows = results.where((F.col("experiment") == experiment.name) & (F.col("variant") != HOLDOUT)).collect()
    return [Arm.of_row(row.asDict(), is_proportion=is_proportion) for row in rows]


def analyse_experiment(
    experiment: Experiment,
    arms: Iterable[Arm],
    *,
    metric: str = "converted",
    confidence: float = 0.95,
    planned_units: int | None = None,
    higher_is_better: bool = True,
) -> Analysis:
    """Compare each variant of an experiment with its control.

    Proportions have the intervals of Agresti and Caffo, means those of Welch. Where all variants have a covariate, it
    is adjusted for (CUPED), and proportions are treated as means. With k variants and the control, each interval has
    the level 1 - (1 - confidence) / k and p-values are multiplied by k (Bonferroni): all intervals hold together.
    Variants of weight 0 are compared, if they have units, but not expected to have any.

    Args:
        experiment: The experiment: its weights are those that the units came by.
        arms: Results by variant.
        metric: Name of the metric.
        confidence: Level of all intervals together.
        planned_units: Total number of units that the experiment is planned for, chosen before the data were seen. The
            always-valid intervals are narrowest there, at 10,000 units without a plan. Until it is reached, and
            without it, the conclusion follows from the always-valid intervals, then from the fixed-horizon ones.
        higher_is_better: Whether a larger metric is better.

    Raises:
        ExperimentError: The control or all others have no results; a variant is unknown or there twice; the metric does
            not vary; or a number is out of range.
    """
    by_name = {arm.variant: arm for arm in arms if arm.variant in experiment.variants}
    _check(experiment, [*arms], by_name, confidence, planned_units)
    ordered = [by_name[name] for name in experiment.variants if name in by_name]
    moments, theta = [arm.moments for arm in ordered], None
    if all(of.before_mean is not None for of in moments):
        moments, theta = without_covariate(moments)
    alpha = 1 - confidence
    comparisons = len(ordered) - 1
    effects = []
    for arm, of in zip(ordered[1:], moments[1:], strict=True):
        found = _difference(ordered[0], arm, moments[0], of, is_adjusted=theta is not None)
        if not found.error > 0:
            raise ExperimentError(f"the metric '{metric}' has one value in '{ordered[0].variant}' and '{arm.variant}'")
        plain = difference_of_means(ordered[0].moments, arm.moments).error
        low, high = found.fixed(alpha / comparisons)
        # Of the planned units, those of the two variants that are compared.
        share = experiment.shares[experiment.control] + experiment.shares[arm.variant]
        precision = mixture_precision((planned_units or _UNPLANNED_UNITS) * (share or 1.0), alpha)
        always_low, always_high = found.always_valid(alpha / comparisons, precision)
        effects.append(
            Effect(
                variant=arm.variant,
                difference=float(of.mean - moments[0].mean),
                relative=float(of.mean / moments[0].mean - 1) if moments[0].mean else None,
                low=float(low),
                high=float(high),
                p_value=min(1.0, comparisons * float(found.fixed_p_value())),
                always_low=float(always_low),
                always_high=float(always_high),
                always_p_value=min(1.0, comparisons * float(found.always_valid_p_value(precision))),
                variance_left=float((found.error / plain) ** 2) if theta is not None else 1.0,
            )
        )
    return Analysis(
        experiment=experiment.name,
        metric=metric,
        control=experiment.control,
        arms=tuple(ordered),
        means={arm.variant: float(of.mean) for arm, of in zip(ordered, moments, strict=True)},
        effects=tuple(effects),
        sample_ratio=sample_ratio(experiment, {arm.variant: int(arm.moments.units) for arm in ordered}),
        confidence=confidence,
        planned_units=planned_units,
        higher_is_better=higher_is_better,
        notes=tuple(_notes(ordered)),
    )


def sample_ratio(experiment: Experiment, units: Mapping[str, int]) -> SampleRatio:
    """Check the numbers of units against the weights by a chi-square test; variants of weight 0 do not count.

    Args:
        experiment: The experiment.
        units: Number of units by variant; a missing variant has none.

    Raises:
        ExperimentError: There are no units.
    """
    shares = {name: share for name, share in experiment.shares.items() if share > 0}
    counts = {name: int(units.get(name, 0)) for name in shares}
    total = sum(counts.values())
    if total == 0:
        raise ExperimentError(f"experiment '{experiment.name}' has no units; wait for exposures")
    expected = {name: total * share for name, share in shares.items()}
    p_value = stats.chisquare(list(counts.values()), list(expected.values())).pvalue if len(counts) > 1 else 1.0
    return SampleRatio(counts, expected, float(p_value))


def _check(
    experiment: Experiment,
    arms: Sequence[Arm],
    by_name: Mapping[str, Arm],
    confidence: float,
    planned_units: int | None,
) -> None:
    names = [arm.variant for arm in arms]
    if len(by_name) < len(names):
        odd = [name for name in names if name not in by_name or names.count(name) > 1]
        raise ExperimentError(
            f"results of {sorted(set(odd))} are there twice, or of no variant of experiment '{experiment.name}', which "
            f"has {list(experiment.variants)}"
        )
    if experiment.control not in by_name or len(by_name) < 2:
        raise ExperimentError(
            f"experiment '{experiment.name}' has results of {names} alone; an analysis needs its control "
            f"'{experiment.control}' and another variant"
        )
    if len({arm.conversions is None for arm in arms}) > 1:
        raise ExperimentError("some results are proportions and others means; give one metric for all variants")
    if not 0 < confidence < 1 or (planned_units is not None and planned_units < 1):
        raise ExperimentError(
            f"confidence is {confidence} and planned_units {planned_units}; use a share between 0 and 1, and 1 or more"
        )


def _difference(control: Arm, arm: Arm, before: Moments, after: Moments, *, is_adjusted: bool) -> Difference:
    if control.conversions is None or arm.conversions is None or is_adjusted:
        return difference_of_means(before, after)
    return difference_of_proportions(before.units, control.conversions, after.units, arm.conversions)


def _notes(arms: Sequence[Arm]) -> Iterable[str]:
    for arm in arms:
        if arm.conversions is None:
            continue
        fewest = min(arm.conversions, arm.moments.units - arm.conversions)
        if fewest < _FEWEST_OUTCOMES:
            yield (
                f"{arm.variant} has {arm.conversions:,} conversions of {arm.moments.units:,} units: with fewer than "
                f"{_FEWEST_OUTCOMES} of one outcome, its intervals are rough."
            )
