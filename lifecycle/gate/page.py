"""``validation.html``: a self-contained page with the evidence of a validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from mirrorspark.lifecycle.gate.decide import GateFinding
from mirrorspark.lifecycle.gate.facts import MetricEstimate, SliceFacts
from mirrorspark.lifecycle.gate.validation import ORDER, Validation, findings_table
from mirrorspark.pages import (
    DASH,
    Cell,
    card_html,
    cards_html,
    details_html,
    digits_or_dash,
    element,
    figure_html,
    in_digits,
    page_html,
    remark_html,
    rows_html,
    section_html,
    short_number,
    tiles_html,
    verdict_html,
)
from mirrorspark.pages.figures import slice_changes

PAGE_FILE = "validation.html"

_SHOWN_FIGURES = 4
_SHOWN_IN_FIGURE = 40
_SHOWN_ERRORS = 8


def validation_page(validation: Validation) -> str:
    """Return the page as HTML: the verdict, findings (those that block first), and the metrics of all slices."""
    facts, candidate, champion = validation.facts, validation.candidate, validation.champion
    metrics = list(facts.slices[0].candidate) if facts.slices else []
    blocking = [one for one in validation.findings if one.outcome != "passed"]
    passed = [one for one in validation.findings if one.outcome == "passed"]
    origin = [
        *(validation.at, validation.task.replace("_", " "), f"label {validation.label}"),
        *(f"drawn by {', '.join(validation.keys)}", f"candidate {candidate.uri}, digest {candidate.digest[:12]}"),
    ]
    if champion:
        origin.append(f"champion {champion.uri}, digest {champion.digest[:12]}")
    else:
        origin.append("there is no champion to compare with")
    verdict, style = "All gates passed: it may be promoted.", "good"
    if not validation.passed:
        verdict = f"{len(validation.failed)} of {len(validation.findings)} findings block a promotion."
        style = "error"
    blocks = [
        verdict_html(verdict, style),
        remark_html(" · ".join(origin)),
        tiles_html(_tiles(validation)),
        section_html(
            "Findings",
            findings_table(blocking) if blocking else "",
            details_html(f"{len(passed)} passed", findings_table(passed), is_open=not blocking),
        ),
        _changes(validation, metrics) if facts.has_champion else "",
        _metrics(validation, metrics),
        *(
            section_html(f"Parity: {name}", card_html(element("pre", report.as_table())))
            for name, report in facts.parity.items()
        ),
    ]
    title = f"{candidate.label} compared with {champion.label}" if champion else candidate.label
    return page_html("Validation", title, blocks)


def _changes(validation: Validation, metrics: Sequence[str]) -> Markup:
    # The interval of a few rows would leave no room for the others.
    judged = [one for one in validation.facts.slices if one.examples >= validation.gates.min_examples]
    return section_html(
        "Change by slice",
        remark_html(
            "A cross marks a slice in which a gate of the metric failed. The number of examples is in brackets; slices "
            f"with fewer than {validation.gates.min_examples:,} are left out."
        ),
        cards_html(
            (
                card_html(figure_html(_figure(metric, judged, validation.findings), f"change of {metric} by slice"))
                for metric in _judged(metrics, validation.findings)
            ),
            least=560,
        ),
    )


def _metrics(validation: Validation, metrics: Sequence[str]) -> Markup:
    slices = validation.facts.slices
    rows = [
        [
            one.name,
            Cell(f"{one.examples:,}", below=[Cell(f"{one.invalid:,} without a score", "error")] if one.invalid else ()),
            *(_metric(one, name) for name in metrics),
        ]
        for one in slices
    ]
    inexact = [
        f"{digits_or_dash(estimate.error)} ({name.replace('_', ' ')}, {one.name})"
        for one in slices
        for name, estimate in one.candidate.items()
        if estimate.error > 0
    ]
    more = " and more in validation.json" if len(inexact) > _SHOWN_ERRORS else ""
    champion = "; below each, its change against the champion with the 95% interval" if validation.champion else ""
    head = ["slice", "examples", *(name.replace("_", " ") for name in metrics)]
    return section_html(
        "Metrics",
        remark_html(f"Of the candidate{champion}."),
        rows_html(head, rows, numbers=range(1, len(head))),
        remark_html(
            "With more than 8,192 distinct scores, AUC and PR AUC come from a histogram. They are off by at most "
            f"{', '.join(inexact[:_SHOWN_ERRORS])}{more}."
        )
        if inexact
        else "",
    )


def _metric(one: SliceFacts, name: str) -> Cell:
    change = one.change.get(name)
    below = () if change is None else (_signed(change.value), _interval(change))
    return Cell(digits_or_dash(one.candidate[name].value), below=below)


def _tiles(validation: Validation) -> list[tuple[str, str]]:
    facts, outcomes = validation.facts, [one.outcome for one in validation.findings]
    shown = {
        "gates passed": float(outcomes.count("passed")),
        "gates failed": float(outcomes.count("failed")),
        "not judged": float(outcomes.count("skipped")),
        "examples": float(facts.slices[0].examples) if facts.slices else None,
        "slices": float(len(facts.slices) - 1),
        "p99 of single rows, ms": facts.latency_p99_ms,
        "model, MB": None if facts.model_bytes is None else facts.model_bytes / 1e6,
    }
    return [(name, short_number(value)) for name, value in shown.items() if value is not None]


def _judged(metrics: Sequence[str], findings: Sequence[GateFinding]) -> list[str]:
    """Return the metrics that are drawn: those of failed gates first, then other judged ones, then the first."""
    named = [one.metric for outcome in ORDER for one in findings if one.outcome == outcome]
    return [name for name in dict.fromkeys([*named, *metrics[:1]]) if name in metrics][:_SHOWN_FIGURES]


def _figure(metric: str, slices: Sequence[SliceFacts], findings: Sequence[GateFinding]) -> Any:
    shown = [one for one in slices if metric in one.change][:_SHOWN_IN_FIGURE]
    changes = [one.change[metric] for one in shown]
    failed = {one.slice for one in findings if one.outcome == "failed" and one.metric == metric}
    return slice_changes(
        metric,
        [f"{one.name}  ({short_number(float(one.examples))})" for one in shown],
        [one.value for one in changes],
        [one.low for one in changes],
        [one.high for one in changes],
        failed=[one.name in failed for one in shown],
    )


def _signed(value: float) -> str:
    return DASH if math.isnan(value) else in_digits(value, 2, sign="+")


def _interval(estimate: MetricEstimate) -> str:
    if math.isnan(estimate.low):
        return "no interval"
    return f"{in_digits(estimate.low, 2, sign='+')} to {in_digits(estimate.high, 2, sign='+')}"
