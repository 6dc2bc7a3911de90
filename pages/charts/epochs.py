"""A small chart of a metric over the epochs, as SVG that grows with a training.

It has the ink of the page, so it fits light and dark notebooks, and needs neither a script nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from mirrorspark.pages.charts.svg import SERIES, fitting
from mirrorspark.pages.charts.ticks import round_ticks, tick_texts

_WIDTH, _HEIGHT = 340.0, 168.0
_LEFT, _RIGHT, _TOP, _BASE = 44.0, 330.0, 42.0, 146.0
_TITLE, _LEGEND = 13.0, 31.0
_TEXT_PIXELS = 12
# Widths of a digit and of a letter, somewhat more than in common fonts.
_DIGIT, _LETTER = 7.0, 6.8
# Texts of epochs that are closer would run into each other.
_LEAST_BETWEEN = 34.0
# Training and validation have the colours that they have in the report; dashes tell them apart without colour.
_SERIES = ((SERIES[0], "4 3"), (SERIES[3], ""))


def metric_chart(
    title: str, curves: Mapping[str, Sequence[tuple[int, float]]], *, epochs: int, best: int | None = None
) -> str:
    """Draw the values of a metric over the epochs.

    Args:
        title: The metric's name.
        curves: At most two curves by name, of pairs of epoch and value; the second one is the more important.
        epochs: The last epoch of the axis.
        best: The epoch that is marked on the last curve.
    """
    shown = {name: [(epoch, value) for epoch, value in of if math.isfinite(value)] for name, of in curves.items()}
    values = [value for of in shown.values() for _, value in of]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    last = max([epochs, 2, *(epoch for of in shown.values() for epoch, _ in of)])
    ticks = round_ticks(low, high)
    texts = tick_texts(ticks)
    left = max(_LEFT, 10 + _DIGIT * max(map(len, texts)))

    def x(epoch: float) -> float:
        return left + (_RIGHT - left) * (epoch - 1) / (last - 1)

    def y(value: float) -> float:
        return _BASE - (_BASE - _TOP) * (value - low) / (high - low)

    parts = [
        f'<path d="M{left:g} {_BASE:g}H{_RIGHT:g}" stroke="currentColor" stroke-opacity=".5"/>',
        _text(0, _TITLE, fitting(title, _WIDTH, text_pixels=_TEXT_PIXELS), "start", weight=600),
    ]
    for value, text in zip(ticks, texts, strict=True):
        parts.append(f'<path d="M{left:g} {y(value):.1f}H{_RIGHT:g}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(_text(left - 6, y(value) + 4, text, "end"))
    parts += [_text(*place) for place in _epoch_texts(last, x)]
    series = _SERIES[-len(shown) :]
    at = left
    for (name, points), (colour, dashes) in zip(shown.items(), series, strict=True):
        parts.append(_curve([(x(epoch), y(value)) for epoch, value in points], colour, dashes))
        if len(shown) > 1:
            parts.append(_line(f"M{at:g} {_LEGEND - 4:g}h16", colour, dashes))
            parts.append(_text(at + 22, _LEGEND, name, "start"))
            at += 40 + _LETTER * len(name)
    marked = [(x(epoch), y(value)) for of in list(shown.values())[-1:] for epoch, value in of if epoch == best]
    parts += [
        f'<circle cx="{place:.1f}" cy="{height:.1f}" r="5" fill="none" stroke="{series[-1][0]}" stroke-width="2"/>'
        for place, height in marked
    ]
    words = escape(f"{title} over {last} epochs")
    css = f"max-width:100%;height:auto;font:{_TEXT_PIXELS}px system-ui,sans-serif;color:inherit"
    size = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}"'
    return f'<svg role="img" aria-label="{words}" {size} style="{css}" fill="none">{"".join(parts)}</svg>'


def _epoch_texts(last: int, x: Callable[[float], float]) -> list[tuple[float, float, str, str]]:
    """Return place, height, text and anchor of the first epoch and of round ones; the last of them names the unit."""
    found = [epoch for epoch in round_ticks(1, last) if epoch == round(epoch)]
    epochs = [1, *(epoch for epoch in found if x(epoch) - x(1) >= _LEAST_BETWEEN)]
    texts = [(x(epoch), _BASE + 16, f"{epoch:g}", "middle") for epoch in epochs[:-1]]
    place, anchor = x(epochs[-1]), "middle"
    if place > _RIGHT - _LEAST_BETWEEN:
        place, anchor = _RIGHT, "end"
    unit = f"epoch {epochs[-1]:g}"
    texts = [of for of in texts if of[0] < place - _LETTER * len(unit)]
    return [*texts, (place, _BASE + 16, unit, anchor)]


def _curve(points: Sequence[tuple[float, float]], colour: str, dashes: str) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5" fill="{colour}"/>'
    return _line("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), colour, dashes) if points else ""


def _line(path: str, colour: str, dashes: str) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{path}" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str, *, weight: int = 400) -> str:
    return (
        f'<text x="{x:g}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="currentColor">'
        f"{escape(text)}</text>"
    )
