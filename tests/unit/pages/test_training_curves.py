"""Curves of several runs: each can be distinguished, and missing values draw nothing."""

import io
import math

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mirrorspark.pages.figures import style
from mirrorspark.pages.figures.training_curves import run_curves

HISTORY = {"loss": [0.9, 0.6, 0.5], "val_loss": [1.0, 0.7, 0.8]}


def lines(axes: Axes, linestyle: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_linestyle() == linestyle]


def legend_texts(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def test_training_is_dashed_validation_solid_and_the_best_epoch_marked_on_it() -> None:
    (axes,) = run_curves({"a": HISTORY}, best_epochs={"a": 2}).axes
    (training,), (validation,), (best,) = lines(axes, "--"), lines(axes, "-"), lines(axes, "None")
    assert list(training.get_ydata()) == HISTORY["loss"]
    assert list(validation.get_ydata()) == HISTORY["val_loss"]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([2], [0.7])
    assert training.get_color() == validation.get_color() == best.get_color()


def test_every_run_has_its_own_colour_and_marker_up_to_eight_and_beyond_its_own_pair() -> None:
    assert len({style.series(index)[0] for index in range(8)}) == 8
    assert len({style.series(index)[1] for index in range(8)}) == 8
    assert len({style.series(index) for index in range(24)}) == 24


def test_eight_long_names_fit_below_the_panels() -> None:
    names = [f"some_flights-20261120-13000{number}-4349" for number in range(8)]
    metrics = {**HISTORY, "auc": [0.5, 0.6, 0.7], "val_auc": [0.5, 0.6, 0.6]}
    for history in (HISTORY, metrics):
        figure = run_curves(dict.fromkeys(names, history), best_epochs=dict.fromkeys(names, 2))
        figure.savefig(io.BytesIO(), format="png")
        assert legend_texts(figure)[:8] == names
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes), "the legend covers no curve"


def test_a_metric_that_only_some_runs_have_gets_a_panel_as_long_as_theirs() -> None:
    figure = run_curves({"a": HISTORY, "b": {"auc": [0.5]}})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "auc"]
    loss, auc = figure.axes
    assert len(loss.lines) == 2
    assert loss.get_xlim() == (0.5, 3.5)
    assert auc.get_xlim() == (0.5, 1.5)
    assert [to_hex(line.get_color()) for line in auc.lines] == [style.series(1)[0].lower()]
    assert auc.lines[0].get_marker() == ".", "a single epoch has no line"
    assert legend_texts(figure) == ["a", "b", "validation", "training"]


def test_an_epoch_without_a_value_is_a_gap() -> None:
    (axes,) = run_curves({"a": {"loss": [0.5, math.nan, 0.4]}}).axes
    assert math.isnan(axes.lines[0].get_ydata()[1])


def test_a_best_epoch_is_marked_on_the_training_curve_where_there_is_no_other() -> None:
    (axes,) = run_curves({"a": {"loss": [0.5, 0.4]}}, best_epochs={"a": 1}).axes
    assert list(lines(axes, "None")[0].get_ydata()) == [0.5]


@pytest.mark.parametrize("histories", [{}, {"a": {}}, {"a": {"loss": []}}])
def test_nothing_to_draw_is_refused(histories: dict[str, dict[str, list[float]]]) -> None:
    with pytest.raises(ValueError, match="no run has an epoch"):
        run_curves(histories)


@pytest.mark.parametrize(("run", "epoch"), [("a", 0), ("a", 4), ("b", 1)])
def test_a_best_epoch_that_was_not_trained_is_refused(run: str, epoch: int) -> None:
    with pytest.raises(ValueError, match=f"best epoch {epoch} of run '{run}' is not among its epochs 1 to"):
        run_curves({"a": HISTORY}, best_epochs={run: epoch})
