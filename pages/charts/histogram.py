"""Histograms of a column's values in several groups of rows, as SVG for a page with hundreds of such figures.

Unlike a matplotlib figure, SVG takes its colours from the page, so it follows the light and dark themes, and it costs a
fraction of a millisecond and a few kilobytes. Colours are the custom properties ``--series-0`` and so on, ``--ink``,
``--quiet`` and ``--line``; without them the figure has the colours of :mod:`pages.figures.style`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup, escape

from mirrorspark.pages.charts.svg import INK, LINE, QUIET, SERIES, fitting, picture_svg, text_svg
from mirrorspark.pages.charts.ticks import round_ticks
from mirrorspark.pages.numbers import short_number

# Distinguish the groups without colour.
_DASHES = ("", "5 2", "2 2", "7 2 2 2", "1 2")

_WIDTH = 360.0
_HEIGHT = 132.0
_TOP = 14.0
_BASE = 112.0
_LABEL_WIDTH = 128.0
_VALUE_WIDTH = 46.0
_BAR_HEIGHT = 5.0
_ROW_GAP = 7.0
_LABEL_GAP = 6.0


def overlaid_histogram(
    edges: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    *,
    value_text: Callable[[float], str] | None = None,
    ticks: Sequence[float] | None = None,
) -> Markup:
    """Draw the histograms of several groups over each other; the first is filled, the others are outlines.

    Args:
        edges: Edges of the bars in rising order, ``[bars + 1]``.
        shares: For each group the share of its rows in each bar, ``[bars]``.
        value_text: Formats a value on the axis; by default as a short number.
        ticks: Values labelled on the axis; by default a few round ones.

    Raises:
        ValueError: There are no bars, the edges do not rise, or a group does not have one share per bar.
    """
    bars = len(edges) - 1
    if bars < 1:
        raise ValueError(f"edges has {len(edges)} values; a histogram needs two or more")
    if not edges[0] < edges[-1]:
        raise ValueError(f"edges from {edges[0]} to {edges[-1]} do not rise; pass them in rising order")
    for name, values in shares.items():
        if len(values) != bars:
            raise ValueError(f"'{name}' has {len(values)} shares for {bars} bars; pass one share per bar")
    text = value_text or short_number
    low, high = edges[0], edges[-1]
    # The span of the largest numbers overflows unless halved; that of the smallest numbers vanishes if halved.
    unit = 1.0 if math.isfinite(high - low) else 0.5
    highest = max((max(values) for values in shares.values()), default=0.0) or 1.0

    def x(value: float) -> float:
        return 4 + (_WIDTH - 8) * ((value * unit - low * unit) / (high * unit - low * unit))

    def y(share: float) -> float:
        return _BASE - (_BASE - _TOP) * share / highest

    parts = [
        f'<path d="M4 {_TOP}H{_WIDTH - 4:g}M4 {(_TOP + _BASE) / 2:g}H{_WIDTH - 4:g}" stroke="{LINE}" '
        f'stroke-dasharray="2 3"/>',
        text_svg(4, _TOP - 4, f"{highest:.0%}" if highest >= 0.1 else f"{highest:.1%}", QUIET),
    ]
    places = [f"{x(edge):.1f}" for edge in edges]
    for number, values in enumerate(shares.values()):
        outline = f"M{places[0]} {_BASE:g}" + "".join(
            f"V{y(share):.1f}H{place}" for share, place in zip(values, places[1:], strict=True)
        )
        outline += f"V{_BASE:g}"
        if number == 0:
            parts.append(f'<path d="{outline}Z" fill="{SERIES[0]}" fill-opacity=".22"/>')
        parts.append(
            f'<path d="{outline}" fill="none" stroke="{_colour(number)}" stroke-width="1.5" '
            f'stroke-dasharray="{_dashes(number)}"/>'
        )
    parts.append(f'<path d="M4 {_BASE:g}H{_WIDTH - 4:g}" stroke="{QUIET}"/>')
    for tick in round_ticks(low, high) if ticks is None else ticks:
        parts.append(text_svg(min(max(x(tick), 4), _WIDTH - 4), _BASE + 14, text(tick), QUIET, _anchor(x(tick))))
    for bar in range(bars):
        left, right = x(edges[bar]), x(edges[bar + 1])
        percentages = ", ".join(f"{name} {values[bar]:.1%}" for name, values in shares.items())
        title = f"{_beyond(bar, bars)}{text(edges[bar])} to {text(edges[bar + 1])}: {percentages}"
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{_TOP:g}" width="{right - left:.1f}" height="{_BASE - _TOP:g}" '
            f'fill="transparent"><title>{escape(title)}</title></rect>'
        )
    return picture_svg(_WIDTH, _HEIGHT, f"histogram of {', '.join(shares)}", parts)


def share_bars(
    labels: Sequence[str], shares: Mapping[str, Sequence[float]], *, colours: Sequence[int] | None = None
) -> Markup:
    """Draw one row per label with a bar for each group.

    Args:
        labels: Labels of the rows.
        shares: For each group the share of each label, ``[labels]``.
        colours: For each group the number of its colour; by default they are numbered from 0.

    Raises:
        ValueError: There are no labels, or a group does not have one share per label.
    """
    if not labels:
        raise ValueError("there are no labels to draw bars for; pass one or more")
    for name, values in shares.items():
        if len(values) != len(labels):
            raise ValueError(f"'{name}' has {len(values)} shares for {len(labels)} labels; pass one share per label")
    row_height = max(_BAR_HEIGHT * len(shares), 10) + _ROW_GAP
    room = _WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
    highest = max((max(values) for values in shares.values()), default=0.0) or 1.0
    parts = []
    for row, label in enumerate(labels):
        top = row * row_height + _ROW_GAP / 2
        middle = top + (row_height - _ROW_GAP) / 2 + 4
        percentages = ", ".join(f"{name} {values[row]:.1%}" for name, values in shares.items())
        title = escape(f"{label}: {percentages}")
        parts.append(f"<g><title>{title}</title>{text_svg(0, middle, fitting(label, _LABEL_WIDTH - _LABEL_GAP), INK)}")
        for number, (colour, values) in enumerate(zip(colours or range(len(shares)), shares.values(), strict=True)):
            width = room * values[row] / highest
            # A share above zero is always visible.
            width = max(width, 1.0) if values[row] > 0 else 0.0
            parts.append(
                f'<rect x="{_LABEL_WIDTH:g}" y="{top + number * _BAR_HEIGHT:.1f}" width="{width:.1f}" '
                f'height="{_BAR_HEIGHT - 1:g}" rx="1" fill="{_colour(colour)}"/>'
            )
        first = next(iter(shares.values()), [0.0] * len(labels))[row]
        parts.append(text_svg(_WIDTH, middle, f"{first:.1%}", QUIET, "end") + "</g>")
    return picture_svg(_WIDTH, len(labels) * row_height, f"shares of {', '.join(shares)}", parts)


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _dashes(number: int) -> str:
    return _DASHES[number % len(_DASHES)] or "none"


def _beyond(bar: int, bars: int) -> str:
    return "" if 0 < bar < bars - 1 else "outermost bar, with all beyond, "


def _anchor(place: float) -> str:
    return "start" if place < 20 else "end" if place > _WIDTH - 20 else "middle"
