"""Plots of the importance of features, and of the prediction over the values of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mirrorspark.pages.figures import style

_COLUMNS = 3
_LONGEST_VALUE = 14
# Longer ones would leave no room for the bars.
_LONGEST_NAME = 28


def importance_chart(importance: Mapping[str, tuple[float, float]], *, loss: str = "loss") -> Figure:
    """Draw a bar per feature, the most important on top.

    Args:
        importance: Feature -> increase of the loss when its values are shuffled, and the standard deviation of that
            over repetitions.
        loss: Name of the loss, for the axis.

    Raises:
        ValueError: There is no feature.
    """
    if not importance:
        raise ValueError("there is no feature, so there is nothing to plot; pass at least one")
    names = sorted(importance, key=lambda name: importance[name][0])
    figure = style.new_figure(height_ratios=(max(0.45, 0.075 * len(names) + 0.2),))
    axes = figure.add_subplot()
    # By place: shortened, two names may be the same.
    axes.barh(
        range(len(names)),
        [importance[name][0] for name in names],
        xerr=[importance[name][1] for name in names],
        color=style.MODEL,
        ecolor=style.GREY,
    )
    axes.set_yticks(range(len(names)), [style.both_ends(name, _LONGEST_NAME) for name in names])
    axes.axvline(0, color=style.BLACK, linewidth=0.8)
    style.dress(axes, title="Importance", x=f"Increase of {loss} when shuffled", y="")
    axes.grid(visible=False, axis="y")
    return figure


def dependence_chart(curves: Mapping[str, tuple[Sequence[object], Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw a panel per feature: the mean prediction when all rows have the same value of it.

    Numbers are joined by a line; other values are points in the order given.

    Args:
        curves: Feature -> its values, and by name the mean predictions at each: one, or one per class.

    Raises:
        ValueError: There is no feature.
    """
    if not curves:
        raise ValueError("there is no feature, so there is nothing to plot; pass at least one")
    columns = min(_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = style.new_figure(columns, rows)
    predictions = [value for _, named in curves.values() for means in named.values() for value in means]
    low, high = min(predictions), max(predictions)
    margin = 0.08 * (high - low) or 0.1
    for position, (name, (values, named)) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        places = [float(str(value)) for value in values] if are_numbers else list(range(len(values)))
        for number, (what, means) in enumerate(named.items()):
            colour, marker = style.series(number)
            if are_numbers:
                axes.plot(places, means, color=colour, linewidth=style.LINE_WIDTH, label=style.label(what))
            else:
                axes.plot(places, means, color=colour, marker=marker, linestyle="none", label=style.label(what))
        if not are_numbers:
            axes.set_xticks(
                places, [style.shown(value, _LONGEST_VALUE) for value in values], rotation=60, ha="right", fontsize=8
            )
        if len(named) > 1 and position == 1:
            style.legend(axes, location="best")
        # One scale for all panels, so that a flat one is seen to be flat.
        axes.set_ylim(low - margin, high + margin)
        style.dress(
            axes,
            title=style.shown(name, _LONGEST_NAME),
            x="",
            y="Mean prediction" if position % columns == 1 or columns == 1 else "",
        )
    return figure
