"""``report.html``: a self-contained page with the report of a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from markupsafe import Markup

from mirrorspark.fleet.bins import Distribution, grouped
from mirrorspark.fleet.runs.report.report import FleetReport
from mirrorspark.pages import (
    DASH,
    Cell,
    card_html,
    cards_html,
    page_html,
    paragraph_html,
    remark_html,
    rows_html,
    section_html,
    short_number,
    tiles_html,
)
from mirrorspark.pages.charts import share_bars

_SHOWN = 200
_SHOWN_FIGURES = 12
_FORMER_COLOUR = 4
_DRIFT_STYLES = {"some": "warning", "large": "error"}
_TEXTS = ("model", "group", "state", "output", "problem", "drifted", "core_seconds_from", "number")
_FAILED_COLUMNS = ("model", "group", "problem")
_MODEL_COLUMNS = (
    *("model", "group", "state", "output", "rows", "nulls", "p10", "median", "p90"),
    *("drift", "drifted", "core_seconds", "core_seconds_per_million"),
)
_MICROBATCH_COLUMNS = (
    *("number", "group", "step", "state", "models", "rows", "attempts", "seconds", "tasks"),
    *("task_seconds", "read_seconds", "score_seconds", "write_seconds"),
    *("inferences_per_core_second", "skew", "bytes"),
)


def report_page(report: FleetReport) -> str:
    """Return the page as HTML; of thousands of models, it shows those with the largest drift, and some that failed."""
    totals = report.totals
    by_drift = report.models.take(pc.sort_indices(report.models, [("drift", "descending", "at_end")])).to_pylist()
    failed = [row for row in by_drift if row["state"] == "failed"]
    origin = [report.output, f"fleet {report.fleet[:12]}", f"ledger {report.ledger}"]
    columns = [*_MODEL_COLUMNS]
    columns += ["cost_per_million"] if "cost" in totals else []
    columns += ["core_seconds_from"] if totals["models_estimated"] else []
    estimated = (
        f"The core-seconds of {totals['models_estimated']} models are estimated, at least in part, from their numbers "
        "of terms, weights and nodes: the ledger has no seconds of each model for some of their microbatches."
    )
    blocks = [
        remark_html(" · ".join(origin + [f"compared with {report.former}"] * bool(report.former))),
        paragraph_html(_progress(totals)),
        tiles_html(_tiles(totals)),
        section_html("Where the time went", _times(totals)),
        section_html("Models that failed", *_table(failed, _FAILED_COLUMNS, len(failed), "models")) if failed else "",
        _drift(report, by_drift) if report.former else "",
        section_html(
            "Models",
            remark_html(estimated) if totals["models_estimated"] else "",
            *_table(by_drift, columns, int(totals["models"]), "models"),
        ),
        section_html(
            "Microbatches",
            *_table(report.microbatches.to_pylist(), _MICROBATCH_COLUMNS, int(totals["microbatches"]), "microbatches"),
        ),
    ]
    return page_html("Fleet", report.run, blocks)


def _progress(totals: Any) -> str:
    untimed = totals["microbatches_done"] - totals["microbatches_timed"]
    said = f"{totals['microbatches_done']} of {totals['microbatches']} microbatches are published"
    said += f"; {untimed} of them have no times in the ledger, and count in no rate." if untimed > 0 else "."
    if totals["attempts_not_done"]:
        said += f" {totals['attempts_not_done']} attempts have failed, or were stopped or superseded."
    return said


def _times(totals: Any) -> Markup:
    spent = {name: totals[f"{name}_seconds"] for name in ("read", "score", "write")}
    spent["other"] = max(0.0, totals["task_seconds"] - sum(spent.values()))
    seconds = max(totals["task_seconds"], 1e-9)
    parts = ", ".join(f"{name} {short_number(value)} s" for name, value in spent.items())
    words = f"{parts} of {short_number(totals['task_seconds'])} s in tasks."
    return card_html(
        share_bars(list(spent), {"task seconds": [value / seconds for value in spent.values()]}),
        remark_html(f"{words} A core is idle between tasks, and while Spark starts a job."),
    )


def _drift(report: FleetReport, by_drift: Sequence[Mapping[str, Any]]) -> Markup:
    cards = [
        card_html(
            remark_html(f"{_number(row['drift'])}, by chance below {_number(row['drift_by_chance'])}"),
            _figure(report.distributions[row["model"]], report.former_distributions[row["model"]]),
            title=row["model"],
        )
        for row in by_drift[:_SHOWN_FIGURES]
        if row["drift"] is not None
    ]
    return section_html(
        "Drift",
        paragraph_html(f"{report.totals['models_drifted']} of {report.totals['models']} models have drifted."),
        remark_html(
            "The population stability index compares the rows in each tenth of the former scores, and those without an "
            "output. Above chance, 0.1 is some and 0.25 large drift. The upper bars are this run, the lower ones the "
            "former."
        ),
        cards_html(cards, least=340),
    )


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], of: int, name: str) -> Iterator[Markup]:
    """Yield the first rows as a table, and a sentence that says where the others are."""
    if len(rows[:_SHOWN]) < of:
        yield remark_html(f"{len(rows[:_SHOWN])} of {of}; report_{name}.parquet has all.")
    head = [column.replace("_", " ") for column in columns]
    cells = [[_cell(column, row[column]) for column in columns] for row in rows[:_SHOWN]]
    yield rows_html(head, cells, numbers=[place for place, column in enumerate(columns) if column not in _TEXTS])


def _cell(column: str, value: Any) -> str | Cell:
    text = value if isinstance(value, str) else _number(value)
    return Cell(text, _DRIFT_STYLES.get(text, "")) if column == "drifted" else text


def _tiles(totals: Any) -> list[tuple[str, str]]:
    busy = totals["task_seconds"] / totals["wall_seconds"] if totals["wall_seconds"] else 0.0
    shown = {
        "rows": totals["rows"],
        "models": totals["models"],
        "models failed": totals["models_failed"],
        "inferences": totals["inferences"],
        "inferences/s/core": totals.get("inferences_per_core_second"),
        "wall seconds": totals["wall_seconds"],
        "core-seconds": totals["task_seconds"],
        "cores busy, mean": busy,
        "slowest / median task": totals.get("skew_largest"),
        "bytes per inference": totals.get("bytes_per_inference"),
        "core-seconds per million": totals.get("core_seconds_per_million"),
        "cost": totals.get("cost"),
        "cost per million": totals.get("cost_per_million"),
    }
    return [(name, short_number(value)) for name, value in shown.items() if value is not None]


def _figure(now: Distribution, former: Distribution) -> Markup:
    counts = dict(zip(("now", "former"), grouped(now, former), strict=True))
    labels = [f"{part} of 10" for part in range(1, len(counts["now"]))] + ["no output"]
    # Ranks and binary outputs leave tenths empty.
    kept = [place for place in range(len(labels)) if any(of[place] for of in counts.values())]
    shares = {name: [of[place] / max(1, sum(of)) for place in kept] for name, of in counts.items()}
    return share_bars([labels[place] for place in kept], shares, colours=(0, _FORMER_COLOUR))


def _number(value: float | None) -> str:
    return DASH if value is None else short_number(value)
