"""Changes of a metric by slice, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from mirrorspark.pages.figures import style

_ROW_INCHES = 0.28
_LONGEST_NAME = 36


def slice_changes(
    metric: str,
    names: Sequence[str],
    changes: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    failed: Sequence[bool],
) -> Figure:
    """Draw the change of a metric in each slice, candidate minus champion, with its interval; the first is on top.

    Args:
        metric: Name of the metric.
        names: Names of the slices.
        changes: Changes; slices with one that is not finite are left out.
        lows: Lower ends of the intervals, NaN without one.
        highs: Upper ends.
        failed: Whether a threshold of this metric failed in the slice.
    """
    rows = [row for row in zip(names, changes, lows, highs, failed, strict=True) if math.isfinite(row[1])]
    figure = style.new_figure()
    figure.set_size_inches(1.5 * style.PANEL_WIDTH_INCHES, 1.1 + _ROW_INCHES * max(len(rows), 1))
    axes = figure.subplots()
    for place, (_, change, low, high, has_failed) in enumerate(rows):
        colour = style.VERMILION if has_failed else style.MODEL
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [place, place], color=colour, linewidth=style.LINE_WIDTH, alpha=0.6)
        # A marker of its own, for readers who see no colour.
        axes.plot([change], [place], color=colour, marker="X" if has_failed else "o", markersize=6, linestyle="")
    axes.axvline(0.0, color=style.GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [style.both_ends(row[0], _LONGEST_NAME) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    style.dress(axes, title=f"Change of {metric}", x="Candidate minus champion, 95% interval", y="")
    return figure
