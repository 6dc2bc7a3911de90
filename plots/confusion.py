"""Confusion of classes: how the rows of each class were predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mirrorspark.plots import style

MOST_CLASSES = 20
_LONGEST_NAME = 16


def confusion_matrix(
    label: ArrayLike, predicted: ArrayLike, names: Sequence[str], *, weight: ArrayLike | None = None
) -> Figure:
    """Draw the share of each actual class that was predicted as each class; each row of the picture sums to 1.

    Of more than 20 classes the first 20, which are the most frequent ones, have places; the others share one.

    Args:
        label: actual class numbers, ``[rows]``.
        predicted: predicted class numbers, ``[rows]``.
        names: names of the classes.
        weight: non-negative row weights, ``[rows]``.

    Raises:
        ValueError: no rows, or unequal lengths.
    """
    actual, guessed = np.asarray(label, np.int64), np.asarray(predicted, np.int64)
    if actual.shape != guessed.shape or not actual.size:
        raise ValueError(f"label has shape {actual.shape}, predicted {guessed.shape}; pass one class per row in both")
    shown = shown_names(names)
    if len(names) > MOST_CLASSES:
        shown.append("others")
    size = len(shown)
    counts = np.zeros((size, size))
    np.add.at(
        counts,
        (np.minimum(actual, size - 1), np.minimum(guessed, size - 1)),
        1 if weight is None else np.asarray(weight),
    )
    shares = counts / np.where(rows := counts.sum(axis=1, keepdims=True), rows, 1)
    figure = style.new_figure(height_ratios=(max(1.0, 0.11 * size + 0.4),))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(size), shown, rotation=60, ha="right")
    axes.set_yticks(range(size), shown)
    for row in range(size):
        for column in range(size):
            if shares[row, column] >= 0.005:
                colour = "white" if shares[row, column] > 0.6 else style.BLACK
                axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    style.dress(axes, title="Confusion", x="Predicted", y="Actual")
    axes.grid(visible=False)
    return figure


def shown_names(names: Sequence[str]) -> list[str]:
    """Return the names of the classes that have a place of their own, shortened."""
    return [style.shown(name, _LONGEST_NAME) for name in names[:MOST_CLASSES]]
