"""Small SVG charts that take their colours from the page around them."""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.pages.charts.epochs import metric_chart
    from mirrorspark.pages.charts.histogram import overlaid_histogram, share_bars
    from mirrorspark.pages.charts.intervals import IntervalRow, interval_chart
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "IntervalRow",
    "interval_chart",
    "metric_chart",
    "overlaid_histogram",
    "share_bars",
]
