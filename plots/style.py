"""The common style of all plots: colours, sizes, legends and the empty figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # importing a colour only, as --help does, does not load matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design": distinguishable with any common colour blindness.
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
SKY = "#56B4E9"
GREY = "#6E6E6E"
BLACK = "#000000"
GRID = "#DDDDDD"

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
# Height of a panel's tick labels and axis label.
_WORDS_BELOW_POINTS = 34


def new_figure(columns: int = 1, rows: int = 1, *, height_ratios: tuple[float, ...] | None = None) -> Figure:
    """Return an empty figure with room for ``rows`` times ``columns`` panels.

    The figure is a bare ``matplotlib.figure.Figure``: pyplot does not know it, it needs no display, and it is freed
    with its last reference.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    height = PANEL_HEIGHT_INCHES * (sum(height_ratios) if height_ratios else rows)
    size = (PANEL_WIDTH_INCHES * columns, height)
    return Figure(figsize=size, dpi=DOTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def dress(axes: Axes, *, title: str, x: str, y: str) -> None:
    """Give one panel its title, axis labels, a light grid and no box."""
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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
