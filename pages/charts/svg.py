"""Parts that the charts share: colours of the page around them, texts, and the picture itself."""

from collections.abc import Sequence
from unicodedata import east_asian_width

from markupsafe import Markup, escape

from mirrorspark.pages.figures import style

QUIET, LINE, SERIES = style.PAGE_QUIET, style.PAGE_LINE, style.PAGE_SERIES
INK = "var(--ink,currentColor)"
# The letters of a smaller picture could not be read; those of a larger one would be larger than the text around it.
_SCALES = (0.75, 1.4)


# Widths of letters in shares of the size of the text, somewhat more than in common fonts.
_LETTER, _WIDE, _WIDER = 0.57, 0.74, 1.05


def fitting(text: str, room: float, *, text_pixels: int = 11) -> str:
    """Return the part of a text that fits into ``room`` pixels."""
    widths = [_width(letter) * text_pixels for letter in text]
    if sum(widths) <= room:
        return text
    left = room - text_pixels
    for place, width in enumerate(widths):
        left -= width
        if left < 0:
            return text[:place] + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _width(letter: str) -> float:
    if letter in "mwMW@%" or east_asian_width(letter) in "WF":
        return _WIDER
    return _WIDE if letter.isupper() or letter == "_" else _LETTER


def text_svg(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    """Return a text whose start, middle or end is at ``x``."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def picture_svg(width: float, height: float, name: str, parts: Sequence[str], *, text_pixels: int = 11) -> Markup:
    """Return parts, whose values are escaped, as a picture; ``name`` is its text for readers without pictures."""
    start = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}" font-size="{}" '
        'font-family="system-ui,sans-serif" style="min-width:{:g}px;max-width:{:g}px">'
    ).format(width, height, name, text_pixels, *(scale * width for scale in _SCALES))
    return Markup(f"{start}{''.join(parts)}</svg>")  # noqa: S704 - the parts are escaped
