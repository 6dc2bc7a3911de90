"""``watch.html``: drift by column and window, and the live quality of a model against its validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from markupsafe import Markup
from matplotlib.figure import Figure
from mlflow.entities import Metric

from mirrorspark.callbacks.mlflow import metric_requests, tracking_store
from mirrorspark.data_pipelines.features import plain_name
from mirrorspark.lifecycle.watching.drift import ColumnDrift
from mirrorspark.lifecycle.watching.live import ExpectedMetrics, LiveWindow
from mirrorspark.lifecycle.watching.watcher import WindowDrift
from mirrorspark.pages import (
    DASH,
    Cell,
    card_html,
    cards_html,
    digits_or_dash,
    drawn,
    figure_html,
    page_html,
    remark_html,
    rows_html,
    section_html,
    short_number,
    tiles_html,
    verdict_html,
)
from mirrorspark.pages.figures import over_time

PAGE_FILE = "watch.html"

_SHOWN_WINDOWS = 12
_SHOWN_METRICS = 4
# MLflow takes no more in a request.
_METRICS_PER_REQUEST = 1_000


def watch_page(
    windows: Sequence[WindowDrift],
    live: Sequence[LiveWindow] = (),
    *,
    title: str,
    expected: ExpectedMetrics | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        windows: Drift by window, the earliest first.
        live: Quality by window, the earliest first.
        title: Name of the watched model.
        expected: Values that the quality is compared with.
    """
    alarms = [(_start(one.start), words) for one in windows for words in one.alarms]
    alarms += [(_start(one.start), words) for one in live for words in one.alarms]
    said = f"{len(alarms)} alarm{'s' * (len(alarms) > 1)}" if alarms else "Nothing has moved further than its limits."
    blocks = [
        verdict_html(said, "error" if alarms else "good"),
        tiles_html(_tiles(windows, live)),
        section_html("Alarms", rows_html((), sorted(alarms, reverse=True))) if alarms else "",
        _quality(live, expected) if live else "",
        *(_drift(windows[-_SHOWN_WINDOWS:]) if windows else ()),
    ]
    return page_html("Model in production", title, blocks)


def log_watch(
    windows: Sequence[WindowDrift],
    live: Sequence[LiveWindow],
    run_id: str,
    *,
    title: str,
    expected: ExpectedMetrics | None = None,
    tracking_uri: str | None = None,
) -> None:
    """Log the windows to an MLflow run: the page, and metrics whose step is the start of a window.

    Args:
        windows: Drift by window, the earliest first: ``drift.psi.COLUMN``, and ``drift.alarms``.
        live: Quality by window: ``live.METRIC``.
        run_id: The run, for example that of the model in production; a window that is logged again replaces its
            former values as the latest ones.
        title: Name of the watched model.
        expected: Values that the quality is compared with.
        tracking_uri: Address of the MLflow store; by default the one that MLflow is configured with.

    Raises:
        MlflowException: There is no such run, or the store cannot be used.
    """
    import mlflow  # takes seconds

    client = tracking_store.store_client(tracking_uri or mlflow.get_tracking_uri())
    metrics = metrics_of(windows, live, datetime.now(UTC))
    for first in range(0, len(metrics), _METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics[first : first + _METRICS_PER_REQUEST])
    pages = drawn({PAGE_FILE: lambda: watch_page(windows, live, title=title, expected=expected)})
    for name, page in pages.items():
        client.log_text(run_id, page, name)


def metrics_of(windows: Sequence[WindowDrift], live: Sequence[LiveWindow], now: datetime) -> list[Metric]:
    """Return the metrics of windows: their step is the start of the window in seconds since 1970, their time is now.

    Of several values of a step, MLflow takes the one with the latest time as the metric's value.
    """
    at, metrics = int(now.timestamp() * 1_000), list[Metric]()
    for window in windows:
        step = int((window.start or now).timestamp())
        metrics.append(Metric("drift.alarms", float(len(window.alarms)), at, step))
        metrics += [Metric(_metric_name("drift.psi", one.column), one.psi, at, step) for one in window.columns]
    for quality in live:
        values = {name: one.value for name, one in quality.metrics.items() if math.isfinite(one.value)}
        step = int(quality.start.timestamp())
        metrics += [Metric(_metric_name("live", name), value, at, step) for name, value in values.items()]
    return metrics


