"""Figures of a sweep show its trials, and refuse what has nothing to show."""

import io
from typing import Any

import pytest
from matplotlib.figure import Figure

from plots.sweep import importance_bars, optimisation_history, parallel_coordinates

TRIALS: list[dict[str, Any]] = [
    {"learning_rate": 0.001, "hidden_units": [64], "optimizer": "adam"},
    {"learning_rate": 0.1, "hidden_units": [128, 64], "optimizer": "sgd"},
    {"learning_rate": 0.01, "hidden_units": [64], "optimizer": "adam"},
]


def parallel(**changes: Any) -> Figure:
    arguments: dict[str, Any] = {"metric": "val_auc", "mode": "max", "log": ["learning_rate"]}
    return parallel_coordinates(
        changes.pop("trials", TRIALS), changes.pop("values", [0.6, 0.7, 0.8]), **arguments | changes
    )


def test_the_history_shows_every_trial_and_the_best_so_far() -> None:
    figure = optimisation_history({0: 0.5, 2: 0.7, 3: 0.6}, {1: 0.4}, metric="val_auc", mode="max")
    (axes,) = figure.axes
    lines = {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    assert lines["best so far"] == ([0, 2, 3], [0.5, 0.7, 0.7])
    assert lines["trial"] == ([0, 2, 3], [0.5, 0.7, 0.6])
    assert lines["pruned trial, its best epoch"] == ([1], [0.4])
    lower = optimisation_history({0: 0.5, 1: 0.7, 2: 0.4}, metric="val_loss", mode="min")
    assert list(lower.axes[0].get_lines()[0].get_ydata()) == [0.5, 0.5, 0.4]


def test_a_line_per_trial_crosses_an_axis_per_knob_at_its_value() -> None:
    axes = parallel().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [*TRIALS[0], "val_auc"]
    heights = [list(line.get_ydata()) for line in axes.get_lines()[:3]]
    # The best is drawn last, on top; on a logarithmic axis 0.01 lies in the middle of 0.001 and 0.1.
    assert heights[2] == pytest.approx([0.5, 1.0, 0.0, 1.0])
    assert heights[0] == pytest.approx([0.0, 1.0, 0.0, 0.0])
    worst_on_top = parallel(mode="min").axes[0].get_lines()[2]
    assert list(worst_on_top.get_ydata()) == pytest.approx([0.0, 1.0, 0.0, 0.0])


def test_equal_values_lie_in_the_middle() -> None:
    axes = parallel(trials=[TRIALS[0], TRIALS[0]], values=[0.5, 0.5]).axes[0]
    assert list(axes.get_lines()[0].get_ydata()) == [0.5, 0.5, 0.5, 0.5]


def test_bars_stand_in_the_order_of_their_length() -> None:
    axes = importance_bars({"dropout": 0.2, "learning_rate": 0.8}, metric="val_auc").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dropout", "learning_rate"]
    assert [patch.get_width() for patch in axes.patches] == [0.2, 0.8]


def test_every_figure_has_a_title_and_labels_and_can_be_drawn() -> None:
    figures = [
        optimisation_history({0: 0.5}, metric="val_auc", mode="max"),
        parallel(),
        importance_bars({"dropout": 1.0}, metric="val_auc"),
    ]
    for figure in figures:
        axes = figure.axes[0]
        assert axes.get_title(loc="left")
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        content = io.BytesIO()
        figure.savefig(content, format="png")
        assert content.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: optimisation_history({}, metric="m", mode="max"), "no trial was trained to its end"),
        (lambda: optimisation_history({0: float("nan")}, metric="m", mode="max"), "the value of 0 is nan"),
        (lambda: parallel(trials=[], values=[]), "0 trials have 0 values"),
        (lambda: parallel(values=[1.0]), "3 trials have 1 values"),
        (lambda: parallel(trials=[*TRIALS[:2], {"a": 1}]), "trial 2 has the knobs"),
        (lambda: importance_bars({}, metric="m"), "no knob has an importance"),
    ],
)
def test_what_has_nothing_to_show_is_refused(draw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
