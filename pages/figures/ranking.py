"""Recall at k: how often a recommender's first k items include the user's next item."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from mirrorspark.pages.figures import style


def recall_at_k_curve(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw recall@k over k; the first curve is the model, the others are its baselines.

    Args:
        curves: name -> {k: recall@k between 0 and 1}.

    Raises:
        ValueError: no curve, a curve without points, ``k`` below 1, or a recall outside 0 to 1.
    """
    if not curves:
        raise ValueError("curves is empty, so there is nothing to plot; pass at least one name -> {k: recall}")
    for name, points in curves.items():
        if not points:
            raise ValueError(f"curve {name!r} has no points; pass at least one k -> recall")
        for k, recall in points.items():
            if k < 1 or not 0 <= recall <= 1:
                raise ValueError(f"curve {name!r} has recall {recall} at k = {k}; k starts at 1, recall is from 0 to 1")

    figure = style.new_figure()
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        ks = sorted(points)
        axes.plot(
            ks,
            [points[k] for k in ks],
            **style.curve(index),
            marker="o",
            markersize=5,
            label=f"{style.label(name)} (recall@{ks[-1]} = {points[ks[-1]]:.3f})",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_xticks(sorted({k for points in curves.values() for k in points}))
    style.dress(axes, title="Recall at k", x="k, items recommended", y="Recall@k, users whose next item is among them")
    style.legend(axes, location="upper left")
    return figure
