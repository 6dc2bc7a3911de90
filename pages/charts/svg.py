"""Parts that the charts share: colours of the page around them, texts, and the picture itself."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from mirrorspark.pages.figures import style

QUIET = f"var(--quiet,{style.GREY})"
LINE = f"var(--line,{style.GRID})"
INK = "var(--ink,#222222)"
# The letters of a smaller picture could not be read; those of a larger one would be larger than the text around it.
_SCALES = (0.75, 1.4)


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
