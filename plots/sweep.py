"""What a sweep found: the value of trial after trial, the values that went together, and which knobs mattered."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots import style

_COLOURS = "viridis"
_LEAST_ALPHA = 0.35
_INCHES_PER_AXIS = 1.9
_TEXT_CHARACTERS = 14


def optimisation_history(
    values: Mapping[int, float], pruned: Mapping[int, float] | None = None, *, metric: str, mode: Literal["max", "min"]
) -> Figure:
    """Draw the value of every trial over its number, and the best so far.

    Args:
        values: trial number -> value, of the trials that were trained to their end.
        pruned: the same of those that were not; their values are the best they had reached.
        metric: what the values are.
        mode: whether a larger or a smaller one is better.

    Raises:
        ValueError: no trial, or a value that is no finite number.
    """
    pruned = pruned or {}
    if not values:
        raise ValueError("no trial was trained to its end, so there is nothing to plot; pass at least one value")
    _check_finite({**values, **pruned})
    figure = style.new_figure()
    axes = figure.add_subplot()
    numbers = sorted(values)
    best = np.maximum.accumulate if mode == "max" else np.minimum.accumulate
    so_far = best([values[number] for number in numbers])
    axes.step(numbers, so_far, where="post", color=style.VERMILION, linewidth=style.LINE_WIDTH, label="best so far")
    axes.plot(numbers, [values[n] for n in numbers], "o", color=style.BLUE, label="trial")
    if pruned:
        axes.plot(list(pruned), list(pruned.values()), "x", color=style.GREY, label="pruned trial, its best epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style.dress(axes, title="Optimisation history", x="Trial", y=metric)
    style.legend(axes, location="best")
    return figure


def parallel_coordinates(
    trials: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    *,
    metric: str,
    mode: Literal["max", "min"],
    log: Collection[str] = (),
) -> Figure:
    """Draw a line per trial through an axis per knob and one for its value, which colours it.

    Args:
        trials: per trial its knobs; numbers are placed by size, anything else by name.
        values: per trial its value.
        metric: what the values are.
        mode: whether a larger or a smaller one is better; the best lines lie on top.
        log: knobs whose axis is logarithmic.

    Raises:
        ValueError: no trial, not as many values, trials with other knobs than the first, or a value that is not finite.
    """
    if not trials or len(trials) != len(values):
        raise ValueError(f"{len(trials)} trials have {len(values)} values; pass one trial or more, each with a value")
    _check_finite(dict(enumerate(values)))
    knobs = list(trials[0])
    for number, trial in enumerate(trials):
        if set(trial) != set(knobs):
            raise ValueError(f"trial {number} has the knobs {sorted(trial)}, trial 0 {sorted(knobs)}; pass equal ones")
    columns = [_Axis(knob, [trial[knob] for trial in trials], is_log=knob in log) for knob in knobs]
    columns.append(_Axis(metric, list(values), is_log=False))

    figure = style.new_figure()
    figure.set_size_inches(max(style.PANEL_WIDTH_INCHES, _INCHES_PER_AXIS * len(columns)), style.PANEL_HEIGHT_INCHES)
    axes = figure.add_subplot()
    colours = colormaps[_COLOURS]
    low, high = min(values), max(values)
    scale = Normalize(low if low < high else high - 1, high)
    worst_first = sorted(range(len(trials)), key=lambda trial: values[trial], reverse=mode == "min")
    for place, row in enumerate(worst_first):
        heights = [column.heights[row] for column in columns]
        alpha = _LEAST_ALPHA + (1 - _LEAST_ALPHA) * (place + 1) / len(trials)
        axes.plot(range(len(columns)), heights, color=colours(scale(values[row])), alpha=alpha, linewidth=1.5)
    for position, column in enumerate(columns):
        _draw_axis(axes, position, column)
    axes.set_xticks(range(len(columns)), [column.name for column in columns])
    axes.set_xlim(-0.15, len(columns) - 0.6)
    axes.set_yticks([])
    style.dress(axes, title="What went together", x="Knob, and the value reached", y="Share of the axis")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.02)
    bar.set_label(metric)
    bar.ax.set_xlabel(" ")
    return figure


def importance_bars(importances: Mapping[str, float], *, metric: str) -> Figure:
    """Draw how much each knob mattered for the metric, as shares of 1.

    Raises:
        ValueError: no knob, or a share that is no finite number.
    """
    if not importances:
        raise ValueError("no knob has an importance, so there is nothing to plot; pass at least one")
    _check_finite(importances)
    rows = sorted(importances.items(), key=lambda row: row[1])
    figure = style.new_figure()
    axes = figure.add_subplot()
    bars = axes.barh([name for name, _ in rows], [share for _, share in rows], color=style.BLUE)
    axes.bar_label(bars, labels=[f"{share:.0%}" for _, share in rows], padding=3)
    axes.margins(x=0.12)
    style.dress(axes, title="What mattered", x=f"Share of the differences in {metric}", y="Knob")
    return figure


class _Axis:
    """One axis of the parallel coordinates: where each trial crosses it, from 0 to 1, and its labels."""

    def __init__(self, name: str, values: Sequence[Any], *, is_log: bool) -> None:
        self.name = name
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            numbers = [math.log10(value) if is_log else float(value) for value in values]
            low, high = min(numbers), max(numbers)
            width = high - low
            self.heights = [(number - low) / width if width else 0.5 for number in numbers]
            ends = {height: value for height, value in zip(self.heights, values, strict=True) if height in (0, 0.5, 1)}
            marks = ends if not width else {0.0: ends[0], 1.0: ends[1]}
            if width:
                middle = low + width / 2
                marks[0.5] = 10**middle if is_log else middle
            self.labels = {height: f"{value:.4g}" for height, value in marks.items()}
        else:
            names = sorted({_shortened(value) for value in values})
            places = {text: place / (len(names) - 1) if len(names) > 1 else 0.5 for place, text in enumerate(names)}
            self.heights = [places[_shortened(value)] for value in values]
            self.labels = {place: text for text, place in places.items()}


def _draw_axis(axes: Axes, position: int, column: _Axis) -> None:
    axes.axvline(position, color=style.GREY, linewidth=1)
    for height, text in column.labels.items():
        axes.annotate(
            text,
            (position, height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[: _TEXT_CHARACTERS - 1]}…"


def _check_finite(values: Mapping[Any, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"the value of {name} is {value}; pass finite numbers")
