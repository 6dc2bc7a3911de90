"""Calibration: the observed rate of positives compared with the predicted probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mirrorspark.pages.figures import style
from mirrorspark.pages.figures.inputs import BinaryInputs, binary_inputs


@dataclass(frozen=True)
class CalibrationBins:
    """Rows grouped by predicted probability; arrays of shape ``[bins]``, lowest probability first."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    rows: NDArray[np.int64]
    weight: NDArray[np.float64]

    @property
    def expected_calibration_error(self) -> float:
        """Weighted mean of |observed - predicted| over bins (Naeini et al., 2015, on quantile bins)."""
        return float(np.average(np.abs(self.observed - self.predicted), weights=self.weight))


def calibration_bins(inputs: BinaryInputs, bins: int) -> CalibrationBins:
    """Group rows into at most ``bins`` quantile bins of probability; equal probabilities share a bin.

    Raises:
        ValueError: ``bins`` is below 1, or a score is not a probability.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; use 1 or more")
    outside = np.flatnonzero((inputs.score < 0) | (inputs.score > 1))
    if outside.size:
        raise ValueError(
            f"score is {inputs.score[outside[0]]} in row {outside[0]}; calibration needs probabilities from 0 to 1"
        )
    inner_edges = np.unique(np.quantile(inputs.score, np.arange(1, bins) / bins))
    bin_of_row = np.searchsorted(inner_edges, inputs.score, side="left")
    # If many scores are equal, some quantiles coincide and a bin may be empty: drop it.
    _, bin_of_row = np.unique(bin_of_row, return_inverse=True)
    weight = np.bincount(bin_of_row, inputs.weight).astype(np.float64)
    return CalibrationBins(
        predicted=np.bincount(bin_of_row, inputs.weight * inputs.score) / weight,
        observed=np.bincount(bin_of_row, inputs.weight * inputs.label) / weight,
        rows=np.bincount(bin_of_row),
        weight=weight,
    )


def calibration_curve(label: ArrayLike, score: ArrayLike, *, weight: ArrayLike | None = None, bins: int = 10) -> Figure:
    """Draw the observed rate over the predicted probability per quantile bin, and the rows in each bin.

    Bars show the 95% Wilson interval of the observed rate; the legend contains the expected calibration error.

    Args:
        label: 0 or 1, ``[rows]``.
        score: predicted probabilities, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        bins: number of quantile bins; fewer are drawn if scores tie.

    Raises:
        ValueError: empty input, one class only, columns that do not match, or scores outside 0 to 1.
    """
    groups = calibration_bins(binary_inputs(label, score, weight), bins)
    low, high = wilson_interval(groups.observed, groups.rows)

    figure = style.new_figure(height_ratios=(1.0, 0.4))
    upper, lower = figure.subplots(2, 1, height_ratios=(1.0, 0.35))
    limit = min(1.0, 1.08 * max(groups.predicted.max(), float(high.max())))
    upper.plot([0, limit], [0, limit], color=style.GREY, linewidth=1, linestyle=":", label="perfect")
    upper.errorbar(
        groups.predicted,
        groups.observed,
        # Rounding may move a bound past the rate by one ulp, and matplotlib refuses negative errors.
        yerr=np.maximum(0.0, [groups.observed - low, high - groups.observed]),
        color=style.MODEL,
        linewidth=style.LINE_WIDTH,
        marker="o",
        markersize=5,
        capsize=3,
        elinewidth=1.2,
        label=f"model (ECE = {groups.expected_calibration_error:.4f}), bars: 95%",
    )
    upper.set_xlim(-0.01 * limit, 1.01 * limit)
    upper.set_ylim(-0.01 * limit, 1.01 * limit)
    style.dress(upper, title="Calibration", x="Mean predicted probability", y="Observed rate")
    style.legend_below(upper)

    numbers = np.arange(1, groups.rows.size + 1)
    bars = lower.bar(numbers, groups.rows, color=style.SKY, width=0.8)
    lower.bar_label(bars, labels=[compact_count(int(rows)) for rows in groups.rows], fontsize=8, padding=1)
    lower.set_ylim(0, 1.25 * float(groups.rows.max()))
    lower.set_xticks(numbers)
    style.dress(lower, title="", x="Bin, from the lowest probability to the highest", y="Rows")
    lower.grid(visible=False, axis="x")
    return figure


def wilson_interval(
    rate: NDArray[np.float64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper 95% bounds of an observed rate (Wilson, 1927), each ``[bins]``."""
    z = 1.959964
    centre = (rate + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(rate * (1 - rate) / rows + z**2 / (4 * rows**2))
    return centre - half, centre + half


def compact_count(rows: int) -> str:
    """Return a count that fits above a narrow bar: ``950``, ``6.7k``, ``1.2M``."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if rows >= size:
            return f"{rows / size:.3g}{suffix}"
    return str(rows)
