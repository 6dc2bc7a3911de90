"""Figures that draw every text as it is: names and values come from tables, and may look like mathematics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.axis import Axis, Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


class LiteralFigure(Figure):
    """A figure in which a dollar sign is a character; matplotlib takes ``$20 & $30`` for a formula."""

    def draw(self, renderer: Any) -> None:
        """Draw the figure; a character that the font lacks is a box, without a warning for each."""
        make_literal(self)
        with _boxes_for_missing_characters():
            super().draw(renderer)

    def get_tightbbox(self, renderer: Any = None, *, bbox_extra_artists: Any = None) -> Bbox:
        """Return the box around everything drawn, to which notebooks crop the figure."""
        make_literal(self)
        with _boxes_for_missing_characters():
            return super().get_tightbbox(renderer, bbox_extra_artists=bbox_extra_artists)


def make_literal(figure: Figure) -> None:
    """Let the figure draw all its texts literally, in any style of the process."""
    # Exponents along a logarithmic axis are our only text that is meant as mathematics.
    logarithmic = (axis for axis in figure.findobj(Axis) if axis.get_scale() == "log")
    powers = {id(text) for axis in logarithmic for tick in axis.findobj(Tick) for text in tick.findobj(Text)}
    for text in figure.findobj(Text):
        text.set_usetex(False)
        if id(text) not in powers:
            text.set_parse_math(False)


@contextmanager
def _boxes_for_missing_characters() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph \d+ .* missing from font", category=UserWarning)
        yield
