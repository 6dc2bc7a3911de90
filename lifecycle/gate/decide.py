"""The gate: findings from facts and thresholds, as a pure function.

A new gate is a field of :class:`lifecycle.gate.thresholds.Gates`, a fact in :class:`lifecycle.gate.facts.Facts`, and a
line of :func:`decide` here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mirrorspark.lifecycle.gate.facts import Facts, MetricEstimate, SliceFacts
from mirrorspark.lifecycle.gate.slices import OVERALL
from mirrorspark.lifecycle.gate.thresholds import ALL_SLICES, Gap, Gates, Interval, Threshold
from mirrorspark.pages import in_digits

Outcome = Literal["passed", "failed", "skipped"]
"""A skipped finding blocks nothing: its slice has too few examples, or there is no champion to compare with."""

_MEGABYTE = 10**6


@dataclass(frozen=True)
class GateFinding:
    """A judgement of one gate.

    Attributes:
        gate: ``value``, ``gain``, ``gain share``, ``gap``, ``scores``, ``parity``, ``schema``, ``latency`` or ``size``.
        slice: The rows that were judged, in words; empty for properties of the model.
        metric: Name of the metric; empty for other gates.
        value: Found value; None if there is nothing to judge.
        bound: Value that it was compared with.
        outcome: See :data:`Outcome`.
        words: The finding in a sentence.
    """

    gate: str
    slice: str
    metric: str
    value: float | None
    bound: float | None
    outcome: Outcome
    words: str

    @property
    def passed(self) -> bool:
        """True if the finding permits a promotion."""
        return self.outcome != "failed"


def decide(facts: Facts, gates: Gates) -> tuple[GateFinding, ...]:
    """Return the findings of all gates, in the order of the gates. The candidate may be promoted if all have passed."""
    found: list[GateFinding] = []
    for threshold in gates.thresholds:
        found += _of_threshold(facts, threshold, gates.min_examples)
    for gap in gates.gaps:
        found.append(_of_gap(facts, gap, gates.min_examples))
    found += [_of_scores(facts, gates.min_examples), *_of_parity(facts, gates), *_of_schema(facts, gates)]
    if gates.latency_p99_ms is not None:
        found.append(_of_size("latency", "p99 of single rows", "ms", facts.latency_p99_ms, gates.latency_p99_ms))
    if gates.model_megabytes is not None:
        size = None if facts.model_bytes is None else facts.model_bytes / _MEGABYTE
        found.append(_of_size("size", "model", "MB", size, gates.model_megabytes))
    return tuple(found)


@dataclass(frozen=True)
class _Rule:
    """One bound of a threshold; ``measured`` finds the value in a slice, which is at least or at most the bound."""

    gate: str
    bound: float
    is_least: bool
    measured: Callable[[SliceFacts], MetricEstimate | None]


def _rules(threshold: Threshold) -> Iterator[_Rule]:
    metric, sign = threshold.metric, threshold.direction or 1

    def of_candidate(one: SliceFacts) -> MetricEstimate | None:
        return one.candidate.get(metric)

    def gain(one: SliceFacts) -> MetricEstimate | None:
        return _scaled(one.change[metric], sign) if metric in one.change else None

    def share(one: SliceFacts) -> MetricEstimate | None:
        if metric not in one.change:
            return None
        of_champion = abs(one.champion[metric].value)
        return _scaled(one.change[metric], sign / of_champion if of_champion else math.nan)

    if threshold.at_least is not None:
        yield _Rule("value", threshold.at_least, True, of_candidate)
    if threshold.at_most is not None:
        yield _Rule("value", threshold.at_most, False, of_candidate)
    if threshold.gain_at_least is not None:
        yield _Rule("gain", threshold.gain_at_least, True, gain)
    if threshold.gain_share_at_least is not None:
        yield _Rule("gain share", threshold.gain_share_at_least, True, share)


def _scaled(estimate: MetricEstimate, factor: float) -> MetricEstimate:
    low, high = sorted((estimate.low * factor, estimate.high * factor))
    return MetricEstimate(estimate.value * factor, low, high, estimate.error * abs(factor))


def _of_threshold(facts: Facts, threshold: Threshold, min_examples: int) -> Iterator[GateFinding]:
    wanted = threshold.slices
    slices = [one for one in facts.slices if ALL_SLICES in wanted or one.slicing in wanted]
    for rule in _rules(threshold):
        found = [_judged(one, threshold, rule, min_examples, facts.has_champion) for one in slices]
        yield from found
        is_first = rule.gate != "value" and not facts.has_champion
        if not is_first and all(finding.outcome == "skipped" for finding in found):
            # A gate that judged nothing must not let a candidate through.
            words = f"{threshold.metric} was judged in no slice of {', '.join(wanted)}"
            yield GateFinding(rule.gate, ", ".join(wanted), threshold.metric, None, rule.bound, "failed", words)


def _judged(
    one: SliceFacts,
    threshold: Threshold,
    rule: _Rule,
    min_examples: int,
    has_champion: bool,
) -> GateFinding:
    metric = threshold.metric
    base = GateFinding(rule.gate, one.name, metric, None, rule.bound, "skipped", "")
    if rule.gate != "value" and not has_champion:
        return replace(base, words=f"{metric} has no champion to be compared with")
    if one.examples < min_examples:
        words = f"{one.name} has {one.examples:,} examples, fewer than {min_examples:,}: not judged"
        return replace(base, words=words)
    estimate = rule.measured(one)
    if estimate is None:
        known = ", ".join(one.candidate)
        return replace(base, outcome="failed", words=f"there is no metric {metric} in {one.name}, only {known}")
    if not math.isfinite(estimate.value):
        # One class only is usual in a slice, and leaves nothing to judge in all rows.
        words = f"{rule.gate} of {metric} is not defined in {one.name}"
        return replace(base, outcome="failed" if one.is_overall else "skipped", words=words)
    judged, interval = _end(estimate, threshold.interval, is_least=rule.is_least), ""
    if threshold.interval != "ignore":
        interval = (
            f" (95% interval {in_digits(estimate.low)} to {in_digits(estimate.high)}; {_PARTS[threshold.interval]})"
        )
    passed = judged >= rule.bound if rule.is_least else judged <= rule.bound
    side = "at least" if rule.is_least else "at most"
    what = metric if rule.gate == "value" else f"{rule.gate} of {metric}"
    words = (
        f"{what} in {one.name} is {in_digits(estimate.value)}{interval}, {side} {in_digits(rule.bound)} is asked for"
    )
    return replace(base, value=estimate.value, outcome="passed" if passed else "failed", words=words)


_PARTS = {"must_pass": "all of it must pass", "may_pass": "one end of it must pass"}


def _end(estimate: MetricEstimate, interval: Interval, *, is_least: bool) -> float:
    """Return the value that is compared with the bound; without an interval ``must_pass`` has nothing that passes."""
    if interval == "ignore":
        return estimate.value
    if math.isnan(estimate.low):
        return estimate.value if interval == "may_pass" else -math.inf if is_least else math.inf
    return estimate.low if (interval == "must_pass") == is_least else estimate.high


def _of_gap(facts: Facts, gap: Gap, min_examples: int) -> GateFinding:
    values = {
        one.name: one.candidate[gap.metric].value
        for one in facts.slices
        if one.slicing == gap.slicing and one.examples >= min_examples and gap.metric in one.candidate
    }
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    base = GateFinding("gap", gap.slicing, gap.metric, None, gap.at_most, "failed", "")
    if len(values) < 2:
        return replace(
            base, words=f"{gap.slicing} has {len(values)} slices with enough examples and {gap.metric}, fewer than two"
        )
    low, *_, high = sorted(values, key=values.__getitem__)
    value = values[high] - values[low]
    words = (
        f"{gap.metric} is {in_digits(values[low])} in {low} and {in_digits(values[high])} in {high}, a gap of "
        f"{in_digits(value)}; at most {in_digits(gap.at_most)} is asked for"
    )
    return replace(base, value=value, outcome="passed" if value <= gap.at_most else "failed", words=words)


def _of_scores(facts: Facts, min_examples: int) -> GateFinding:
    overall = next((one for one in facts.slices if one.is_overall), None)
    if overall is None or overall.examples < min_examples:
        examples = overall.examples if overall else 0
        words = f"the table has {examples:,} scored examples, fewer than {min_examples:,}; give more rows"
        return GateFinding("scores", OVERALL, "", float(examples), float(min_examples), "failed", words)
    words = f"{overall.invalid:,} of {overall.examples + overall.invalid:,} rows have no valid score"
    outcome: Outcome = "failed" if overall.invalid else "passed"
    return GateFinding("scores", OVERALL, "", float(overall.invalid), 0.0, outcome, words)


def _of_parity(facts: Facts, gates: Gates) -> Iterator[GateFinding]:
    if gates.parity and not facts.parity:
        yield GateFinding("parity", "", "", None, None, "failed", "parity is asked for, and no report of it was given")
    for name, report in facts.parity.items():
        parts = [f"the largest of {report.rows:,} differences is {report.max:.3e}, at most {report.tolerance:g} passes"]
        if report.threshold_flips:
            parts.append(f"{report.threshold_flips:,} decisions change")
        if report.order_changes:
            parts.append(f"{report.order_changes:,} orders change")
        if not report.passed and report.worst:
            parts.append(f"the worst row is {report.worst[0].where}")
        outcome: Outcome = "passed" if report.passed else "failed"
        yield GateFinding("parity", "", name, report.max, report.tolerance, outcome, f"{name}: {'; '.join(parts)}")


def _of_schema(facts: Facts, gates: Gates) -> Iterator[GateFinding]:
    if not gates.same_schema:
        return
    changes = facts.schema_changes
    if changes is None:
        words = "there is no champion whose inputs and outputs these are compared with"
        yield GateFinding("schema", "", "", None, None, "skipped", words)
        return
    for words in changes:
        yield GateFinding("schema", "", "", float(len(changes)), 0.0, "failed", words)
    if not changes:
        yield GateFinding("schema", "", "", 0.0, 0.0, "passed", "inputs and outputs are those of the champion")


def _of_size(gate: str, what: str, unit: str, value: float | None, bound: float) -> GateFinding:
    if value is None or not math.isfinite(value):
        return GateFinding(gate, "", what, None, bound, "failed", f"{what} was not measured")
    outcome: Outcome = "passed" if value <= bound else "failed"
    words = f"{what}: {in_digits(value)} {unit}, at most {in_digits(bound)} {unit} is asked for"
    return GateFinding(gate, "", what, value, bound, outcome, words)


def failed(findings: Sequence[GateFinding]) -> tuple[GateFinding, ...]:
    """Return the findings that block a promotion."""
    return tuple(finding for finding in findings if not finding.passed)
