"""The small chart of a metric over the epochs draws whatever a training reports (H9)."""

import math
from xml.etree import ElementTree

import pytest

from mirrorspark.pages.charts.epochs import metric_chart


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
        assert 0 <= float(text.attrib["y"]) <= 150


def test_the_best_epoch_is_marked_on_the_last_curve() -> None:
    curves = {"training": [(1, 0.5), (2, 0.4)], "validation": [(1, 0.6), (2, 0.5)]}
    assert metric_chart("loss", curves, epochs=2, best=2).count("<circle") == 1
    assert metric_chart("loss", curves, epochs=2).count("<circle") == 0
