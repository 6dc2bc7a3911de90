"""Facts of made-up validations, for tests of gates, pages and promotions."""

import math
from typing import Any

from mirrorspark.lifecycle.gate.facts import Facts, MetricEstimate, SliceFacts
from mirrorspark.lifecycle.gate.slices import OVERALL
from mirrorspark.lifecycle.gate.thresholds import Gates, Threshold
from mirrorspark.lifecycle.gate.validation import ModelReference, Validation

PASSING = Gates((Threshold("auc", at_least=0.7),), same_schema=False)


def slice_of(
    value: float,
    other: float | None = None,
    *,
    slicing: str = OVERALL,
    name: str | None = None,
    examples: int = 1000,
    invalid: int = 0,
    spread: float = math.nan,
    metric: str = "auc",
) -> SliceFacts:
    """Return a slice with one metric; the interval reaches ``spread`` to both sides."""

    def estimate(of: float) -> MetricEstimate:
        return MetricEstimate(of, of - spread, of + spread)

    champion = {} if other is None else {metric: estimate(other)}
    change = {} if other is None else {metric: estimate(value - other)}
    return SliceFacts(slicing, name, examples, invalid, {metric: estimate(value)}, champion, change)


def facts_of(*slices: SliceFacts, **others: Any) -> Facts:
    """Return facts with all rows first."""
    return Facts(slices or (slice_of(0.8),), **others)


def validation_of(
    facts: Facts | None = None,
    gates: Gates = PASSING,
    *,
    version: str = "2",
    champion: str | None = "1",
    name: str = "flights",
) -> Validation:
    """Return the validation of a version, compared with the champion's."""
    return Validation(
        candidate=ModelReference(f"models:/{name}/{version}", name, version, f"{version:0>64}"),
        champion=champion and ModelReference(f"models:/{name}/{champion}", name, champion, f"{champion:0>64}"),
        task="binary",
        label="late",
        keys=("id",),
        facts=facts or facts_of(),
        gates=gates,
        at="2026-01-31T08:00:00+00:00",
        seed=1,
    )
