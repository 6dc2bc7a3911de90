"""``validation.html``: a self-contained page with the evidence of a validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from mirrorspark.lifecycle.gate.decide import Finding
from mirrorspark.lifecycle.gate.facts import Measure, SliceFacts
from mirrorspark.lifecycle.gate.validation import Validation
from mirrorspark.pages.blocks import figure_html
from mirrorspark.pages.figures.slices import slice_changes
from mirrorspark.pages.numbers import in_digits, short_number
from mirrorspark.pages.page import page_template

PAGE_FILE = "validation.html"

_SHOWN_FIGURES = 4
_SHOWN_IN_FIGURE = 40
_DASH = "-"
_ORDER = ("failed", "skipped", "passed")


def validation_page(validation: Validation) -> str:
    """Return the page as HTML: the verdict, findings (those that block first), and the metrics of all slices."""
    facts = validation.facts
    metrics = list(facts.slices[0].candidate) if facts.slices else []
    # The interval of a few rows would leave no room for the others.
    judged = [one for one in facts.slices if one.examples >= validation.gates.min_examples]
    return _template().render(
        validation=validation,
        tiles=_tiles(validation),
        findings=sorted(validation.findings, key=lambda one: _ORDER.index(one.outcome)),
        metrics=metrics,
        slices=facts.slices,
        figures=[
            figure_html(_figure(metric, judged, validation.findings), f"change of {metric} by slice")
            for metric in _judged(metrics, validation.findings)
            if facts.has_champion
        ],
        parity={name: report.as_table() for name, report in facts.parity.items()},
        errors=[
            (one.name, name, measure)
            for one in facts.slices
            for name, measure in one.candidate.items()
            if measure.error > 0
        ],
    )


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


def _judged(metrics: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """Return the metrics that are drawn: those of failed gates first, then other judged ones, then the first."""
    named = [one.metric for outcome in _ORDER for one in findings if one.outcome == outcome]
    return [name for name in dict.fromkeys([*named, *metrics[:1]]) if name in metrics][:_SHOWN_FIGURES]


def _figure(metric: str, slices: Sequence[SliceFacts], findings: Sequence[Finding]) -> Any:
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


def _number(value: float | None) -> str:
    return _DASH if value is None or math.isnan(value) else in_digits(value)


def _signed(value: float) -> str:
    return _DASH if math.isnan(value) else in_digits(value, 2, sign="+")


def _interval(measure: Measure) -> str:
    if math.isnan(measure.low):
        return "no interval"
    return f"{in_digits(measure.low, 2, sign='+')} to {in_digits(measure.high, 2, sign='+')}"


@cache
def _template() -> Template:
    filters: dict[str, Callable[..., str]] = {"number": _number, "signed": _signed, "interval": _interval}
    return page_template(Path(__file__).with_name("validation.html.jinja"), filters)
