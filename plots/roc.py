"""The ROC curve of a binary model beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn import metrics

from mirrorspark.plots import style
from mirrorspark.plots.inputs import model_and_baselines


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
