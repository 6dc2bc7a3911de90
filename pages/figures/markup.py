"""A figure as SVG in the ink, ground and colours of the page around it, so that it follows light and dark themes."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from mirrorspark.pages.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pixels of a page for each point of the figure, and the least share of that size in which its letters can be read.
_PIXELS_PER_POINT = 1.25
_LEAST_SHARE = 0.55

# Colours of ``style`` that belong to the page. Every other colour means the same on any ground.
_OF_THE_PAGE = {
    style.BLACK: "currentColor",
    style.GROUND: style.PAGE_GROUND,
    style.GRID: style.PAGE_LINE,
    style.GREY: style.PAGE_QUIET,
    **dict(zip((style.BLUE, style.ORANGE, style.GREEN, style.VERMILION, style.PURPLE), style.PAGE_SERIES, strict=True)),
}
_BY_COLOUR = {colour.lower(): of_the_page for colour, of_the_page in _OF_THE_PAGE.items()}
_COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}")
# Styles of other libraries, which a notebook may have set, write in it.
_DARK_GREY = re.compile(r"(?<=: )#([0-3][0-9a-f])\1\1(?![0-9a-f])")
# The page's own font is narrower than matplotlib's, by which the texts were placed.
_FONT = re.compile(r"font-family: [^;]*;? ?")
_LINKS = "{http://www.w3.org/1999/xlink}"


def has_page_colours(figure: Figure) -> bool:
    """Return True for a figure of this folder on a white ground, which no style of the process has changed."""
    from matplotlib.colors import to_hex

    from mirrorspark.pages.figures.literal import LiteralFigure

    return isinstance(figure, LiteralFigure) and to_hex(figure.get_facecolor()) == style.GROUND.lower()


def figure_svg(figure: Figure, name: str) -> Markup:
    """Return a figure of this folder as an SVG element; ``name`` is its text for readers without images."""
    root = _saved(figure)
    for parent in root.iter():
        for child in list(parent):
            # The rule of matplotlib's style element would hold for the whole page.
            if _tag(child) in ("style", "metadata"):
                parent.remove(child)
    for element in root.iter():
        _adapt(element)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    pixels = width * _PIXELS_PER_POINT
    root.attrib.clear()
    root.attrib |= {
        "viewBox": f"0 0 {width:g} {height:g}",
        "role": "img",
        "aria-label": name,
        "fill": "currentColor",
        "stroke-linejoin": "round",
        "font-family": "system-ui,sans-serif",
        "style": f"width:100%;min-width:{_LEAST_SHARE * pixels:.0f}px;max-width:{pixels:.0f}px;height:auto",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - ElementTree has escaped its texts


def _saved(figure: Figure) -> ElementTree.Element:
    """Return the figure as matplotlib writes it, with texts as texts, and without a ground."""
    from matplotlib import rc_context

    content = io.BytesIO()
    # With a constant salt equal definitions have equal names, in all figures of a page, and in every run.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mirrorspark"}):
        figure.savefig(content, format="svg", transparent=True)
    return ElementTree.fromstring(content.getvalue())  # noqa: S314 - matplotlib's own text


def _adapt(element: ElementTree.Element) -> None:
    """Give an element the names of HTML and the colours of the page, and leave out its blanks and its font."""
    element.tag, element.tail = _tag(element), None
    if element.tag not in ("text", "tspan"):
        element.text = None
    if element.tag == "g":
        element.attrib.pop("id", None)  # Numbered anew in each figure; nothing refers to it.
    for key in [key for key in element.attrib if key.startswith(_LINKS)]:
        element.attrib[key.removeprefix(_LINKS)] = element.attrib.pop(key)
    for key in ("style", "fill", "stroke"):
        if key in element.attrib:
            element.attrib[key] = _of_the_page(element.attrib[key])


def _of_the_page(css: str) -> str:
    css = _FONT.sub("", css)
    return _COLOUR.sub(lambda found: _BY_COLOUR.get(found[0], found[0]), _DARK_GREY.sub("currentColor", css))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
