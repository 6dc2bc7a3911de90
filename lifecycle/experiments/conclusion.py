"""The conclusion of an analysis, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrorspark.lifecycle.experiments.analysis import Analysis, Effect


def conclusion_of(analysis: Analysis) -> str:
    """Return the sentence: the check of the units, else the result of the currently valid intervals.

    These are the always-valid ones until the planned number of units is reached, then the fixed-horizon ones.
    """
    ratio = analysis.sample_ratio
    if ratio.is_mismatch:
        (name, count), *others = ratio.units.items()
        found = f"{name} has {count:,} units of {ratio.expected[name]:,.0f} expected"
        found += "".join(f", {name} {count:,} of {ratio.expected[name]:,.0f}" for name, count in others)
        return (
            f"The effects cannot be trusted: {found} (sample-ratio mismatch, p = {ratio.p_value:.1g}), so find out "
            f"what loses or adds units."
        )
    sure = [effect for effect in analysis.effects if _is_sure(effect, analysis)]
    if better := [effect for effect in sure if _is_better(effect, analysis)]:
        return f"{_verdict(_largest(better), analysis)}."
    if len(sure) == len(analysis.effects):
        return f"{_verdict(_largest(sure), analysis)}."
    unsure = [effect for effect in analysis.effects if effect not in sure]
    nearest = min(unsure, key=lambda effect: effect.always_p_value)
    p_value = nearest.p_value if analysis.has_planned_units else nearest.always_p_value
    return (
        f"No variant has been shown to be better than {analysis.control}: in {analysis.metric}, {nearest.variant} may "
        f"differ by anything from {_valid(nearest, analysis)} ({_kind(analysis)}, p = {p_value:.3f}, "
        f"{_progress(analysis)})."
    )


def difference_text(value: float, analysis: Analysis) -> str:
    """Return a difference with its sign: of proportions in percentage points, without that word."""
    return f"{100 * value:+.2f}" if analysis.is_proportion else f"{value:+.4g}"


def interval_text(low: float, high: float, analysis: Analysis) -> str:
    """Return the ends of an interval of differences."""
    return f"{difference_text(low, analysis)} to {difference_text(high, analysis)}"


def _is_better(effect: Effect, analysis: Analysis) -> bool:
    return (effect.difference > 0) == analysis.higher_is_better


def _largest(effects: list[Effect]) -> Effect:
    return max(effects, key=lambda effect: abs(effect.difference))


def _is_sure(effect: Effect, analysis: Analysis) -> bool:
    return effect.is_significant if analysis.has_planned_units else effect.is_always_significant


def _verdict(effect: Effect, analysis: Analysis) -> str:
    word = "better" if _is_better(effect, analysis) else "worse"
    points = " points" if analysis.is_proportion else ""
    return (
        f"{effect.variant} is {word} than {analysis.control}: {analysis.metric} differs by "
        f"{difference_text(effect.difference, analysis)}{points} ({_kind(analysis)} {_valid(effect, analysis)})"
    )


def _valid(effect: Effect, analysis: Analysis) -> str:
    """Return the interval that is right now."""
    ends = (effect.low, effect.high) if analysis.has_planned_units else (effect.always_low, effect.always_high)
    return interval_text(*ends, analysis)


def _kind(analysis: Analysis) -> str:
    name = "fixed-horizon" if analysis.has_planned_units else "always-valid"
    return f"{name} {100 * analysis.confidence:g} % interval"


def _progress(analysis: Analysis) -> str:
    if analysis.planned_units is None:
        return f"{analysis.units:,} units"
    return f"{analysis.units:,} of {analysis.planned_units:,} planned units"
