"""The facts that gates decide about: metrics of slices with their intervals, parity, schema, latency and size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mirrorspark.evaluation import bootstrap
from mirrorspark.lifecycle.gate.metric_sums import BUCKETS, MetricSums, weighted_counts
from mirrorspark.lifecycle.gate.slices import OVERALL, slice_name
from mirrorspark.lifecycle.gate.task_metrics import INVALID, ROWS, TaskMetrics, binning_errors
from mirrorspark.scoring.parity import ParityReport


@dataclass(frozen=True)
class MetricEstimate:
    """A value with its 95% interval.

    Attributes:
        low: Lower end, NaN without an interval.
        high: Upper end.
        error: Largest distance to the exact value that comes from grouped scores; 0 for an exact value.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    error: float = 0.0


@dataclass(frozen=True)
class SliceFacts:
    """Metrics of a slice by name.

    Attributes:
        slicing: Name of the slicing, :data:`lifecycle.gate.slices.OVERALL` for all rows.
        value: Value of the slicing's expression, as text; None for null and for all rows.
        examples: Rows that the candidate scored.
        invalid: Rows for which it gave no valid score.
        candidate: Its metrics.
        champion: The champion's metrics; empty without one.
        change: Candidate minus champion, of the same draws of keys.
    """

    slicing: str
    value: str | None
    examples: int
    invalid: int
    candidate: Mapping[str, MetricEstimate]
    champion: Mapping[str, MetricEstimate] = field(default_factory=dict)
    change: Mapping[str, MetricEstimate] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The slice in words."""
        return slice_name(self.slicing, self.value)

    @property
    def is_overall(self) -> bool:
        """True if the slice has all rows."""
        return self.slicing == OVERALL


@dataclass(frozen=True)
class Facts:
    """All that gates decide about.

    Attributes:
        slices: All rows first.
        parity: Reports of parity by name of the check.
        schema_changes: How inputs and outputs differ from the champion's, in words; None without a champion.
        latency_p99_ms: 99th percentile of the time of a single row, in milliseconds; None if it was not measured.
        model_bytes: Size of the model's files.
    """

    slices: tuple[SliceFacts, ...]
    parity: Mapping[str, ParityReport] = field(default_factory=dict)
    schema_changes: tuple[str, ...] | None = None
    latency_p99_ms: float | None = None
    model_bytes: int | None = None

    @property
    def has_champion(self) -> bool:
        """True if the candidate was compared with a champion."""
        return any(one.champion for one in self.slices)


def slice_facts(
    slicing: str,
    value: str | None,
    sums_by_model: Sequence[MetricSums],
    metrics: TaskMetrics,
    *,
    seed: int,
    resamples: int = bootstrap.RESAMPLES,
) -> SliceFacts:
    """Return the metrics of a slice, with intervals from a Poisson bootstrap of the buckets of keys.

    Args:
        slicing: Name of the slicing.
        value: The slice's value.
        sums_by_model: Sums of the candidate and, if there is one, of the champion.
        metrics: The metrics of the task.
        seed: Fixes the draws.
        resamples: Number of draws.
    """
    weights = np.random.default_rng(seed).poisson(1.0, (resamples, BUCKETS)).astype(np.float64)
    points = [_points(metric_sums, metrics) for metric_sums in sums_by_model]
    drawn = [_drawn(metric_sums, metrics, weights) for metric_sums in sums_by_model]
    # Shares of few cells are off by a little; their distance to the exact value is the same in every draw.
    centres = [_drawn(metric_sums, metrics, np.ones((1, BUCKETS))) for metric_sums in sums_by_model]
    with np.errstate(invalid="ignore"):  # a ratio to a sum of 0 is infinite, and has no interval
        of_models = [
            {
                name: _estimate(found, draws[name] - centre[name] + found, error.get(name, 0.0))
                for name, found in values.items()
            }
            for (values, error), draws, centre in zip(points, drawn, centres, strict=True)
        ]
    change = {}
    if len(sums_by_model) > 1:
        with np.errstate(invalid="ignore"):
            for name, point in points[0][0].items():
                gain = point - points[1][0][name]
                draws = drawn[0][name] - drawn[1][name] - (centres[0][name] - centres[1][name])
                change[name] = _estimate(gain, draws + gain, of_models[0][name].error)
    sums = sums_by_model[0].sums.sum(axis=0)
    champion = of_models[1] if len(of_models) > 1 else {}
    return SliceFacts(slicing, value, int(sums[ROWS]), int(sums[INVALID]), of_models[0], champion, change)


def _points(metric_sums: MetricSums, metrics: TaskMetrics) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics, and how far they may be from their exact values."""
    found = metrics.values(metric_sums.sums.sum(axis=0)[None], [weighted_counts(counts) for counts in metric_sums.fine])
    errors = [binning_errors(counts.counts) if counts.shift else {} for counts in metric_sums.fine]
    error = dict(errors[0]) if errors else {}
    for name in ("auc", "pr_auc"):
        error[f"macro_{name}"] = float(np.mean([one.get(name, 0.0) for one in errors[1:]] or [0.0]))
    return {name: float(of[0]) for name, of in found.items()}, error


def _drawn(
    metric_sums: MetricSums, metrics: TaskMetrics, weights: NDArray[np.float64]
) -> Mapping[str, NDArray[np.float64]]:
    return metrics.values(
        weights @ metric_sums.sums, [weighted_counts(counts, weights) for counts in metric_sums.coarse]
    )


def _estimate(value: float, draws: NDArray[np.float64], error: float) -> MetricEstimate:
    # A draw of few rows may have one class only.
    draws = draws[np.isfinite(draws)]
    if not len(draws) or not math.isfinite(value):
        return MetricEstimate(value, error=error)
    low, high = np.quantile(draws, [(1 - bootstrap.CONFIDENCE) / 2, (1 + bootstrap.CONFIDENCE) / 2])
    return MetricEstimate(value, float(low), float(high), error)
