"""Histograms for a page show the shares they are given, and are well-formed whatever the values."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.pages.charts.histogram import overlaid_histogram, share_bars
from mirrorspark.pages.charts.ticks import round_ticks
from mirrorspark.pages.numbers import short_number

SVG = "{http://www.w3.org/2000/svg}"


def parsed(figure: str) -> ElementTree.Element:
    # Our own text, no document of a stranger.
    return ElementTree.fromstring(figure)  # noqa: S314


def titles(figure: str) -> list[str]:
    return [title.text or "" for title in parsed(figure).iter(f"{SVG}title")]


def texts(figure: str) -> list[str]:
    return [text.text or "" for text in parsed(figure).iter(f"{SVG}text")]


def test_every_bar_tells_its_range_and_the_share_of_each_group() -> None:
    figure = overlaid_histogram([0, 10, 20, 30], {"train": [0.5, 0.3, 0.2], "test": [0.25, 0.25, 0.5]})
    assert titles(figure)[1] == "10 to 20: train 30.0%, test 25.0%"
    assert titles(figure)[0] == "outermost bar, with all beyond, 0 to 10: train 50.0%, test 25.0%"
    assert len(titles(figure)) == 3


def test_outlines_are_as_high_as_their_shares() -> None:
    figure = overlaid_histogram([0, 1, 2], {"train": [0.25, 0.5]})
    outline = next(path.get("d") for path in parsed(figure).iter(f"{SVG}path") if path.get("fill") == "none")
    assert outline is not None
    base = float(re.findall(r"M\S+ (\S+?)V", outline)[0])
    heights = [base - float(y) for y in re.findall(r"V([\d.]+)", outline)]
    assert heights[1] == pytest.approx(2 * heights[0])
    assert heights[2] == 0


def test_the_axis_names_round_values() -> None:
    assert texts(overlaid_histogram([0, 13, 26], {"train": [0.5, 0.5]}))[1:] == ["0", "10", "20"]
    named = overlaid_histogram([0, 1], {"train": [1.0]}, ticks=[0, 1], value_text=lambda value: f"day {value:.0f}")
    assert texts(named)[1:] == ["day 0", "day 1"]


def test_bars_show_labels_shares_and_a_trace_of_the_smallest() -> None:
    figure = share_bars(["often", "seldom", "never"], {"train": [0.9999, 0.0001, 0.0]})
    widths = [float(bar.get("width", "")) for bar in parsed(figure).iter(f"{SVG}rect")]
    assert widths[0] > 100
    assert widths[1:] == [1, 0]
    assert texts(figure)[:2] == ["often", "100.0%"]


def test_text_of_values_is_escaped_and_long_text_shortened() -> None:
    figure = share_bars(["<script>alert('x')</script> & more"], {"<b>": [1.0]})
    assert "<script>" not in figure
    assert titles(figure) == ["<script>alert('x')</script> & more: <b> 100.0%"]
    assert texts(figure)[0] == "<script>alert('x'…"
    assert texts(share_bars(["MCDONNELL DOUGLAS"], {"train": [1.0]}))[0] == "MCDONNELL DOU…"
    assert texts(share_bars(["日本語の長い名前ですよ"], {"train": [1.0]}))[0] == "日本語の長い名前で…"
    # As wide as eleven of the letters of other names.
    assert texts(share_bars(["W" * 30], {"train": [1.0]}))[0] == "W" * 9 + "…"


def test_input_without_anything_to_draw_is_refused() -> None:
    for draw, values, message in (
        (overlaid_histogram, ([1], {}), "edges has 1 values"),
        (overlaid_histogram, ([2, 2], {"train": [1.0]}), "edges from 2 to 2 do not rise"),
        (overlaid_histogram, ([0, 1], {"train": [0.5, 0.5]}), "'train' has 2 shares for 1 bars"),
        (share_bars, ([], {}), "no labels"),
        (share_bars, (["a", "b"], {"train": [1.0]}), "'train' has 1 shares for 2 labels"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(*values)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-2.5, "-2.5"),
        (1234, "1234"),
        (12_345, "12.35k"),
        (2.5e6, "2.5M"),
        (3e9, "3G"),
        (1e-7, "1e-07"),
        (1e20, "1e+20"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize("edges", [[0.0, 5e-324], [-1.7e308, 1.7e308], [-5e-324, 0.0, 5e-324]])
def test_the_smallest_and_the_largest_spans_fill_the_figure(edges: list[float]) -> None:
    bars = list(parsed(overlaid_histogram(edges, {"train": [1.0] * (len(edges) - 1)})).iter(f"{SVG}rect"))
    assert float(bars[0].get("x", "")) == 4
    assert float(bars[-1].get("x", "")) + float(bars[-1].get("width", "")) == 356


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=2, max_size=5, unique=True))
def test_any_range_can_be_drawn(ends: list[float]) -> None:
    edges = sorted(ends)
    ticks = round_ticks(edges[0], edges[-1])
    assert 1 <= len(ticks) <= 6
    figure = overlaid_histogram(edges, {"train": [1 / (len(edges) - 1)] * (len(edges) - 1)})
    places = [float(bar.get("x", "")) for bar in parsed(figure).iter(f"{SVG}rect")]
    assert all(0 <= place <= 360 for place in places)
