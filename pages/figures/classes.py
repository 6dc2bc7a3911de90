"""Quality of the predictions of each class: precision, recall and confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from mirrorspark.pages.figures import style

MOST_CLASSES = 20
_LONGEST_NAME = 16
_CLASSES_OF_A_PANEL = 10


def class_quality(
    label: ArrayLike,
    predicted: ArrayLike,
    names: Sequence[str],
    *,
    weight: ArrayLike | None = None,
    baseline: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw precision and recall by class: bars for the model, a mark for each baseline.

    Of more than 20 classes the first 20, the most frequent ones, are drawn.

    Args:
        label: actual class numbers, ``[rows]``.
        predicted: predicted class numbers, ``[rows]``.
        names: names of the classes.
        weight: non-negative row weights, ``[rows]``.
        baseline: name -> predicted class numbers of models to compare with.
    """
    actual = np.asarray(label, np.int64)
    weights = np.ones(len(actual)) if weight is None else np.asarray(weight, np.float64)
    shown = shown_names(names)
    places = np.arange(len(shown))
    figure = style.new_figure(2, height_ratios=(max(0.9, 0.09 * len(shown) + 0.35),))
    found = {"model": predicted, **(baseline or {})}
    shares = {name: _precision_and_recall(actual, np.asarray(of), weights, len(shown)) for name, of in found.items()}
    for position, (axes, title) in enumerate(
        zip(figure.subplots(1, 2, sharey=True), ("Precision", "Recall"), strict=True)
    ):
        for index, (name, of) in enumerate(shares.items()):
            if index == 0:
                axes.barh(places, of[position], color=style.SKY, height=0.7, label=style.label(name))
            else:
                colour = style.baseline_colour(index - 1)
                axes.scatter(of[position], places, color=colour, marker="D", s=26, zorder=3, label=style.label(name))
        axes.set_yticks(places, shown)
        axes.set_xlim(0, 1.02)
        style.dress(axes, title=title, x=f"{title} of the class", y="")
        axes.grid(visible=False, axis="y")
        style.legend_below(axes)
    figure.axes[0].invert_yaxis()
    return figure


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
    # A picture of one panel's width has no room for the shares of more classes, and is blank above and below.
    figure = style.new_figure(1 if size <= _CLASSES_OF_A_PANEL else 2, height_ratios=(max(1.0, 0.11 * size + 0.4),))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=style.tints(), vmin=0, vmax=1)
    axes.set_xticks(range(size), shown, rotation=60, ha="right")
    axes.set_yticks(range(size), shown)
    for row in range(size):
        for column in range(size):
            if shares[row, column] >= 0.005:
                colour = style.WHITE_LETTERS if shares[row, column] > 0.6 else style.BLACK
                axes.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    style.dress(axes, title="Confusion", x="Predicted", y="Actual")
    axes.grid(visible=False)
    return figure


def shown_names(names: Sequence[str]) -> list[str]:
    """Return the names of the classes that have a place of their own, each with its beginning and its end."""
    return [style.both_ends(name, _LONGEST_NAME) for name in names[:MOST_CLASSES]]


def _precision_and_recall(
    actual: NDArray[np.int64], predicted: NDArray[np.int64], weight: NDArray[np.float64], classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both by class, ``[classes]``; 0 where a class was never predicted, or never is."""
    size = max(MOST_CLASSES, int(max(actual.max(initial=0), predicted.max(initial=0)))) + 1
    right = np.bincount(actual, weight * (actual == predicted), size)[:classes]
    guesses, rows = (np.bincount(of, weight, size)[:classes] for of in (predicted, actual))
    precision, recall = (np.divide(right, of, out=np.zeros(classes), where=of > 0) for of in (guesses, rows))
    return precision, recall
