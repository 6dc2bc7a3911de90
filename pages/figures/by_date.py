"""Values by date: a metric in production and its expected value, several lines with a bound, and a distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mirrorspark.pages.figures import style

# More dates would run into each other.
_LABELS = 4


def over_time(
    metric: str,
    starts: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    expected: float | None = None,
) -> Figure:
    """Draw a metric by window with its intervals; values that are not finite leave a gap.

    Args:
        metric: Name of the metric.
        starts: Starts of the windows, as text.
        values: The metric of each window.
        lows: Lower ends of its intervals, NaN without one.
        highs: Upper ends.
        expected: Value of the validation, drawn as a line.
    """
    figure = style.new_figure()
    axes = figure.subplots()
    at = np.arange(len(starts))
    axes.fill_between(at, lows, highs, color=style.MODEL, alpha=0.2, linewidth=0)
    axes.plot(at, values, color=style.MODEL, marker="o", markersize=3, label="live")
    if expected is not None:
        axes.axhline(expected, color=style.VERMILION, linestyle="--", linewidth=1, label="expected")
        style.legend(axes, location="lower left")
    _name_dates(axes, starts)
    style.dress(axes, title=f"{metric} in production", x="start of the window", y=metric)
    return figure


def lines_over_time(
    title: str,
    dates: Sequence[str],
    lines: Mapping[str, Sequence[float]],
    *,
    y: str,
    bound: float | None = None,
    from_zero: bool = False,
) -> Figure:
    """Draw values by date, a line for each name; values that are not finite leave a gap.

    Args:
        title: Title of the figure.
        dates: Dates as text, the earliest first.
        lines: Values of each line, one per date.
        y: Name of the values' axis.
        bound: A limit, drawn as a line.
        from_zero: Whether the axis of the values begins with zero.
    """
    figure = style.new_figure()
    axes = figure.subplots()
    for index, (name, values) in enumerate(lines.items()):
        colour, marker = style.series(index)
        axes.plot(
            range(len(dates)), values, color=colour, marker=marker, markersize=3, linewidth=1.2, label=style.label(name)
        )
    if bound is not None:
        axes.axhline(bound, color=style.GREY, linestyle="--", linewidth=1, label=f"bound, {bound:g}")
    if from_zero:
        axes.set_ylim(bottom=0)
    _name_dates(axes, dates)
    style.dress(axes, title=title, x="", y=y)
    if len(lines) > 1 or bound is not None:
        style.legend(axes, location="best")
    return figure


def shares_over_time(title: str, dates: Sequence[str], counts: Sequence[Sequence[int]], *, y: str) -> Figure:
    """Draw a distribution by date: the share of the values in each bin as a colour, the lowest bin at the bottom.

    Args:
        title: Title of the figure.
        dates: Dates as text, the earliest first.
        counts: For each date the number of values in each bin, the same bins for all.
        y: Name of the bins' axis.
    """
    figure = style.new_figure()
    axes = figure.subplots()
    table = np.asarray(counts, np.float64).T
    shares = table / np.maximum(table.sum(axis=0), 1.0)
    bins = np.arange(len(table))
    image = axes.imshow(shares, aspect="auto", origin="lower", cmap="cividis", vmin=0.0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the rows")
    axes.set_yticks(bins, [str(place + 1) for place in bins])
    _name_dates(axes, dates)
    style.dress(axes, title=title, x="", y=y)
    axes.grid(visible=False)
    return figure


def _name_dates(axes: Axes, dates: Sequence[str]) -> None:
    shown = np.arange(len(dates))[:: math.ceil(len(dates) / _LABELS) or 1]
    axes.set_xticks(shown, [style.shown(dates[place][:10]) for place in shown])
