"""Curves over all thresholds of a binary model and its baselines: ROC, and precision over recall."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics

from mirrorspark.pages.figures import style
from mirrorspark.pages.figures.inputs import model_and_baselines

_FIRST_RECALL = 0.005


def roc_curve(
    label: ArrayLike,
    score: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    baseline: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw true-positive rate over false-positive rate, with the area under each curve in the legend.

    Args:
        label: 0 or 1, ``[rows]``.
        score: the model's scores, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        baseline: name -> scores ``[rows]`` of models to compare with.

    Raises:
        ValueError: empty input, one class only, or columns that do not match.
    """
    curves = model_and_baselines(label, score, weight, baseline)

    figure = style.new_figure()
    axes = figure.add_subplot()
    for index, (name, data) in enumerate(curves):
        false_positive, true_positive, _ = metrics.roc_curve(data.label, data.score, sample_weight=data.weight)
        area = metrics.auc(false_positive, true_positive)
        axes.plot(
            false_positive,
            true_positive,
            **style.curve(index),
            label=f"{style.label(name)} (AUC = {area:.3f})",
        )
    axes.plot([0, 1], [0, 1], color=style.GREY, linewidth=1, linestyle=":", label="chance (AUC = 0.500)")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    style.dress(axes, title="ROC curve", x="False-positive rate", y="True-positive rate")
    style.legend(axes, location="lower right")
    return figure


def precision_recall_curve(
    label: ArrayLike,
    score: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    baseline: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw precision over recall, with the average precision of each curve and the base rate in the legend.

    Below 0.5% recall, where precision depends on a handful of rows, the line is level; average precision covers every
    row.

    Args:
        label: 0 or 1, ``[rows]``.
        score: the model's scores, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        baseline: name -> scores ``[rows]`` of models to compare with.

    Raises:
        ValueError: empty input, one class only, or columns that do not match.
    """
    curves = model_and_baselines(label, score, weight, baseline)

    figure = style.new_figure()
    axes = figure.add_subplot()
    for index, (name, data) in enumerate(curves):
        precision, recall, _ = metrics.precision_recall_curve(
            data.label, data.score, sample_weight=data.weight, drop_intermediate=True
        )
        average = metrics.average_precision_score(data.label, data.score, sample_weight=data.weight)
        recall, precision = _without_noisy_start(recall, precision)
        axes.plot(
            recall,
            precision,
            # Average precision is the area under steps, not under straight lines between the points.
            drawstyle="steps-post",
            **style.curve(index),
            label=f"{style.label(name)} (AP = {average:.3f})",
        )
    base_rate = curves[0][1].base_rate
    axes.axhline(base_rate, color=style.GREY, linewidth=1, linestyle=":", label=f"base rate = {base_rate:.3f}")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    style.dress(axes, title="Precision-recall curve", x="Recall", y="Precision")
    style.legend_below(axes)
    return figure


def _without_noisy_start(
    recall: NDArray[np.float64], precision: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Replace the points below the first drawn recall with a level line; points run from recall 1 down to 0."""
    kept = recall >= _FIRST_RECALL
    return np.append(recall[kept], 0.0), np.append(precision[kept], precision[kept][-1])
