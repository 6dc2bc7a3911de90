"""The ROC curve of a binary model beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn import metrics

from plots import style
from plots.inputs import BinaryInputs, baseline_scores, binary_inputs


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
        baseline: name -> scores ``[rows]`` of the models to compare with.

    Raises:
        ValueError: empty input, one class only, or columns that do not match.
    """
    model = binary_inputs(label, score, weight)
    others = baseline_scores(label, weight, dict(baseline or {}))

    figure = style.new_figure()
    axes = figure.add_subplot()
    curves: list[tuple[str, BinaryInputs, str]] = [("model", model, style.MODEL)]
    curves += [(name, data, style.baseline_colour(index)) for index, (name, data) in enumerate(others.items())]
    for name, data, colour in curves:
        false_positive, true_positive, _ = metrics.roc_curve(data.label, data.score, sample_weight=data.weight)
        area = metrics.auc(false_positive, true_positive)
        axes.plot(
            false_positive,
            true_positive,
            color=colour,
            linewidth=style.LINE_WIDTH,
            linestyle="-" if data is model else "--",
            label=f"{name} (AUC = {area:.3f})",
        )
    axes.plot([0, 1], [0, 1], color=style.GREY, linewidth=1, linestyle=":", label="chance (AUC = 0.500)")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    style.dress(axes, title="ROC curve", x="False-positive rate", y="True-positive rate")
    style.legend(axes, location="lower right")
    return figure
