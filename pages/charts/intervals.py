"""Estimates with an inner and an outer interval, a row each, as SVG with the colours of the page around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mirrorspark.pages.charts.svg import INK, LINE, QUIET, SERIES, fitting, picture_svg, text_svg
from mirrorspark.pages.charts.ticks import round_ticks
from mirrorspark.pages.numbers import short_number

_MARK = SERIES[0]

_WIDTH, _ROW, _TOP, _FOOT = 780.0, 30.0, 8.0, 24.0
_LEFT, _RIGHT = 160.0, 550.0
_TEXT_PIXELS = 12


@dataclass(frozen=True)
class IntervalRow:
    """An estimate.

    Attributes:
        label: Its name.
        centre: Its value.
        inner: Ends of the narrow interval, drawn as a bar.
        outer: Ends of the wide interval, drawn as a line.
    """

    label: str
    centre: float
    inner: tuple[float, float]
    outer: tuple[float, float]


def interval_chart(
    rows: Sequence[IntervalRow], *, value_text: Callable[[float], str] = short_number, axis: str = ""
) -> Markup:
    """Draw a row per estimate over one axis, which contains 0.

    Args:
        rows: The estimates, in the order of the chart.
        value_text: Formats the values next to a row.
        axis: Words next to the axis, for example the unit.

    Raises:
        ValueError: There are no rows.
    """
    if not rows:
        raise ValueError("there are no estimates to draw; pass one or more")
    ends = [0.0, *(end for row in rows for end in (*row.inner, *row.outer))]
    margin = (max(ends) - min(ends)) * 0.04 or 1.0
    low, high = min(ends) - margin, max(ends) + margin

    def x(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low)

    base = _TOP + _ROW * len(rows)
    parts = []
    for tick in round_ticks(low, high):
        parts.append(f'<path d="M{x(tick):.1f} {_TOP:g}V{base:g}" stroke="{LINE}"/>')
        parts.append(text_svg(x(tick), base + 16, short_number(tick), QUIET, "middle"))
    parts.append(text_svg(_RIGHT + 12, base + 16, axis, QUIET))
    parts.append(f'<path d="M{x(0):.1f} {_TOP:g}V{base:g}" stroke="{INK}" stroke-width="1.5"/>')
    for number, row in enumerate(rows):
        middle = _TOP + _ROW * (number + 0.5)
        outer, inner = ([x(end) for end in of] for of in (row.outer, row.inner))
        words = f"{value_text(row.centre)} ({value_text(row.outer[0])} to {value_text(row.outer[1])})"
        parts.append(
            f"<g><title>{escape(f'{row.label}: {words}')}</title>"
            f"{text_svg(0, middle + 4, fitting(row.label, _LEFT - 8, text_pixels=_TEXT_PIXELS), INK)}"
            f'<path d="M{outer[0]:.1f} {middle:g}H{outer[1]:.1f}M{outer[0]:.1f} {middle - 5:g}v10'
            f'M{outer[1]:.1f} {middle - 5:g}v10" stroke="{_MARK}" stroke-width="1.5" fill="none"/>'
            f'<rect x="{inner[0]:.1f}" y="{middle - 4:g}" width="{inner[1] - inner[0]:.1f}" height="8" rx="2" '
            f'fill="{_MARK}" fill-opacity=".45"/>'
            f'<circle cx="{x(row.centre):.1f}" cy="{middle:g}" r="4.5" fill="{_MARK}"/>'
            f"{text_svg(_RIGHT + 12, middle + 4, words, INK)}</g>"
        )
    name = f"intervals of {', '.join(row.label for row in rows)}"
    return picture_svg(_WIDTH, base + _FOOT, name, parts, text_pixels=_TEXT_PIXELS)
