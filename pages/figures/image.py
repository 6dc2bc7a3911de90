"""A finished picture as a figure."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from mirrorspark.pages.figures import style


def figure_of_image(content: bytes) -> Figure:
    """Return a figure that shows a PNG image and nothing else, in its size.

    Args:
        content: The image's file.
    """
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(content), format="png")
    height, width = pixels.shape[:2]
    figure = Figure(figsize=(width / style.DOTS_PER_INCH, height / style.DOTS_PER_INCH), dpi=style.DOTS_PER_INCH)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels, aspect="auto", interpolation="none")
    axes.set_axis_off()
    return figure
