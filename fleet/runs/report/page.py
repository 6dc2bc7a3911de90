"""``report.html``: a self-contained page with the report of a run."""

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from jinja2 import Template

from mirrorspark.fleet.bins import Distribution, grouped
from mirrorspark.fleet.runs.report.report import FleetReport
from mirrorspark.pages.charts.histogram import share_bars
from mirrorspark.pages.numbers import short_number
from mirrorspark.pages.page import page_template

_SHOWN_MODELS = 200
_SHOWN_FIGURES = 12
_FORMER_COLOUR = 4
_DASH = "-"


def report_page(report: FleetReport) -> str:
    """Return the page as HTML; of thousands of models, it shows those with the largest drift, and some that failed."""
    totals = report.totals
    by_drift = report.models.take(pc.sort_indices(report.models, [("drift", "descending", "at_end")])).to_pylist()
    spent = {name: totals[f"{name}_seconds"] for name in ("read", "score", "write")}
    spent["other"] = max(0.0, totals["task_seconds"] - sum(spent.values()))
    seconds = max(totals["task_seconds"], 1e-9)
    return _template().render(
        report=report,
        totals=totals,
        tiles=_tiles(totals),
        spent=spent,
        split=share_bars(list(spent), {"task seconds": [value / seconds for value in spent.values()]}),
        failed=[row for row in by_drift if row["state"] == "failed"][:_SHOWN_MODELS],
        models=by_drift[:_SHOWN_MODELS],
        microbatches=report.microbatches.to_pylist()[:_SHOWN_MODELS],
        has_cost="cost" in totals,
        figures=[
            (row, _figure(report.distributions[row["model"]], report.former_distributions[row["model"]]))
            for row in by_drift[:_SHOWN_FIGURES]
            if row["drift"] is not None
        ],
    )


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


def _figure(now: Distribution, former: Distribution) -> str:
    counts = dict(zip(("now", "former"), grouped(now, former), strict=True))
    labels = [f"{part} of 10" for part in range(1, len(counts["now"]))] + ["no output"]
    # Ranks and binary outputs leave tenths empty.
    kept = [place for place in range(len(labels)) if any(of[place] for of in counts.values())]
    shares = {name: [of[place] / max(1, sum(of)) for place in kept] for name, of in counts.items()}
    return share_bars([labels[place] for place in kept], shares, colours=(0, _FORMER_COLOUR))


def _number(value: float | None) -> str:
    return _DASH if value is None else short_number(value)


@cache
def _template() -> Template:
    return page_template(Path(__file__).with_name("report.html.jinja"), {"number": _number})
