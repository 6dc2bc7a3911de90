"""The self-contained page of an experiment: conclusion, variants, effects with intervals, check of the units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from mirrorspark.lifecycle.experiments.analysis import SAMPLE_RATIO_P_VALUE, Analysis, Effect
from mirrorspark.lifecycle.experiments.conclusion import difference_text, interval_text
from mirrorspark.pages import (
    Cell,
    card_html,
    page_html,
    paragraph_html,
    remark_html,
    rows_html,
    section_html,
    series_html,
    tiles_html,
    verdict_html,
)
from mirrorspark.pages.charts import IntervalRow, interval_chart, share_bars

# Bars of the expected units next to those of the observed ones.
_EXPECTED_COLOUR = 4
_SMALLEST_P_VALUE = 0.001


def experiment_page(analysis: Analysis, *, course: Mapping[str, Analysis] | None = None) -> str:
    """Return the page of an experiment as HTML that needs nothing but itself.

    Args:
        analysis: Result of the experiment.
        course: Analyses of the same experiment at several times by their label, a date say, the oldest first: the page
            then shows how the always-valid intervals have narrowed.
    """
    better = "higher" if analysis.higher_is_better else "lower"
    remark = f"{analysis.metric} by variant, compared with {analysis.control}; {better} is better"
    is_mismatch = analysis.sample_ratio.is_mismatch
    courses = list(_courses(analysis, course or {}))
    blocks = [
        remark_html(remark),
        verdict_html(analysis.conclusion, "error" if is_mismatch else ""),
        tiles_html(_tiles(analysis)),
        section_html(
            "Effects",
            card_html(_chart([(effect.variant, effect) for effect in analysis.effects], analysis)),
            remark_html(_intervals_in_words(analysis)),
            _effects(analysis),
            *(remark_html(note) for note in analysis.notes),
        ),
        section_html("Course", *courses) if courses else "",
        section_html("Variants", _variants(analysis)),
        section_html("Check of the units", *_check_of_units(analysis)),
    ]
    return page_html("Experiment", analysis.experiment, blocks)


def _tiles(analysis: Analysis) -> list[tuple[str, str | Cell]]:
    planned = analysis.planned_units
    plan = (
        []
        if planned is None
        else [("planned units", f"{planned:,}"), ("of the plan", f"{analysis.units / planned:.0%}")]
    )
    return [
        ("units", f"{analysis.units:,}"),
        *plan,
        ("variants", str(len(analysis.arms))),
        ("check of the units", Cell("mismatch", "error") if analysis.sample_ratio.is_mismatch else "passed"),
    ]


def _intervals_in_words(analysis: Analysis) -> str:
    level, variants = f"{100 * analysis.confidence:g} %", len(analysis.effects)
    end = "which is reached" if analysis.has_planned_units else "which is not reached"
    if not analysis.planned_units:
        end = "and there is no plan"
    together = f" Together, the intervals of all {variants} variants hold in {level} of experiments (Bonferroni)."
    return (
        f"Difference to {analysis.control}. The thin line, whose numbers are next to it, is the always-valid {level} "
        f"interval: it holds however often one looks. The bar is the fixed-horizon {level} interval: it holds for a "
        f"single look at the planned end, {end}.{together if variants > 1 else ''}"
    )


def _effects(analysis: Analysis) -> Markup:
    has_variance = any(effect.variance_left != 1 for effect in analysis.effects)
    points = " (points)" if analysis.is_proportion else ""
    head = ["variant", f"difference{points}", "relative", "always-valid", "p", "fixed-horizon", "p"]
    rows = [
        [
            effect.variant,
            difference_text(effect.difference, analysis),
            "" if effect.relative is None else f"{effect.relative:+.1%}",
            interval_text(effect.always_low, effect.always_high, analysis),
            _p_value(effect.always_p_value),
            interval_text(effect.low, effect.high, analysis),
            _p_value(effect.p_value),
            *(["" if effect.variance_left == 1 else f"{effect.variance_left:.0%}"] if has_variance else []),
        ]
        for effect in analysis.effects
    ]
    return rows_html([*head, *(["variance left by CUPED"] if has_variance else [])], rows, numbers=range(1, 8))


def _variants(analysis: Analysis) -> Markup:
    rows = []
    for number, arm in enumerate(analysis.arms):
        expected, mean = analysis.sample_ratio.expected.get(arm.variant, 0.0), analysis.means[arm.variant]
        row = [arm.variant, "control" if number == 0 else "", f"{arm.moments.units:,}", f"{expected:,.0f}"]
        if analysis.is_proportion:
            rows.append([*row, "" if arm.conversions is None else f"{arm.conversions:,}", f"{mean:.2%}"])
        else:
            rows.append([*row, f"{mean:.5g}"])
    measures = ["conversions", "rate"] if analysis.is_proportion else ["mean"]
    return rows_html(["variant", "", "units", "expected units", *measures], rows, numbers=range(2, 6))


def _check_of_units(analysis: Analysis) -> Iterator[Markup]:
    ratio = analysis.sample_ratio
    shares = {
        name: [count / analysis.units for count in counts.values()]
        for name, counts in (("units", ratio.units), ("expected", ratio.expected))
    }
    key = series_html(0, "units") + series_html(_EXPECTED_COLOUR, "expected by the weights")
    yield card_html(share_bars(list(ratio.units), shares, colours=(0, _EXPECTED_COLOUR)), remark_html(key))
    p = _p_value(ratio.p_value)
    test = f"Chi-square test of the numbers of units: p {p if '<' in p else f'= {p}'}."
    if ratio.is_mismatch:
        words = f"Below {SAMPLE_RATIO_P_VALUE}, something other than the assignment chooses units."
        yield paragraph_html(f"{test} {words}", style="error")
    else:
        yield paragraph_html(f"{test} They fit the weights.")


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= _SMALLEST_P_VALUE else f"< {_SMALLEST_P_VALUE}"


def _chart(effects: Sequence[tuple[str, Effect]], analysis: Analysis) -> Markup:
    # Proportions are drawn in percentage points.
    scale = 100 if analysis.is_proportion else 1
    rows = [
        IntervalRow(
            label,
            scale * effect.difference,
            (scale * effect.low, scale * effect.high),
            (scale * effect.always_low, scale * effect.always_high),
        )
        for label, effect in effects
    ]
    return interval_chart(
        rows,
        value_text=lambda value: difference_text(value / scale, analysis),
        axis="percentage points" if analysis.is_proportion else analysis.metric,
    )


def _courses(analysis: Analysis, course: Mapping[str, Analysis]) -> Iterator[Markup]:
    """Yield the chart of each variant's effect at each time."""
    for name in (effect.variant for effect in analysis.effects):
        effects = [(label, of) for label, look in course.items() for of in look.effects if of.variant == name]
        if effects:
            yield card_html(_chart(effects, analysis), title=name)
