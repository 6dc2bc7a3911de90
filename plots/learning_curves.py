"""Learning curves: every metric of a training run over its epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mirrorspark.plots import style

_MAX_COLUMNS = 3
_VALIDATION_PREFIX = "val_"


def learning_curves(
    history: Mapping[str, Sequence[float]],
    *,
    best_epoch: int | None = None,
    restarts: Sequence[float] = (),
) -> Figure:
    """Draw one panel per metric, with its training and validation values over epochs.

    Args:
        history: metric name -> one value per epoch, as ``keras.callbacks.History.history``; ``val_x`` joins the
            panel of ``x``.
        best_epoch: the epoch whose weights were kept, counted from 1.
        restarts: epochs (from 1, fractions allowed) at which the run was restarted.

    Raises:
        ValueError: no metric has a value, or ``best_epoch`` lies outside the epochs drawn.
    """
    drawn = {name: [float(value) for value in values] for name, values in history.items() if len(values)}
    if not drawn:
        raise ValueError("history has no epochs, so there is nothing to plot; pass at least one metric value")
    epochs = max(len(values) for values in drawn.values())
    if best_epoch is not None and not 1 <= best_epoch <= epochs:
        raise ValueError(f"best_epoch {best_epoch} is not among the epochs 1 to {epochs}; epochs count from 1")

    metrics = panel_names(drawn)
    columns = min(_MAX_COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = style.new_figure(columns, rows)
    for position, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(rows, columns, position)
        _draw_metric(axes, metric, drawn)
        _mark_events(axes, best_epoch, restarts)
        axes.set_xlim(0.5, epochs + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style.dress(axes, title=metric, x="Epoch", y=metric)
        style.legend(axes, location="best")
    return figure


def panel_names(history: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the metrics that get a panel: ``loss`` first, then in order of appearance, without ``val_``."""
    names = dict.fromkeys(name.removeprefix(_VALIDATION_PREFIX) for name in history)
    return sorted(names, key=lambda name: name != "loss")


def _draw_metric(axes: Axes, metric: str, history: Mapping[str, Sequence[float]]) -> None:
    for name, label, colour in (
        (metric, "training", style.BLUE),
        (_VALIDATION_PREFIX + metric, "validation", style.VERMILION),
    ):
        values = history.get(name)
        if values:
            axes.plot(
                range(1, len(values) + 1),
                values,
                color=colour,
                linewidth=style.LINE_WIDTH,
                marker="o",
                # A single epoch has no line; with many epochs dots would hide it.
                markersize=4 if len(values) <= 30 else 0,
                label=f"{label} (last {values[-1]:.4g})",
            )


def _mark_events(axes: Axes, best_epoch: int | None, restarts: Sequence[float]) -> None:
    if best_epoch is not None:
        axes.axvline(best_epoch, color=style.GREEN, linestyle="--", linewidth=1.5, label=f"best epoch {best_epoch}")
    for index, epoch in enumerate(restarts):
        noun = "restart" if len(restarts) == 1 else f"{len(restarts)} restarts"
        axes.axvline(epoch, color=style.GREY, linestyle=":", linewidth=1.5, label=noun if index == 0 else "_nolegend_")
