"""``pipeline.html``: the stages of a date, their findings, and the changes since the former date."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mirrorspark.lifecycle.pipeline.record import PipelineRecord
from mirrorspark.lifecycle.pipeline.stages import Stage, StageRecord
from mirrorspark.lifecycle.pipeline.weekly import warnings_of
from mirrorspark.pages import (
    DASH,
    Cell,
    element,
    joined,
    page_html,
    paragraph_html,
    remark_html,
    rows_html,
    section_html,
    short_number,
    tiles_html,
    verdict_html,
)

PAGE_FILE = "pipeline.html"
STYLES = {"passed": "good", "failed": "error", "running": "warning"}


def pipeline_page(record: PipelineRecord, stages: Sequence[Stage], former: PipelineRecord | None, folder: Path) -> str:
    """Return the page as HTML.

    Args:
        record: The record of the date.
        stages: Its stages.
        former: The record of the latest earlier date that has finished.
        folder: Where the page will be, for links.
    """
    found = {name: one.facts for name, one in record.stages.items()}
    warnings = [(words,) for words in warnings_of(found)]
    links = [element("a", name, href=link) for name, link in _links(found, folder)]
    state, words = state_of(record)
    blocks = [
        paragraph_html(element("a", "All dates", href="../index.html")),
        verdict_html(words, STYLES[state]),
        tiles_html(_tiles(record)),
        section_html("Warnings", rows_html((), warnings)) if warnings else "",
        section_html("Stages", _stages(stages, record.stages)),
        remark_html("Evidence: ", joined(links, " · ")) if links else "",
        _changes(record, former) if former is not None else "",
    ]
    return page_html("Pipeline", f"{record.name} of {record.run_date}", blocks)


def _stages(stages: Sequence[Stage], begun: Mapping[str, StageRecord]) -> Markup:
    longest = max((one.seconds for one in begun.values()), default=0.0) or 1.0
    rows: list[tuple[Cell | str, ...]] = []
    for stage in stages:
        name = Cell(element("b", stage.name), below=[stage.promise])
        one = begun.get(stage.name)
        if one is None:
            rows.append((name, Cell("to come", "quiet"), "", ""))
            continue
        attempts = [f"{one.attempts} attempts"] if one.attempts > 1 else ()
        state = Cell(one.state, STYLES.get(one.state, ""), below=attempts)
        rows.append((name, state, Cell(f"{one.seconds:.1f}", bar=one.seconds / longest), _in_words(stage.name, one)))
    return rows_html(("stage", "state", "seconds", "found"), rows, numbers=(2,))


def state_of(record: PipelineRecord) -> tuple[str, str]:
    """Return the state of a date, ``passed``, ``failed`` or ``running``, and a sentence."""
    for name, one in record.stages.items():
        if one.state == "failed":
            return "failed", f"Stopped at '{name}': {one.problem}"
        if one.state == "running":
            return "running", f"Running: {name}"
    if not record.is_finished:
        return "running", "Between two stages"
    facts = record.stages["promote"].facts
    return "passed", f"Version {facts['version']} is the champion."


def _tiles(record: PipelineRecord) -> list[tuple[str, str]]:
    value = record.fact
    shown = [
        ("rows", _shown(value("data", "rows"))),
        ("candidate", _shown(value("train", "version"))),
        ("champion before", _shown(value("evaluate", "champion"))),
        *(
            (name.replace("_", " "), _shown(number))
            for name, number in list((value("evaluate", "metrics") or {}).items())[:2]
        ),
        ("seconds", _shown(seconds_of(record))),
    ]
    return [(name, text) for name, text in shown if text != DASH]


def _in_words(name: str, one: StageRecord) -> str:
    """Return the findings of a stage."""
    if one.problem:
        return one.problem
    facts, word = one.facts, _WORDS.get(name)
    return word(facts) if word is not None and one.state == "passed" else ""


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "ingest": lambda facts: (
        f"{', '.join(facts['files'])}; "
        + (f"begins from {facts['warm_start']}" if facts["warm_start"] else "begins from random weights")
    ),
    "data": lambda facts: f"{facts['rows']:,} rows",
    "convert": lambda facts: ", ".join(f"{rows:,} {split}" for split, rows in facts["rows"].items()) + " rows",
    "train": lambda facts: f"version {facts['version']}",
    "evaluate": lambda facts: (
        f"{facts['slices']} slices, "
        + (f"against version {facts['champion']}" if facts["champion"] else "no champion to compare with")
    ),
    "gate": lambda facts: "all gates passed",
    "parity": lambda facts: (
        "largest difference "
        + f"{max((float(report['max']) for report in facts['reports'].values()), default=0.0):.1e}"
    ),
    "deploy": lambda facts: facts["model"] + (f", {facts['rows']:,} rows ahead of time" if "rows" in facts else ""),
    "smoke": lambda facts: f"{facts['rows']} rows, p99 {facts['p99_ms']:.1f} ms",
    "promote": lambda facts: f"version {facts['version']}, before {facts['previous'] or 'none'}",
    "notify": lambda facts: f"{facts['targets']} target{'' if facts['targets'] == 1 else 's'}",
}


def _changes(record: PipelineRecord, former: PipelineRecord) -> Markup | str:
    """Return the comparable values: name, former value, current value, and the change."""
    now, before = record.fact, former.fact
    pairs = {"rows of the table": (before("data", "rows"), now("data", "rows"))}
    for split, rows in (now("convert", "rows") or {}).items():
        pairs[f"{split} rows"] = ((before("convert", "rows") or {}).get(split), rows)
    for name, value in (now("evaluate", "metrics") or {}).items():
        pairs[name.replace("_", " ")] = ((before("evaluate", "metrics") or {}).get(name), value)
    scores = [(values("evaluate", "scores") or {}).get("mean") for values in (before, now)]
    pairs["mean score"] = (scores[0], scores[1])
    pairs["p99 of single rows, ms"] = (before("evaluate", "latency_p99_ms"), now("evaluate", "latency_p99_ms"))
    pairs["seconds"] = (seconds_of(former), seconds_of(record))
    rows = [
        (name, _shown(old), _shown(new), f"{new / old - 1:+.1%}" if old else DASH)
        for name, (old, new) in pairs.items()
        if old is not None and new is not None
    ]
    head = ("", former.run_date, record.run_date, "change")
    return section_html(f"Since {former.run_date}", rows_html(head, rows, numbers=(1, 2, 3))) if rows else ""


def _links(found: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the pages of the stages, as links from the folder of this one."""
    pages = {"data": ("convert", "page"), "training": ("train", "report"), "validation": ("evaluate", "page")}
    for name, (stage, fact) in pages.items():
        if page := found.get(stage, {}).get(fact):
            yield name, os.path.relpath(page, folder)
    if page := found.get("train", {}).get("run_page"):
        yield "MLflow run", page


def seconds_of(record: PipelineRecord) -> float:
    """Return the duration of the latest attempts of all stages."""
    return sum(one.seconds for one in record.stages.values())


def _shown(value: float | str | None) -> str:
    if value is None:
        return DASH
    return value if isinstance(value, str) else short_number(float(value))
