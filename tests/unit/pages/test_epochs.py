"""The small chart of a metric over the epochs draws whatever a training reports (H9)."""

import math
from xml.etree import ElementTree

import pytest

from mirrorspark.pages.charts.epochs import metric_chart
from mirrorspark.pages.charts.ticks import round_ticks, tick_texts
from mirrorspark.pages.figures import style


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, 0.5], [0.5, math.nan, 0.4], [math.inf, 0.4], [math.nan], [1e9, -1e9], [0.0, 0.0]]
)
def test_any_values_give_a_drawing_within_its_frame(values: list[float]) -> None:
    curve = list(enumerate(values, start=1))
    svg = metric_chart("loss <b>", {"training": curve, "validation": curve}, epochs=4, best=1)
    assert "nan" not in svg
    assert "inf" not in svg
    assert "<b>" not in svg
    for text in ElementTree.fromstring(svg).iter("text"):  # noqa: S314 - our own text
        assert 0 <= float(text.attrib["x"]) <= 340
        assert 0 <= float(text.attrib["y"]) <= 168


def test_the_best_epoch_is_marked_on_the_last_curve() -> None:
    curves = {"training": [(1, 0.5), (2, 0.4)], "validation": [(1, 0.6), (2, 0.5)]}
    assert metric_chart("loss", curves, epochs=2, best=2).count("<circle") == 1
    assert metric_chart("loss", curves, epochs=2).count("<circle") == 0


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.436, 0.561, ["0.45", "0.50", "0.55"]),
        (0.4436, 0.4441, ["0.4436", "0.4438", "0.4440"]),
        (-1.2, 1.2, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (9_100, 11_900, ["9.5k", "10.0k", "10.5k", "11.0k", "11.5k"]),
        (1_234_561.2, 1_234_568.9, ["1.234562M", "1.234564M", "1.234566M", "1.234568M"]),
        (1.1e-5, 2.9e-5, ["1.5e-05", "2.0e-05", "2.5e-05"]),
        (3.0, 3.0, ["3"]),
    ],
)
def test_ticks_are_round_values_with_as_many_decimals_each(low: float, high: float, texts: list[str]) -> None:
    assert tick_texts(round_ticks(low, high)) == texts


def test_a_chart_has_round_ticks_whole_epochs_and_the_colours_of_the_report() -> None:
    losses = [0.5566, 0.5106, 0.4873, 0.4671, 0.4436]
    curves = {"training": list(enumerate(losses, start=1)), "validation": list(enumerate(losses[:3], start=1))}
    svg = metric_chart("loss", curves, epochs=23)
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own text
    texts = [text.text for text in root.iter("text")]
    assert texts == ["loss", "0.45", "0.50", "0.55", "1", "5", "10", "15", "epoch 20", "training", "validation"]
    colours = [path.attrib["stroke"] for path in root.iter("path") if path.attrib.get("stroke-width") == "2"]
    training, validation = colours[0], colours[-1]
    assert style.BLUE in training
    assert style.VERMILION in validation


def test_a_long_name_of_a_metric_does_not_run_into_the_legend() -> None:
    curve = [(1, 0.5), (2, 0.4)]
    svg = metric_chart("m" * 80, {"training": curve, "validation": curve}, epochs=2)
    title, *_, legend = ElementTree.fromstring(svg).iter("text")  # noqa: S314 - our own text
    assert title.text is not None
    assert len(title.text) < 50
    assert title.text.endswith("…")
    assert float(title.attrib["y"]) + 12 < float(legend.attrib["y"])
