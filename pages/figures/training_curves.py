"""Every metric over the epochs: of one run, or of several on top of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mirrorspark.pages.figures import style

_MAX_COLUMNS = 3
_VALIDATION_PREFIX = "val_"
_LEGEND_INCHES_PER_ROW = 0.24
# Approximate width of a run's name in the legend.
_INCHES_PER_NAME = 3.2
_LONGEST_NAME = 40
_BEST_MARKER_SIZE = 9


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


def run_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]], *, best_epochs: Mapping[str, int] | None = None
) -> Figure:
    """Draw one panel per metric, with the training (dashed) and validation (solid) values of every run over epochs.

    Args:
        histories: run name -> metric name -> one value per epoch; ``val_x`` joins the panel of ``x``. NaN leaves a gap.
        best_epochs: run name -> the epoch whose weights were kept, counted from 1; it gets the run's marker.

    Raises:
        ValueError: no run has a value, or a best epoch lies outside the epochs of its run.
    """
    drawn = {
        run: {name: [float(value) for value in values] for name, values in history.items() if len(values)}
        for run, history in histories.items()
    }
    drawn = {run: history for run, history in drawn.items() if history}
    if not drawn:
        raise ValueError("no run has an epoch, so there is nothing to plot; pass at least one metric value")
    best = dict(best_epochs or {})
    for run, epoch in best.items():
        epochs = max((len(values) for values in drawn.get(run, {}).values()), default=0)
        if not 1 <= epoch <= epochs:
            raise ValueError(f"best epoch {epoch} of run {run!r} is not among its epochs 1 to {epochs}")

    metrics = panel_names({name: values for history in drawn.values() for name, values in history.items()})
    columns = min(_MAX_COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = style.new_figure(columns, rows)
    for position, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(rows, columns, position)
        for index, (run, history) in enumerate(drawn.items()):
            _draw_run(axes, metric, history, best.get(run), *style.series(index))
        lengths = [len(history.get(name, ())) for history in drawn.values() for name in _names_of(metric)]
        axes.set_xlim(0.5, max(lengths) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style.dress(axes, title=metric, x="Epoch", y=metric)
    _add_legend(figure, list(drawn), has_best=bool(best))
    return figure


def _draw_run(
    axes: Axes, metric: str, history: Mapping[str, Sequence[float]], best: int | None, colour: str, marker: str
) -> None:
    training, validation = _names_of(metric)
    for name, linestyle, width in ((training, "--", 0.7 * style.LINE_WIDTH), (validation, "-", style.LINE_WIDTH)):
        values = history.get(name)
        if not values:
            continue
        # A single epoch has no line.
        dot = "." if len(values) == 1 else ""
        axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=linestyle, linewidth=width, marker=dot)
    judged = history.get(validation) or history.get(training)
    if best is not None and judged and best <= len(judged):
        axes.plot(
            [best],
            [judged[best - 1]],
            color=colour,
            marker=marker,
            markersize=_BEST_MARKER_SIZE,
            markeredgecolor=style.GROUND,
            linestyle="none",
            zorder=3,
        )


def _names_of(metric: str) -> tuple[str, str]:
    return metric, _VALIDATION_PREFIX + metric


def _add_legend(figure: Figure, runs: Sequence[str], *, has_best: bool) -> None:
    """Add one legend below all panels, where it covers no curve, and increase the figure's height accordingly."""
    handles = []
    for index, run in enumerate(runs):
        colour, marker = style.series(index)
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                linewidth=style.LINE_WIDTH,
                marker=marker if has_best else None,
                label=style.label(run, _LONGEST_NAME),
            )
        )
    handles += [
        Line2D([], [], color=style.GREY, linewidth=style.LINE_WIDTH, label="validation"),
        Line2D([], [], color=style.GREY, linewidth=0.7 * style.LINE_WIDTH, linestyle="--", label="training"),
    ]
    if has_best:
        handles.append(
            Line2D([], [], color=style.GREY, marker="o", linestyle="none", label="best epoch (the run's marker)")
        )
    width, height = figure.get_size_inches()
    columns = max(1, int(width // _INCHES_PER_NAME))
    rows = math.ceil(len(handles) / columns)
    figure.set_size_inches(width, height + rows * _LEGEND_INCHES_PER_ROW + 0.3)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
