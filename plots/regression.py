"""Predictions of a regression beside the actual values, and their differences."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mirrorspark.plots import style

_BINS = 60
_SHARE_SHOWN = 0.995


def predicted_and_actual(label: ArrayLike, score: ArrayLike) -> Figure:
    """Draw the density of the rows over prediction and actual value, and the histogram of the errors.

    Rows beyond the 99.5% quantile are left out of the picture, so that a few extreme ones do not fill it.

    Args:
        label: actual values, ``[rows]``.
        score: predictions, ``[rows]``.

    Raises:
        ValueError: no rows, or unequal lengths.
    """
    actual, predicted = np.asarray(label, np.float64), np.asarray(score, np.float64)
    if actual.shape != predicted.shape or not actual.size:
        raise ValueError(f"label has shape {actual.shape} and score {predicted.shape}; pass one value per row in both")
    low, high = np.quantile(np.concatenate([actual, predicted]), [1 - _SHARE_SHOWN, _SHARE_SHOWN])
    high = high if high > low else low + 1
    figure = style.new_figure(2)
    left, right = figure.subplots(1, 2)
    left.hexbin(
        predicted, actual, gridsize=_BINS // 2, extent=(low, high, low, high), bins="log", cmap="Blues", mincnt=1
    )
    left.plot([low, high], [low, high], color=style.GREY, linestyle=":", linewidth=1.5, label="perfect")
    style.dress(left, title="Predicted and actual", x="Predicted", y="Actual")
    style.legend(left, location="upper left")
    errors = predicted - actual
    widest = np.quantile(np.abs(errors), _SHARE_SHOWN) or 1.0
    right.hist(errors, bins=_BINS, range=(-widest, widest), color=style.MODEL)
    right.axvline(errors.mean(), color=style.VERMILION, linestyle="--", label=f"mean {errors.mean():.4g}")
    style.dress(right, title="Errors", x="Predicted minus actual", y="Rows")
    style.legend(right, location="upper right")
    return figure
