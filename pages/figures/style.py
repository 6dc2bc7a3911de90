"""The common style of all plots: colours, sizes, legends and the empty figure."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # importing a colour only, as --help does, does not load matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design": distinguishable with any common colour blindness.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
GREY = "#6E6E6E"
# Ink and ground turn in dark pages, see ``markup.py``.
BLACK = "#000000"
GROUND = "#FFFFFF"
GRID = "#DDDDDD"
# Letters on a dark colour, in any page.
WHITE_LETTERS = "#FEFEFE"

# Colours of the page around a picture in SVG, and these without one.
PAGE_QUIET, PAGE_LINE, PAGE_GROUND = f"var(--quiet,{GREY})", f"var(--line,{GRID})", f"var(--card,{GROUND})"
PAGE_SERIES = tuple(
    f"var(--series-{number},{colour})" for number, colour in enumerate((BLUE, ORANGE, GREEN, VERMILION, PURPLE))
)

MODEL = BLUE
BASELINES = (VERMILION, GREEN, ORANGE, PURPLE, SKY)
# For several equal curves: distinguishable colours, and a marker each for readers who see no colour.
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
NEGATIVE = BLUE
POSITIVE = VERMILION

Corner = Literal["best", "upper left", "upper right", "lower left", "lower right"]

PANEL_WIDTH_INCHES = 5.6
PANEL_HEIGHT_INCHES = 4.2
DOTS_PER_INCH = 120
LINE_WIDTH = 2.0
# A longer text would leave no room for its panel.
_LONGEST_TEXT = 48
_LONGEST_LABEL = 32
# Characters that are not text: controls, line breaks, halves of pairs; and those that turn the order of reading.
_NO_TEXT = frozenset(("Cc", "Cs", "Zl", "Zp"))
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Height of a panel's tick labels and axis label.
_WORDS_BELOW_POINTS = 34


def new_figure(columns: int = 1, rows: int = 1, *, height_ratios: tuple[float, ...] | None = None) -> Figure:
    """Return an empty figure with room for ``rows`` times ``columns`` panels.

    The figure is a bare ``matplotlib.figure.Figure`` that draws texts as they are: pyplot does not know it, it needs no
    display, and it is freed with its last reference.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from mirrorspark.pages.figures.literal import LiteralFigure

    height = PANEL_HEIGHT_INCHES * (sum(height_ratios) if height_ratios else rows)
    size = (PANEL_WIDTH_INCHES * columns, height)
    return LiteralFigure(figsize=size, dpi=DOTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def dress(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Give one panel its title, axis labels, a light grid and no box."""
    axes.set_title(shown(title) if title else "", fontsize=12, fontweight="bold", loc="left")
    axes.set_xlabel(shown(x) if x else "")
    axes.set_ylabel(shown(y) if y else "")
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def shown(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Return a name or value as a text of one line: shortened, without control characters, and never empty."""
    text = "missing" if value is None else str(value) or "(empty)"
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return "".join(map(_visible, text))


def both_ends(text: str, longest: int) -> str:
    """Return a name as a text of one line that has its beginning and its end, which tell similar ones apart."""
    if len(text) <= longest:
        return shown(text, longest)
    return f"{shown(text[: longest // 2])}…{shown(text[-(longest - longest // 2 - 1) :])}"


def label(name: object, longest: int = _LONGEST_LABEL) -> str:
    """Return a name for a legend, which leaves out those with an underscore in front."""
    text = shown(name, longest)
    return f" {text}" if text.startswith("_") else text


def _visible(character: str) -> str:
    if character in _TURNING or unicodedata.category(character) in _NO_TEXT:
        return character.encode("unicode_escape").decode("ascii")
    return character


def legend(axes: Axes, *, location: Corner) -> None:
    """Show the panel's legend on an opaque background, so that lines never run through its text."""
    axes.legend(loc=location, frameon=True, framealpha=0.95, edgecolor=GRID, fontsize=9)


def legend_below(axes: Axes) -> None:
    """Show the panel's legend below it, because the curves may leave no corner free."""
    from matplotlib.transforms import ScaledTranslation

    # In points, so that it clears the axis label at any height of the figure.
    inches = ScaledTranslation(0, -_WORDS_BELOW_POINTS / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + inches,
        frameon=False,
        fontsize=9,
    )


def tints() -> Colormap:
    """Return shades of the model's colour that let the ground show through, from nearly none of it to all."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    return LinearSegmentedColormap.from_list("tints", [to_rgba(MODEL, 0.06), to_rgba(MODEL, 1.0)])


def curve(index: int) -> dict[str, Any]:
    """Return the line style of a curve: solid for the model (index 0), dashed for its baselines."""
    return {
        "color": MODEL if index == 0 else baseline_colour(index - 1),
        "linewidth": LINE_WIDTH,
        "linestyle": "-" if index == 0 else "--",
    }


def baseline_colour(index: int) -> str:
    """Return the colour of the ``index``-th baseline; the palette repeats after its end."""
    return BASELINES[index % len(BASELINES)]


def series(index: int) -> tuple[str, str]:
    """Return colour and marker of the ``index``-th of several equal curves; after 8 the pairing changes."""
    return SERIES[index % len(SERIES)], MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
