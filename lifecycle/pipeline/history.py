"""``index.html``: all dates of a pipeline, a row for each, and metrics, drift, rows and scores over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mirrorspark.data_pipelines.quality import Limits
from mirrorspark.lifecycle.pipeline.page import PAGE_FILE, STYLES, seconds_of, state_of
from mirrorspark.lifecycle.pipeline.record import PipelineRecord, records_in
from mirrorspark.lifecycle.pipeline.weekly import warnings_of
from mirrorspark.pages import (
    Cell,
    beside_the_result,
    card_html,
    cards_html,
    figure_html,
    page_html,
    remark_html,
    rows_html,
    section_html,
    short_number,
    tiles_html,
    verdict_html,
)
from mirrorspark.pages.figures import lines_over_time, shares_over_time
from mirrorspark.storage import atomic_file

HISTORY_FILE = "index.html"

_SHOWN_METRICS = 2


def write_history(parent: Path) -> None:
    """Write the page of a pipeline's dates into the folder that has a folder for each of them."""
    records = records_in(parent)
    if records:
        with beside_the_result(f"the page {parent / HISTORY_FILE}"):
            atomic_file.write_atomically(parent / HISTORY_FILE, history_page(records))


def history_page(records: Sequence[PipelineRecord]) -> str:
    """Return the page as HTML.

    Args:
        records: The records of the dates, at least one, the earliest first.
    """
    newest = list(reversed(records))
    stages = list(dict.fromkeys(name for record in newest for name in record.stages))
    alerts = [(record.run_date, text) for record in newest for text in alerts_of(record)]
    head = ["date", "outcome", "promoted", "alerts", "rows", *stages, "all"]
    dates = rows_html(head, [_row(record, stages) for record in newest], numbers=range(2, len(head)), name="dates")
    state, words = state_of(records[-1])
    blocks = [
        verdict_html(f"{records[-1].run_date}: {words}", STYLES[state]),
        tiles_html(_tiles(records)),
        section_html("Over time", cards_html(map(card_html, _figures(records)), least=480)) if len(records) > 1 else "",
        section_html("Alerts", rows_html((), alerts)) if alerts else "",
        section_html("Dates", remark_html("Seconds of each stage's latest attempt."), dates),
    ]
    return page_html("Pipeline", records[-1].name, blocks)


def alerts_of(record: PipelineRecord) -> list[str]:
    """Return the messages about a date: warnings, and the reason for its stop."""
    failed = [f"{name}: {one.problem}" for name, one in record.stages.items() if one.state == "failed"]
    return [*warnings_of({name: one.facts for name, one in record.stages.items()}), *failed]


def _row(record: PipelineRecord, stages: Sequence[str]) -> list[str | Cell]:
    """Return the cells of a date; unknown ones are empty."""
    state, _ = state_of(record)
    begun, rows = record.stages, record.fact("data", "rows")
    stopped = [name for name, one in begun.items() if one.state == "failed"]
    outcome = f"stopped at {stopped[0]}" if stopped else {"passed": "finished"}.get(state, state)
    return [
        Cell(record.run_date, link=f"{record.run_date}/{PAGE_FILE}"),
        Cell(outcome, STYLES[state]),
        record.fact("promote", "version") or "",
        str(len(alerts_of(record)) or ""),
        "" if rows is None else f"{rows:,}",
        *(f"{begun[name].seconds:.1f}" if name in begun else "" for name in stages),
        f"{seconds_of(record):.1f}",
    ]


def _tiles(records: Sequence[PipelineRecord]) -> list[tuple[str, str]]:
    promoted = [version for record in records if (version := record.fact("promote", "version")) is not None]
    numbers = {
        "dates": len(records),
        "finished": sum(record.is_finished for record in records),
        "stopped": sum(state_of(record)[0] == "failed" for record in records),
        "dates with alerts": sum(bool(alerts_of(record)) for record in records),
    }
    champion = [("champion", str(promoted[-1]))] if promoted else []
    return [*champion, *((name, short_number(number)) for name, number in numbers.items())]


def _figures(records: Sequence[PipelineRecord]) -> Iterator[Markup]:
    """Yield the pictures over time."""
    dates = [record.run_date for record in records]
    measured = [record.fact("evaluate", "metrics") or {} for record in records]
    bounds = _bounds(records[-1])
    names = list(dict.fromkeys(name for metrics in reversed(measured) for name in metrics))
    for name in sorted(names, key=lambda metric: metric not in bounds)[:_SHOWN_METRICS]:
        candidate = [float(metrics.get(name, math.nan)) for metrics in measured]
        changes = [(record.fact("evaluate", "change") or {}).get(name, math.nan) for record in records]
        champion = [value - float(change) for value, change in zip(candidate, changes, strict=True)]
        lines = {"candidate": candidate, "champion then": champion}
        words = name.replace("_", " ")
        figure = lines_over_time(f"{words} on the test rows", dates, lines, y=words, bound=bounds.get(name))
        yield figure_html(figure, f"{words} of candidate and champion by date")
    asked = records[-1].settings.get("pipeline", {}).get("drift_at_most")
    drift = [max((record.fact("convert", "drift") or {}).values(), default=math.nan) for record in records]
    yield _drift_figure("columns", dates, drift, Limits().strong_drift if asked is None else float(asked))
    # In a picture of its own: the scores of a bad model are further off than any column.
    drift = [_number(record.fact("evaluate", "score_drift")) for record in records]
    yield _drift_figure("scores", dates, drift, Limits().strong_drift)
    rows = {"rows": [_number(record.fact("data", "rows")) for record in records]}
    yield figure_html(lines_over_time("Rows of the table", dates, rows, y="rows", from_zero=True), "rows by date")
    times = {"seconds": [seconds_of(record) for record in records]}
    yield figure_html(lines_over_time("Time of all stages", dates, times, y="seconds", from_zero=True), "time by date")
    yield from _score_figure(records)


def _drift_figure(what: str, dates: Sequence[str], drift: Sequence[float], bound: float) -> Markup:
    title, y = f"Drift of the {what} against the date before", "stability index beyond chance"
    lines = {"largest" if what == "columns" else what: drift}
    return figure_html(
        lines_over_time(title, dates, lines, y=y, bound=bound, from_zero=True), f"drift of {what} by date"
    )


def _score_figure(records: Sequence[PipelineRecord]) -> Iterator[Markup]:
    """Yield the distribution of the scores, of the dates that have the same bins as the latest one."""
    found = {record.run_date: scores for record in records if (scores := record.fact("evaluate", "scores"))}
    if not found:
        return
    edges = list(found.values())[-1]["edges"]
    same = {date: scores["counts"] for date, scores in found.items() if scores["edges"] == edges}
    figure = shares_over_time(
        "Scores of the test rows", list(same), list(same.values()), y="bins: tenths of the first date"
    )
    yield figure_html(figure, "distribution of the scores by date")


def _bounds(record: PipelineRecord) -> Mapping[str, float]:
    """Return the least values that are asked for in all rows, by metric."""
    gates = record.settings.get("pipeline", {}).get("gates", {})
    asked = [one for one in gates.get("thresholds", ()) if one.get("at_least") is not None]
    return {one["metric"]: float(one["at_least"]) for one in asked}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
