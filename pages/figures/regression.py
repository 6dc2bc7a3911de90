"""Predictions of a regression against the actual values, and their differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray

from mirrorspark.pages.figures import style
from mirrorspark.pages.numbers import in_digits, short_number

_BINS = 60
_GROUPS = 10
_SHARE_SHOWN = 0.995


def predicted_and_actual(
    label: ArrayLike,
    score: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    baseline: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw the density of the rows over prediction and actual value, and the histogram of the errors.

    Rows beyond the 99.5% quantile are left out of the picture, so that a few extreme ones do not fill it.

    Args:
        label: actual values, ``[rows]``.
        score: predictions, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        baseline: name -> predictions of models to compare with, whose errors are drawn as outlines.

    Raises:
        ValueError: no rows, or unequal lengths.
    """
    actual, predictions, weights = _checked(label, score, weight, baseline)
    predicted = predictions["model"]
    low, high = np.quantile(np.concatenate([actual, predicted]), [1 - _SHARE_SHOWN, _SHARE_SHOWN])
    high = high if high > low else low + 1
    figure = style.new_figure(2)
    left, right = figure.subplots(1, 2)
    left.hexbin(
        predicted,
        actual,
        C=weights,
        reduce_C_function=np.sum,
        gridsize=_BINS // 2,
        extent=(low, high, low, high),
        bins="log",
        cmap=style.tints(),
        linewidths=0,
        mincnt=1,
    )
    left.plot([low, high], [low, high], color=style.GREY, linestyle=":", linewidth=1.5, label="perfect")
    style.dress(left, title="Predicted and actual", x="Predicted", y="Actual")
    _shorten(left.xaxis, left.yaxis, right.xaxis)
    style.legend(left, location="upper left")
    errors = {name: of - actual for name, of in predictions.items()}
    widest = np.quantile(np.abs(errors["model"]), _SHARE_SHOWN) or 1.0
    for index, (name, of) in enumerate(errors.items()):
        look = (
            {"color": style.SKY}
            if not index
            else {"histtype": "step", "color": style.baseline_colour(index - 1), "linewidth": style.LINE_WIDTH}
        )
        mean = np.average(of, weights=weights)
        right.hist(
            of,
            bins=_BINS,
            range=(-widest, widest),
            weights=weights,
            label=f"{style.label(name)} (mean {in_digits(mean)})",
            **look,
        )
    right.axvline(0, color=style.GREY, linestyle=":")
    style.dress(right, title="Errors", x="Predicted minus actual", y="Rows")
    style.legend_below(right)
    return figure


def _shorten(*axes: Axis) -> None:
    """Label the ticks of amounts in few characters, so that neighbours do not overlap."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def residuals_by_prediction(
    label: ArrayLike,
    score: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    baseline: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw the mean error and the root of the mean squared error in ten groups of rows, by their prediction.

    A good model has a mean error near zero everywhere: too high or too low predictions show where it is off.

    Args:
        label: actual values, ``[rows]``.
        score: predictions, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        baseline: name -> predictions of models to compare with, each grouped by its own predictions.

    Raises:
        ValueError: no rows, or unequal lengths.
    """
    actual, predictions, weights = _checked(label, score, weight, baseline)
    figure = style.new_figure(2)
    left, right = figure.subplots(1, 2)
    for index, (name, predicted) in enumerate(predictions.items()):
        edges = np.unique(np.quantile(predicted, np.arange(1, _GROUPS) / _GROUPS))
        _, group = np.unique(np.searchsorted(edges, predicted, side="left"), return_inverse=True)
        total = np.bincount(group, weights)
        middle, mean, square = (
            np.divide(np.bincount(group, weights * values), total, out=np.zeros_like(total), where=total > 0)
            for values in (predicted, predicted - actual, (predicted - actual) ** 2)
        )
        look = style.curve(index) | {"marker": "o", "markersize": 4, "label": style.label(name)}
        left.plot(middle, mean, **look)
        right.plot(middle, np.sqrt(square), **look)
    left.axhline(0, color=style.GREY, linestyle=":")
    _shorten(left.xaxis, left.yaxis, right.xaxis, right.yaxis)
    style.dress(left, title="Mean error by prediction", x="Predicted", y="Predicted minus actual")
    style.dress(right, title="RMSE by prediction", x="Predicted", y="RMSE")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        style.legend_below(axes)
    return figure


def _checked(
    label: ArrayLike, score: ArrayLike, weight: ArrayLike | None, baseline: Mapping[str, ArrayLike] | None
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Return the actual values, the predictions by name, the model's first, and the weights."""
    actual = np.asarray(label, np.float64)
    predictions = {name: np.asarray(of, np.float64) for name, of in {"model": score, **(baseline or {})}.items()}
    for name, of in predictions.items():
        if actual.shape != of.shape or not actual.size:
            raise ValueError(
                f"label has shape {actual.shape} and score of {name} {of.shape}; pass one value per row in both"
            )
    weights = np.ones(actual.shape) if weight is None else np.asarray(weight, np.float64)
    used = weights > 0
    return actual[used], {name: of[used] for name, of in predictions.items()}, weights[used]
