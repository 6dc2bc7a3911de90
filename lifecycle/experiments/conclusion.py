"""What an analysis shows, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrorspark.lifecycle.experiments.analysis import Analysis, Effect


def conclusion_of(analysis: Analysis) -> str:
    """Return the sentence: the check of the units first, then what holds at any look, then what holds at the end."""
    ratio = analysis.sample_ratio
    if ratio.is_mismatch:
        (name, count), *others = ratio.units.items()
        found = f"{name} has {count:,} units of {ratio.expected[name]:,.0f} expected"
        found += "".join(f", {name} {count:,} of {ratio.expected[name]:,.0f}" for name, count in others)
        return (
            f"The effects cannot be trusted: {found} (sample-ratio mismatch, p = {ratio.p_value:.1g}), so find out "
            f"what loses or adds units."
        )
    sure = [effect for effect in analysis.effects if effect.is_always_significant]
    if better := [effect for effect in sure if _is_better(effect, analysis)]:
        return f"{_verdict(_largest(better), analysis)}."
    likely = [effect for effect in analysis.effects if effect.is_significant and _is_better(effect, analysis)]
    if likely:
        return (
            f"{_verdict(_largest(likely), analysis, is_fixed=True)}, provided that the experiment ends now as planned: "
            f"at an earlier look the difference is not certain."
        )
    if len(sure) == len(analysis.effects):
        return f"{_verdict(_largest(sure), analysis)}."
    nearest = min(analysis.effects, key=lambda effect: effect.always_p_value)
    return (
        f"No variant has been shown to be better than {analysis.control}: in {analysis.metric}, {nearest.variant} may "
        f"differ by anything from {interval_text(nearest.always_low, nearest.always_high, analysis)}."
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


def _verdict(effect: Effect, analysis: Analysis, *, is_fixed: bool = False) -> str:
    ends = (effect.low, effect.high) if is_fixed else (effect.always_low, effect.always_high)
    word = "better" if _is_better(effect, analysis) else "worse"
    kind = "fixed-horizon" if is_fixed else "always-valid"
    return (
        f"{effect.variant} is {word} than {analysis.control}: {analysis.metric} differs by "
        f"{difference_text(effect.difference, analysis)}{' points' if analysis.is_proportion else ''} "
        f"({kind} {100 * analysis.confidence:g} % interval {interval_text(*ends, analysis)})"
    )
