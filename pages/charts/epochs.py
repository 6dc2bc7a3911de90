"""A small chart of a metric over the epochs, as SVG that grows with a training.

It has the ink of the page, so it fits light and dark notebooks, and needs neither a script nor matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from mirrorspark.pages.panel import BLUE, ORANGE

_WIDTH, _HEIGHT = 340.0, 150.0
_LEFT, _RIGHT, _TOP, _BASE = 52.0, 330.0, 24.0, 128.0
# Dashes tell them apart without colour.
_SERIES = ((ORANGE, "4 3"), (BLUE, ""))


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

    def x(epoch: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (epoch - 1) / (last - 1)

    def y(value: float) -> float:
        return _BASE - (_BASE - _TOP) * (value - low) / (high - low)

    middle = (low + high) / 2
    parts = [
        f'<path d="M{_LEFT:g} {_BASE:g}H{_RIGHT:g}" stroke="currentColor" stroke-opacity=".5"/>',
        *(
            f'<path d="M{_LEFT:g} {y(value):.1f}H{_RIGHT:g}" stroke="currentColor" stroke-opacity=".15"/>'
            for value in (low + margin, middle, high - margin)
        ),
        *(
            _text(_LEFT - 6, y(value) + 4, _short(value), "end")
            for value in _ticks(low + margin, middle, high - margin)
        ),
        _text(_LEFT, _BASE + 16, "1", "middle"),
        _text(_RIGHT, _BASE + 16, f"epoch {last}", "end"),
        _text(_LEFT, 13, title, "start", weight=600),
    ]
    at = _RIGHT
    series = _SERIES[-len(shown) :]
    for (name, points), (colour, dashes) in reversed(list(zip(shown.items(), series, strict=True))):
        parts.append(_curve([(x(epoch), y(value)) for epoch, value in points], colour, dashes))
        if len(shown) > 1:
            parts.append(_text(at, 13, name, "end"))
            at -= 7.0 * len(name) + 8
            parts.append(_line(f"M{at - 16:.0f} 9H{at:.0f}", colour, dashes))
            at -= 28
    marked = [(x(epoch), y(value)) for of in list(shown.values())[-1:] for epoch, value in of if epoch == best]
    parts += [
        f'<circle cx="{place:.1f}" cy="{height:.1f}" r="5" fill="none" stroke="{series[-1][0]}" stroke-width="2"/>'
        for place, height in marked
    ]
    words = escape(f"{title} over {last} epochs")
    css = "max-width:100%;height:auto;font:12px system-ui,sans-serif;color:inherit"
    size = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}"'
    return f'<svg role="img" aria-label="{words}" {size} style="{css}" fill="none">{"".join(parts)}</svg>'


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


def _ticks(*values: float) -> list[float]:
    """Return the values that differ as they are written."""
    return list({_short(value): value for value in values}.values())


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.2e}"
