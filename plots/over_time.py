"""A metric of a model in production, by window of time, beside what was promised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mirrorspark.plots import style

# More dates would run into each other.
_LABELS = 4


def over_time(
    metric: str,
    starts: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    promised: float | None = None,
) -> Figure:
    """Draw a metric by window with its intervals; values that are not finite leave a gap.

    Args:
        metric: Name of the metric.
        starts: Begins of the windows, as text.
        values: The metric of each window.
        lows: Lower ends of its intervals, NaN without one.
        highs: Upper ends.
        promised: Value of the validation, drawn as a line.
    """
    figure = style.new_figure()
    axes = figure.subplots()
    at = np.arange(len(starts))
    axes.fill_between(at, lows, highs, color=style.MODEL, alpha=0.2, linewidth=0)
    axes.plot(at, values, color=style.MODEL, marker="o", markersize=3, label="live")
    if promised is not None:
        axes.axhline(promised, color=style.VERMILION, linestyle="--", linewidth=1, label="promised")
        style.legend(axes, location="lower left")
    shown = at[:: math.ceil(len(at) / _LABELS) or 1]
    axes.set_xticks(shown, [starts[place][:10] for place in shown])
    style.dress(axes, title=f"{metric} in production", x="begin of the window", y=metric)
    return figure
