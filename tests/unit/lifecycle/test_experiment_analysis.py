"""E3: effects and intervals compared with closed forms, and their guarantees in 10,000 simulated experiments."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats

from mirrorspark.lifecycle.experiments.analysis import Arm, analyse_experiment, sample_ratio
from mirrorspark.lifecycle.experiments.definition import Experiment, ExperimentError
from mirrorspark.lifecycle.experiments.intervals import (
    Difference,
    Moments,
    difference_of_means,
    difference_of_proportions,
    mixture_precision,
    without_covariate,
)
from mirrorspark.lifecycle.experiments.planning import plan_experiment

HALVES = Experiment("ranker", {"control": 1, "deep": 1})
THIRDS = Experiment("ranker", {"control": 1, "deep": 1, "wide": 1})
TESTS = 10_000
ALPHA = 0.05


# Closed forms


def test_means_have_the_interval_and_the_p_value_of_welch() -> None:
    random = np.random.default_rng(1)
    control, deep = random.normal(10, 3, 80), random.normal(11, 5, 50)
    [effect] = analyse_experiment(HALVES, [Arm.of_values("control", control), Arm.of_values("deep", deep)]).effects
    expected = stats.ttest_ind(deep, control, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert (effect.low, effect.high, effect.p_value) == pytest.approx((low, high, expected.pvalue))
    assert effect.difference == pytest.approx(deep.mean() - control.mean())
    assert effect.relative == pytest.approx(deep.mean() / control.mean() - 1)


def test_proportions_have_the_interval_of_agresti_and_caffo() -> None:
    # By hand: 8/36 - 2/36 = 1/6, error sqrt(8 * 28 / 36**3 + 2 * 34 / 36**3) = 0.07911.
    [effect] = analyse_experiment(HALVES, [Arm.of_counts("control", 34, 1), Arm.of_counts("deep", 34, 7)]).effects
    assert (effect.low, effect.high) == pytest.approx((0.01161, 0.32172), abs=1e-5)
    assert effect.p_value == pytest.approx(2 * stats.norm.sf(1 / 6 / 0.0791106), rel=1e-4)
    assert effect.difference == pytest.approx(6 / 34)


def test_nobody_converting_does_not_make_an_interval_of_width_0() -> None:
    analysis = analyse_experiment(HALVES, [Arm.of_counts("control", 50, 0), Arm.of_counts("deep", 50, 0)])
    assert -0.1 < analysis.effects[0].low < -0.03
    assert 0.03 < analysis.effects[0].high < 0.1
    assert len(analysis.notes) == 2
    assert "control has 0 conversions of 50 units" in analysis.notes[0]


def test_the_always_valid_interval_ends_where_the_mixture_rejects() -> None:
    """The likelihood ratio of a normal mixture of effects to no effect, integrated, is 1 / alpha at the bound."""
    units, error = 4_000, 0.02
    precision = mixture_precision(10_000, ALPHA)
    low, high = Difference(0.0, error, math.inf, units).always_valid(ALPHA, precision)
    assert low == -high
    spread = error * math.sqrt(units * precision)  # of the mixture, in the unit of the effect

    def weighted(effect: float) -> float:
        return float(stats.norm.pdf(high, effect, error) * stats.norm.pdf(effect, 0, spread))

    ratio = integrate.quad(weighted, -1, 1, points=[high], limit=200)[0] / stats.norm.pdf(high, 0, error)
    assert ratio == pytest.approx(1 / ALPHA, rel=1e-6)
    assert Difference(high, error, math.inf, units).always_valid_p_value(precision) == pytest.approx(ALPHA)


def test_always_valid_intervals_are_narrowest_at_the_planned_number_of_units() -> None:
    def width(planned: float) -> float:
        low, high = Difference(0.0, 1.0, math.inf, 10_000).always_valid(ALPHA, mixture_precision(planned, ALPHA))
        return float(high - low)

    at_plan = width(10_000)
    assert all(at_plan < width(planned) for planned in (2_000, 8_000, 12_500, 50_000))
    # The price of looking at any time, compared with 1.96 standard errors.
    assert at_plan / 2 == pytest.approx(3.035, abs=0.001)


def test_numbers_of_units_that_contradict_the_weights_are_a_mismatch() -> None:
    # By hand: (5200 - 5000)² / 5000 * 2 = 16, and 10.83 is the 0.1 % point.
    found = sample_ratio(HALVES, {"control": 5_200, "deep": 4_800})
    assert found.p_value == pytest.approx(stats.chi2.sf(16, 1))
    assert found.is_mismatch
    assert not sample_ratio(HALVES, {"control": 5_100, "deep": 4_900}).is_mismatch
    assert not sample_ratio(Experiment("r", {"control": 9, "deep": 1}), {"control": 9_050, "deep": 950}).is_mismatch
    assert sample_ratio(HALVES, {"control": 20}).is_mismatch
    paused = Experiment("r", {"control": 1, "deep": 1, "old": 0})
    assert sample_ratio(paused, {"control": 50, "deep": 50, "old": 7}).p_value == 1.0
    with pytest.raises(ExperimentError, match="has no units"):
        sample_ratio(HALVES, {"deep": 0})


def test_several_variants_share_the_level() -> None:
    arms = [Arm.of_counts("control", 1_000, 100), Arm.of_counts("deep", 1_000, 128), Arm.of_counts("wide", 1_000, 90)]
    both = analyse_experiment(THIRDS, arms)
    alone = analyse_experiment(HALVES, arms[:2], confidence=0.975)
    assert (both.effects[0].low, both.effects[0].high) == pytest.approx((alone.effects[0].low, alone.effects[0].high))
    assert both.effects[0].p_value == pytest.approx(2 * alone.effects[0].p_value)
    # p = 0.049 for this difference alone, and 0.1 among two.
    assert analyse_experiment(HALVES, arms[:2]).effects[0].is_significant
    assert not both.effects[0].is_significant


def test_cuped_takes_what_the_covariate_explains() -> None:
    """Rho² of the variance goes, and the effect stays."""
    random = np.random.default_rng(2)
    rho, units = 0.8, 50_000
    before = random.normal(size=2 * units)
    values = rho * before + math.sqrt(1 - rho**2) * random.normal(size=2 * units)
    values[units:] += 0.05
    plain = analyse_experiment(
        HALVES, [Arm.of_values("control", values[:units]), Arm.of_values("deep", values[units:])]
    )
    adjusted = analyse_experiment(
        HALVES,
        [
            Arm.of_values("control", values[:units], before[:units]),
            Arm.of_values("deep", values[units:], before[units:]),
        ],
    )
    [narrow], [wide] = adjusted.effects, plain.effects
    assert narrow.variance_left == pytest.approx(1 - rho**2, abs=0.005)
    assert ((narrow.high - narrow.low) / (wide.high - wide.low)) ** 2 == pytest.approx(1 - rho**2, abs=0.005)
    assert narrow.low < 0.05 < narrow.high
    # The regression of both on the covariate, by least squares.
    group = np.repeat([0.0, 1.0], units)
    found = np.linalg.lstsq(np.stack([np.ones(2 * units), group, before], axis=1), values, rcond=None)[0]
    assert narrow.difference == pytest.approx(found[1], abs=1e-9)


def test_a_covariate_without_variance_changes_nothing() -> None:
    values = np.arange(10.0)
    arms = [Arm.of_values("control", values, np.ones(10)), Arm.of_values("deep", values + 1, np.ones(10))]
    plain = analyse_experiment(HALVES, [Arm.of_values("control", values), Arm.of_values("deep", values + 1)])
    assert analyse_experiment(HALVES, arms).effects == plain.effects


# Simulations


def test_without_an_effect_5_percent_of_10_000_tests_of_proportions_find_one() -> None:
    random = np.random.default_rng(3)
    for rate in (0.02, 0.3):
        control, deep = random.binomial(2_000, rate, (2, TESTS))
        found = difference_of_proportions(2_000, control, 2_000, deep)
        assert missed(found.fixed(ALPHA)) == pytest.approx(0.05, abs=0.01)
        assert (found.fixed_p_value() < ALPHA).mean() == missed(found.fixed(ALPHA))


def test_without_an_effect_5_percent_of_10_000_tests_of_means_find_one_with_and_without_cuped() -> None:
    random = np.random.default_rng(4)
    before = random.normal(size=(2, TESTS, 100))
    values = np.exp(0.5 * before) + random.exponential(size=before.shape)  # skewed
    control, deep = (moments_of(values[arm], before[arm]) for arm in (0, 1))
    assert missed(difference_of_means(control, deep).fixed(ALPHA)) == pytest.approx(0.05, abs=0.01)
    (control, deep), _ = without_covariate([control, deep])
    assert missed(difference_of_means(control, deep).fixed(ALPHA)) == pytest.approx(0.05, abs=0.01)


def test_looking_fifty_times_finds_nothing_more_than_5_percent_of_the_time_with_always_valid_intervals() -> None:
    random = np.random.default_rng(5)
    looks, batch = 50, 100
    conversions = random.binomial(batch, 0.1, (2, TESTS, looks)).cumsum(axis=2)
    units = batch * np.arange(1, looks + 1)
    found = difference_of_proportions(units, conversions[0], units, conversions[1])
    precision = mixture_precision(2 * batch * looks, ALPHA)
    low, high = found.always_valid(ALPHA, precision)
    always = ((low > 0) | (high < 0)).any(axis=1).mean()
    assert 0.005 < always <= 0.05
    assert (found.always_valid_p_value(precision).min(axis=1) < ALPHA).mean() == always
    # The always-valid intervals exist for this.
    low, high = found.fixed(ALPHA)
    assert ((low > 0) | (high < 0)).any(axis=1).mean() > 0.25
    # With three variants, the level is shared.
    third = random.binomial(batch, 0.1, (TESTS, looks)).cumsum(axis=1)
    other = difference_of_proportions(units, conversions[0], units, third)
    low, high = found.always_valid(ALPHA / 2, precision)
    other_low, other_high = other.always_valid(ALPHA / 2, precision)
    any_found = (low > 0) | (high < 0) | (other_low > 0) | (other_high < 0)
    assert any_found.any(axis=1).mean() <= 0.05


def test_always_valid_intervals_contain_a_true_effect_of_means_at_all_looks() -> None:
    random = np.random.default_rng(6)
    looks, batch, tests = 30, 50, 2_000
    values = random.exponential(size=(2, tests, looks * batch))
    values[1] += 0.2
    units = batch * np.arange(1, looks + 1)
    sums, squares = (np.cumsum(of, axis=2)[:, :, batch - 1 :: batch] for of in (values, values**2))
    control, deep = (
        Moments(units, total / units, (square - total**2 / units) / (units - 1))
        for total, square in zip(sums, squares, strict=True)
    )
    low, high = difference_of_means(control, deep).always_valid(ALPHA, mixture_precision(2 * looks * batch, ALPHA))
    assert ((low > 0.2) | (high < 0.2)).any(axis=1).mean() <= 0.05


@pytest.mark.parametrize("peeking", [False, True])
@pytest.mark.parametrize("weights", [{"control": 1, "deep": 1}, {"control": 3, "deep": 1, "wide": 1}])
def test_the_planned_number_of_units_has_its_power(weights: dict[str, float], peeking: bool) -> None:
    plan = plan_experiment(weights, effect=0.02, rate=0.1, power=0.8, peeking=peeking)
    random = np.random.default_rng(7)
    control, deep = plan.units["control"], plan.units["deep"]
    found = difference_of_proportions(
        control, random.binomial(control, 0.1, TESTS), deep, random.binomial(deep, 0.12, TESTS)
    )
    alpha = ALPHA / (len(weights) - 1)
    if peeking:  # at the planned end alone
        low, _ = found.always_valid(alpha, mixture_precision(control + deep, ALPHA))
    else:
        low, _ = found.fixed(alpha)
    assert (low > 0).mean() == pytest.approx(0.8, abs=0.02)


def test_plans_have_the_known_size() -> None:
    # Lehr's rule of thumb says 16 / effect² in deviations; the exact figure is 2 * 2.8016² = 15.698 per variant.
    plan = plan_experiment({"control": 1, "deep": 1}, effect=0.1, deviation=1.0, units_per_day=1_000)
    assert plan.units == {"control": 1_570, "deep": 1_570}
    assert plan.days == 4
    assert plan.total_units == 3_140
    with_covariate = plan_experiment({"control": 1, "deep": 1}, effect=-0.1, deviation=1.0, correlation=0.8)
    assert with_covariate.units["deep"] == pytest.approx(1_570 * 0.36, abs=1)
    assert with_covariate.days is None
    any_time = plan_experiment({"control": 1, "deep": 1}, effect=0.1, deviation=1.0, peeking=True)
    assert any_time.total_units / plan.total_units == pytest.approx(1.91, abs=0.01)


# Conclusions and errors


@pytest.mark.parametrize(
    ("counts", "higher_is_better", "expected"),
    [
        (
            (500, 700),
            True,
            "control: converted differs by +4.00 points (always-valid 95 % interval +2.03 to +5.97).",
        ),
        ((500, 700), False, "deep is worse than control: converted differs by +4.00 points"),
        ((700, 500), False, "deep is better than control: converted differs by -4.00 points"),
        (
            (500, 505),
            True,
            "No variant has been shown to be better than control: in converted, deep may differ",
        ),
    ],
)
def test_the_conclusion_is_one_sentence(counts: tuple[int, int], higher_is_better: bool, expected: str) -> None:
    arms = [Arm.of_counts(name, 5_000, of) for name, of in zip(HALVES.variants, counts, strict=True)]
    conclusion = analyse_experiment(HALVES, arms, higher_is_better=higher_is_better).conclusion
    assert expected in conclusion
    assert conclusion.endswith(".")


@pytest.mark.parametrize(
    ("planned_units", "expected"),
    [
        (
            20_000,
            "No variant has been shown to be better than control: in converted, deep may differ by anything from -0.51 "
            "to +3.31 (always-valid 95 % interval, p = 0.288, 10,000 of 20,000 planned units).",
        ),
        (None, "always-valid 95 % interval, p = 0.307, 10,000 units)."),
        (
            10_000,
            "deep is better than control: converted differs by +1.40 points (fixed-horizon 95 % interval +0.19 to "
            "+2.61).",
        ),
    ],
    ids=["at half of the plan", "without a plan", "at the end of the plan"],
)
def test_the_conclusion_follows_from_the_interval_that_is_valid_now(planned_units: int | None, expected: str) -> None:
    # The fixed-horizon interval is +0.19 to +2.61 in all of them.
    arms = [Arm.of_counts(name, 5_000, of) for name, of in (("control", 500), ("deep", 570))]
    analysis = analyse_experiment(HALVES, arms, planned_units=planned_units)
    assert analysis.effects[0].is_significant
    assert not analysis.effects[0].is_always_significant
    assert analysis.conclusion.endswith(expected)


def test_a_variant_that_is_surely_worse_does_not_hide_one_that_may_be_better() -> None:
    arms = [Arm.of_counts(name, 5_000, of) for name, of in (("control", 500), ("deep", 300), ("wide", 520))]
    conclusion = analyse_experiment(THIRDS, arms).conclusion
    assert conclusion.startswith("No variant has been shown to be better than control: in converted, wide may differ")


def test_a_mismatch_of_units_is_the_conclusion_whatever_the_effects() -> None:
    arms = [Arm.of_counts("control", 5_200, 500), Arm.of_counts("deep", 4_800, 900)]
    conclusion = analyse_experiment(HALVES, arms).conclusion
    assert conclusion.startswith("The effects cannot be trusted: control has 5,200 units of 5,000 expected, deep 4,800")


def test_the_best_of_several_variants_is_named() -> None:
    arms = [Arm.of_counts(name, 5_000, of) for name, of in (("control", 500), ("deep", 700), ("wide", 750))]
    assert analyse_experiment(THIRDS, arms).conclusion.startswith("wide is better than control")


@pytest.mark.parametrize(
    ("arms", "options", "message"),
    [
        ([("deep", 10, 1)], {}, r"results of \['deep'\] alone; an analysis needs its control 'control'"),
        ([("control", 10, 1), ("deep", 10, 1), ("deep", 10, 1)], {}, r"results of \['deep'\] are there twice"),
        ([("control", 10, 1), ("deep", 10, 1), ("old", 10, 1)], {}, r"results of \['old'\] are there twice, or of no"),
        ([("control", 10, 1), ("deep", 10, 1)], {"confidence": 95}, "confidence is 95"),
        ([("control", 10, 1), ("deep", 10, 1)], {"planned_units": 0}, "planned_units 0"),
    ],
)
def test_results_that_make_no_sense_are_refused(
    arms: list[tuple[str, int, int]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        analyse_experiment(HALVES, [Arm.of_counts(*arm) for arm in arms], **options)


def test_a_metric_of_one_value_is_refused() -> None:
    arms = [Arm.of_values(name, np.zeros(5)) for name in HALVES.variants]
    with pytest.raises(ExperimentError, match="the metric 'revenue' has one value in 'control' and 'deep'"):
        analyse_experiment(HALVES, arms, metric="revenue")


def test_arms_without_enough_units_or_with_other_values_are_refused() -> None:
    with pytest.raises(ExperimentError, match="3 conversions of 2 units"):
        Arm.of_counts("deep", 2, 3)
    with pytest.raises(ExperimentError, match=r"values of shape \[\(1,\)\]"):
        Arm.of_values("deep", [1.0])
    with pytest.raises(ExperimentError, match="not a finite number"):
        Arm.of_values("deep", [1.0, math.nan])
    with pytest.raises(ExperimentError, match=r"has 1 units with a mean of 2\.0 and a variance of None"):
        Arm.of_row({"variant": "deep", "units": 1, "conversions": 1, "mean": 2.0, "variance": None})


def test_a_row_of_results_is_the_arm_of_its_values() -> None:
    values, before = np.array([0.0, 2.0, 4.0]), np.array([1.0, 2.0, 6.0])
    row = {"variant": "deep", "units": 3, "conversions": 2, "mean": 2.0, "variance": 4.0}
    row |= {"before_mean": 3.0, "before_variance": 7.0, "covariance": 5.0}
    arm, expected = Arm.of_row(row), Arm.of_values("deep", values, before)
    assert vars(arm.moments) == pytest.approx(vars(expected.moments))
    counted = Arm.of_row(
        {"variant": "deep", "units": 4, "conversions": 1, "mean": 0.25, "variance": 0.25}, is_proportion=True
    )
    assert counted == Arm.of_counts("deep", 4, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"control": 1}}, "give a control and another variant"),
        ({"effect": 0.0}, "effect is 0.0"),
        ({"deviation": 1.0}, "rate is 0.1 and deviation 1.0; give one of them"),
        ({"effect": 0.95}, "both lie between 0 and 1"),
        ({"power": 1.0}, "power is 1.0"),
        ({"correlation": 1.0}, "correlation is 1.0"),
        ({"units_per_day": 0}, "units_per_day is 0"),
        ({"rate": None, "deviation": 0.0}, "deviation is 0.0"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"weights": {"control": 1, "deep": 1}, "effect": 0.01, "rate": 0.1} | changes
    with pytest.raises(ExperimentError, match=message):
        plan_experiment(**arguments)


def missed(interval: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
    """Return the share of intervals that exclude 0."""
    low, high = interval
    return float(((low > 0) | (high < 0)).mean())


def moments_of(values: NDArray[np.float64], before: NDArray[np.float64]) -> Moments:
    units = values.shape[1]
    means, before_means = values.mean(axis=1), before.mean(axis=1)
    covariance = ((values - means[:, None]) * (before - before_means[:, None])).sum(axis=1) / (units - 1)
    return Moments(units, means, values.var(axis=1, ddof=1), before_means, before.var(axis=1, ddof=1), covariance)
