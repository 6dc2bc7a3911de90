"""The self-contained page of an experiment: conclusion, variants, effects with intervals, check of the units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from mirrorspark.lifecycle.experiments.analysis import SAMPLE_RATIO_P_VALUE, Analysis, Effect
from mirrorspark.lifecycle.experiments.conclusion import difference_text, interval_text
from mirrorspark.pages.charts.histogram import share_bars
from mirrorspark.pages.charts.intervals import IntervalRow, interval_chart
from mirrorspark.pages.page import page_template

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
    ratio = analysis.sample_ratio
    total = analysis.units
    shares = {
        "units": [count / total for count in ratio.units.values()],
        "expected": [count / total for count in ratio.expected.values()],
    }
    return _template().render(
        analysis=analysis,
        level=f"{100 * analysis.confidence:g}",
        tiles=_tiles(analysis, total),
        variants=[_variant(analysis, number) for number in range(len(analysis.arms))],
        effects=[_effect(analysis, effect) for effect in analysis.effects],
        chart=_chart([(effect.variant, effect) for effect in analysis.effects], analysis),
        units=share_bars(list(ratio.units), shares, colours=(0, _EXPECTED_COLOUR)),
        ratio=ratio,
        ratio_p=_p_value(ratio.p_value),
        ratio_limit=SAMPLE_RATIO_P_VALUE,
        courses=_courses(analysis, course or {}),
    )


def _tiles(analysis: Analysis, total: int) -> list[tuple[str, str]]:
    planned = analysis.planned_units
    plan = [] if planned is None else [("planned units", f"{planned:,}"), ("of the plan", f"{total / planned:.0%}")]
    return [
        ("units", f"{total:,}"),
        *plan,
        ("variants", str(len(analysis.arms))),
        ("check of the units", "mismatch" if analysis.sample_ratio.is_mismatch else "passed"),
    ]


def _variant(analysis: Analysis, number: int) -> dict[str, Any]:
    arm = analysis.arms[number]
    expected = analysis.sample_ratio.expected.get(arm.variant, 0.0)
    mean = analysis.means[arm.variant]
    return {
        "variant": arm.variant,
        "role": "control" if number == 0 else "",
        "units": f"{arm.moments.units:,}",
        "expected": f"{expected:,.0f}",
        "conversions": "" if arm.conversions is None else f"{arm.conversions:,}",
        "mean": f"{mean:.2%}" if analysis.is_proportion else f"{mean:.5g}",
    }


def _effect(analysis: Analysis, effect: Effect) -> dict[str, str]:
    return {
        "variant": effect.variant,
        "difference": difference_text(effect.difference, analysis),
        "relative": "" if effect.relative is None else f"{effect.relative:+.1%}",
        "fixed": interval_text(effect.low, effect.high, analysis),
        "p": _p_value(effect.p_value),
        "always": interval_text(effect.always_low, effect.always_high, analysis),
        "always_p": _p_value(effect.always_p_value),
        "variance": "" if effect.variance_left == 1 else f"{effect.variance_left:.0%}",
    }


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= _SMALLEST_P_VALUE else f"< {_SMALLEST_P_VALUE}"


def _chart(effects: Sequence[tuple[str, Effect]], analysis: Analysis) -> str:
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


def _courses(analysis: Analysis, course: Mapping[str, Analysis]) -> list[tuple[str, str]]:
    """Return the name of each variant and the chart of its effect at each time."""
    found = []
    for name in (effect.variant for effect in analysis.effects):
        effects = [(label, of) for label, look in course.items() for of in look.effects if of.variant == name]
        if effects:
            found.append((name, _chart(effects, analysis)))
    return found


@cache
def _template() -> Template:
    return page_template(Path(__file__).with_name("experiment.html.jinja"), {})
