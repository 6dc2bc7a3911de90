"""Drift of columns and scores, from the counts of a window and those of the training: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mirrorspark.data_pipelines.quality import NOISE_DEVIATIONS, stability_index
from mirrorspark.lifecycle.watching.snapshot import Snapshot, WatchedColumn

# The statistic of Kolmogorov and Smirnov, times the root of the rows, stays below this as often.
_NOISE_KS = 1.949


@dataclass(frozen=True)
class DriftLimits:
    """Limits from which a change is an alarm, beyond chance.

    Attributes:
        psi: Population stability index.
        ks: Largest distance of two distribution functions, of numbers; None for no alarm.
        js: Jensen-Shannon divergence in bits, between 0 and 1; None for no alarm.
        missing: Change of the share of missing values.
        unknown: Rise of the share of tokens that the model does not know.
        min_rows: A window with fewer rows is not judged.
    """

    psi: float = 0.25
    ks: float | None = None
    js: float | None = None
    missing: float = 0.1
    unknown: float = 0.05
    min_rows: int = 100


@dataclass(frozen=True)
class ColumnDrift:
    """The drift of a column in a window.

    Attributes:
        column: The column.
        rows: The rows of the window.
        psi: Population stability index against the training rows.
        psi_noise: Its bound in 999 of 1,000 windows without drift.
        ks: Distance of the distribution functions at the edges of the bins; NaN for tokens.
        js: Jensen-Shannon divergence of the bins, in bits.
        missing: Share of missing values.
        missing_before: The same in the training rows.
        unknown: Share of tokens that the model does not know.
        unknown_before: The same in the training rows.
        problems: The limits that it exceeds, in words.
    """

    column: str
    rows: int
    psi: float
    psi_noise: float
    ks: float
    js: float
    missing: float
    missing_before: float
    unknown: float
    unknown_before: float
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColumnCounts:
    """Counts of a column in a window.

    Attributes:
        bins: Values by bin of the snapshot, with missing ones last.
        rows: The rows; of a list column, each may have several values.
        unknown: Tokens that the model does not know.
    """

    bins: tuple[int, ...]
    rows: int
    unknown: int = 0


def drift_of(snapshot: Snapshot, counted: Mapping[str, ColumnCounts], limits: DriftLimits) -> tuple[ColumnDrift, ...]:
    """Return the drift of every column that was counted, in the order of the snapshot."""
    return tuple(_judged(column, counted[column.name], limits) for column in snapshot.columns if column.name in counted)


def _judged(column: WatchedColumn, counted: ColumnCounts, limits: DriftLimits) -> ColumnDrift:
    now, before = np.array(counted.bins, np.float64), np.array(column.counts, np.float64)
    rows, rows_before = counted.rows, int(before.sum())
    present = sum(counted.bins[:-1])
    psi, noise = stability_index(counted.bins, column.counts)
    missing, missing_before = _share(counted.bins[-1], rows), column.missing_share
    unknown = _share(counted.unknown, present)
    ks = _ks(now[:-1], before[:-1]) if column.bins.edges else math.nan
    js = _js(now, before)
    problems = []
    if rows >= limits.min_rows and rows_before:
        if psi - noise > limits.psi:
            problems.append(f"index {psi:.2f}, at most {limits.psi:g} beyond chance ({noise:.2f})")
        if limits.ks is not None and ks - _NOISE_KS * math.sqrt(1 / max(present, 1) + 1 / rows_before) > limits.ks:
            problems.append(f"distance of distributions {ks:.2f}, at most {limits.ks:g} beyond chance")
        if limits.js is not None and js > limits.js:
            problems.append(f"divergence {js:.2f} bits, at most {limits.js:g}")
        if abs(missing - missing_before) - _noise(missing_before, missing, rows, rows_before) > limits.missing:
            problems.append(f"{missing:.1%} missing, {missing_before:.1%} in the training")
        rise = unknown - column.unknown_share
        if rise - _noise(column.unknown_share, unknown, max(present, 1), rows_before) > limits.unknown:
            problems.append(f"{unknown:.1%} of the tokens are unknown, {column.unknown_share:.1%} in the training")
    return ColumnDrift(
        column=column.name,
        rows=rows,
        psi=psi,
        psi_noise=noise,
        ks=ks,
        js=js,
        missing=missing,
        missing_before=missing_before,
        unknown=unknown,
        unknown_before=column.unknown_share,
        problems=tuple(problems),
    )


def _ks(now: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    if not now.sum() or not before.sum():
        return math.nan
    return float(np.abs(np.cumsum(now) / now.sum() - np.cumsum(before) / before.sum()).max())


def _js(now: NDArray[np.float64], before: NDArray[np.float64]) -> float:
    if not now.sum() or not before.sum():
        return math.nan
    p, q = now / now.sum(), before / before.sum()
    middle = (p + q) / 2
    return float(sum(_divergence(one, middle) for one in (p, q)) / 2)


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    has = p > 0
    return float(np.sum(p[has] * np.log2(p[has] / q[has])))


def _noise(first: float, second: float, rows: int, others: int) -> float:
    """Return the bound of a difference of shares by chance."""
    return NOISE_DEVIATIONS * math.sqrt(first * (1 - first) / others + second * (1 - second) / rows)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def alarms_of(drifts: Sequence[ColumnDrift]) -> list[str]:
    """Return the problems of all columns, in words."""
    return [f"{one.column}: {problem}" for one in drifts for problem in one.problems]