def _metric_name(group: str, name: str) -> str:
    """Return the name of a metric that MLflow takes, and that no other column or measure has."""
    full = f"{group}.{name}"
    return full if metric_requests.metric_name(full) == full else f"{group}.{plain_name(name)}"


def _tiles(windows: Sequence[WindowDrift], live: Sequence[LiveWindow]) -> list[tuple[str, str]]:
    numbers = {
        "windows": float(len(windows) or len(live)),
        "rows": float(sum(one.rows for one in windows)),
        "windows with drift": float(sum(bool(one.alarms) for one in windows)),
        "outcomes known": float(sum(one.examples for one in live)),
        "windows worse than expected": float(sum(bool(one.alarms) for one in live)),
    }
    return [(name, short_number(number)) for name, number in numbers.items() if number or "windows" in name]


def _quality(live: Sequence[LiveWindow], expected: ExpectedMetrics | None) -> Markup:
    metrics = list(live[-1].metrics)
    rows = [
        [
            _start(one.start),
            f"{one.scored:,}",
            f"{one.examples:,}",
            *(digits_or_dash(one.metrics[name].value) for name in metrics),
        ]
        for one in live[-_SHOWN_WINDOWS:]
    ]
    remark = "Scores joined with outcomes."
    if expected is not None:
        rows.insert(0, ["expected", "", "", *(digits_or_dash(expected.metrics.get(name)) for name in metrics)])
        remark = f"Scores joined with outcomes; expected are the values of the validation of {expected.model}."
    figures = [
        card_html(figure_html(_figure(metric, live, expected), f"{metric} by window"))
        for metric in _drawn(live, expected)
    ]
    head = ["window", "scored", "outcomes", *(name.replace("_", " ") for name in metrics)]
    return section_html(
        "Quality in production",
        remark_html(remark),
        cards_html(figures, least=480) if figures else "",
        rows_html(head, rows, numbers=range(1, len(head))),
    )


def _drift(windows: Sequence[WindowDrift]) -> Iterator[Markup]:
    names = list(dict.fromkeys(one.column for window in windows for one in window.columns))
    found = [{one.column: one for one in window.columns} for window in windows]
    rows = [[name, *(_index(of_window.get(name), "{:.2f}".format) for of_window in found)] for name in names]
    yield section_html(
        "Drift",
        remark_html(
            "Population stability index against the training rows, by window; red where a limit is exceeded. Below 0.1 "
            "little has changed, above 0.25 much."
        ),
        rows_html(["column", *(_start(one.start) for one in windows)], rows, numbers=range(1, len(windows) + 1)),
    )
    head = (
        *("column", "rows", "index", "by chance", "distance of distributions", "divergence, bits"),
        *("missing", "in training", "unknown tokens", "in training"),
    )
    last = [
        [
            *(
                one.column,
                f"{one.rows:,}",
                _index(one, digits_or_dash),
                *map(digits_or_dash, (one.psi_noise, one.ks, one.js)),
            ),
            *(f"{share:.1%}" for share in (one.missing, one.missing_before, one.unknown, one.unknown_before)),
        ]
        for one in windows[-1].columns
    ]
    yield section_html("The last window", rows_html(head, last, numbers=range(1, len(head))))


def _index(one: ColumnDrift | None, text: Callable[[float], str]) -> Cell | str:
    """Return the index of a column, which stands out if a limit is exceeded."""
    return DASH if one is None else Cell(text(one.psi), "error" if one.problems else "")


def _drawn(live: Sequence[LiveWindow], expected: ExpectedMetrics | None) -> list[str]:
    """Return the metrics that are drawn: those with an expected value first."""
    there = list(live[-1].metrics) if live else []
    compared = [name for name in there if expected is not None and name in expected.metrics]
    return list(dict.fromkeys([*compared, *there]))[:_SHOWN_METRICS] if len(live) > 1 else []


def _figure(metric: str, live: Sequence[LiveWindow], expected: ExpectedMetrics | None) -> Figure:
    estimates = [one.metrics[metric] for one in live]
    return over_time(
        metric.replace("_", " "),
        [_start(one.start) for one in live],
        [one.value for one in estimates],
        [one.low for one in estimates],
        [one.high for one in estimates],
        expected=None if expected is None else expected.metrics.get(metric),
    )


def _start(start: datetime | None) -> str:
    return "all rows" if start is None else f"{start:%Y-%m-%d %H:%M}".removesuffix(" 00:00")
