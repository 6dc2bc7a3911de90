"""The distribution of a model's scores in each class."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from mirrorspark.pages.figures import style
from mirrorspark.pages.figures.inputs import binary_inputs


def score_histogram(label: ArrayLike, score: ArrayLike, *, weight: ArrayLike | None = None, bins: int = 40) -> Figure:
    """Draw the histogram of scores per class; each class adds up to 100%, so a rare class remains visible.

    Args:
        label: 0 or 1, ``[rows]``.
        score: the model's scores, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        bins: number of equal bins over the range of scores.

    Raises:
        ValueError: empty input, one class only, or columns that do not match.
    """
    inputs = binary_inputs(label, score, weight)
    edges = np.histogram_bin_edges(inputs.score, bins=bins)

    figure = style.new_figure()
    axes = figure.add_subplot()
    for name, in_class, colour, hatch in (
        ("negative", ~inputs.label, style.NEGATIVE, ""),
        ("positive", inputs.label, style.POSITIVE, "///"),
    ):
        weights = inputs.weight[in_class]
        mean = float(np.average(inputs.score[in_class], weights=weights))
        shares, _ = np.histogram(inputs.score[in_class], bins=edges, weights=weights / weights.sum())
        axes.stairs(shares, edges, fill=True, facecolor=colour, alpha=0.3, hatch=hatch, edgecolor=colour, linewidth=0)
        axes.stairs(
            shares,
            edges,
            color=colour,
            linewidth=style.LINE_WIDTH,
            label=f"{name} (n = {in_class.sum():,}, mean = {mean:.3f})",
        )
        axes.axvline(mean, color=colour, linewidth=1.2, linestyle="--")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    style.dress(axes, title="Scores by class", x="Score (dashed: mean of the class)", y="Share of the class's rows")
    style.legend_below(axes)
    return figure
