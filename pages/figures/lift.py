"""Lift: the share of positives among the best-scored rows, compared with rows taken at random."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray

from mirrorspark.pages.figures import style
from mirrorspark.pages.figures.inputs import BinaryInputs, binary_inputs

DECILES = 10


def cumulative_gain(inputs: BinaryInputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (share of rows, share of positives), both from 0 to 1, with rows in descending order of score.

    There is one point per distinct score, so rows that tie share their positives evenly, and the order of rows in the
    input does not matter.
    """
    order = np.argsort(-inputs.score, kind="stable")
    score, weight = inputs.score[order], inputs.weight[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(score)), score.size - 1)
    rows = np.cumsum(weight)[last_of_tie]
    positives = np.cumsum(weight * inputs.label[order])[last_of_tie]
    return np.append(0.0, rows / rows[-1]), np.append(0.0, positives / positives[-1])


def decile_lift(inputs: BinaryInputs) -> NDArray[np.float64]:
    """Return the rate of positives in each tenth of the rows over the overall rate, ``[10]``, best tenth first."""
    share, gain = cumulative_gain(inputs)
    edges = np.arange(DECILES + 1) / DECILES
    return np.diff(np.interp(edges, share, gain)) * DECILES


def lift_chart(label: ArrayLike, score: ArrayLike, *, weight: ArrayLike | None = None) -> Figure:
    """Draw the cumulative gain and the lift of each decile of rows, best-scored first.

    Args:
        label: 0 or 1, ``[rows]``.
        score: the model's scores, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.

    Raises:
        ValueError: empty input, one class only, or columns that do not match.
    """
    inputs = binary_inputs(label, score, weight)
    share, gain = cumulative_gain(inputs)
    lifts = decile_lift(inputs)

    figure = style.new_figure(columns=2)
    left, right = figure.subplots(1, 2)
    best_share = inputs.base_rate
    at_decile = float(np.interp(1 / DECILES, share, gain))
    left.plot(
        share,
        gain,
        color=style.MODEL,
        linewidth=style.LINE_WIDTH,
        label=f"model (top 10% of rows hold {at_decile:.1%})",
    )
    left.plot([0, best_share, 1], [0, 1, 1], color=style.GREEN, linewidth=1, linestyle="--", label="perfect")
    left.plot([0, 1], [0, 1], color=style.GREY, linewidth=1, linestyle=":", label="random")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    left.set_xlim(-0.01, 1.01)
    left.set_ylim(-0.01, 1.01)
    style.dress(left, title="Cumulative gain", x="Share of rows, best scored first", y="Share of positives found")
    style.legend_below(left)

    deciles = np.arange(1, DECILES + 1)
    bars = right.bar(
        deciles, lifts, color=style.MODEL, width=0.8, label=f"model (top decile = {lifts[0]:.2f} x base rate)"
    )
    # A background keeps the numbers readable where the base-rate line passes behind them.
    ground = {"facecolor": style.GROUND, "edgecolor": "none", "pad": 0.6}
    right.bar_label(bars, fmt="%.2f", fontsize=8, padding=2, bbox=ground)
    right.axhline(1.0, color=style.GREY, linewidth=1.2, linestyle=":", label=f"base rate = {inputs.base_rate:.3f}")
    right.set_ylim(0, 1.12 * max(1.0, float(lifts.max())))
    right.set_xticks(deciles)
    style.dress(right, title="Lift by decile", x="Decile of rows, best scored first", y="Lift over the base rate")
    right.grid(visible=False, axis="x")
    style.legend_below(right)
    return figure
