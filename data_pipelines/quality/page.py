"""``dataset.html``: a self-contained page with the content of a dataset and the findings about it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.quality.column_card import column_card, label_section, percent, rate_name
from mirrorspark.data_pipelines.quality.drift import Drift
from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Report, Severity
from mirrorspark.data_pipelines.quality.profile import ColumnProfile, DatasetProfile
from mirrorspark.data_pipelines.quality.raw_value_columns import Role
from mirrorspark.pages import (
    DASH,
    Cell,
    cards_html,
    details_html,
    element,
    facts_html,
    findings_html,
    joined,
    page_html,
    paragraph_html,
    remark_html,
    rows_html,
    section_html,
    series_html,
    tiles_html,
)

PAGE_FILE = "dataset.html"

_SHOWN_DRIFT = 15
_SHOWN_NOTES = 5

_TOOLS = Markup(
    '<div class="tools"><input id="filter" type="search" placeholder="Find a column" aria-label="Find a column">'
    '<select id="order" aria-label="Order of the columns"><option value="place">in the order of the spec</option>'
    '<option value="weight">findings first</option><option value="drift">most drift first</option>'
    '<option value="missing">most missing first</option><option value="name">by name</option></select></div>'
)
# Without this script the page shows everything in the order of the spec.
_SCRIPT = """
const cards = [...document.querySelectorAll('#columns .card')];
const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name);
const byPlace = (a, b) => a.dataset.place - b.dataset.place;
document.getElementById('filter').addEventListener('input', event => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const card of cards) card.hidden = !card.dataset.name.toLowerCase().includes(wanted);
});
document.getElementById('order').addEventListener('change', event => {
  const key = event.target.value;
  const falling = (a, b) => b.dataset[key] - a.dataset[key] || byPlace(a, b);
  const order = key === 'name' ? byName : key === 'place' ? byPlace : falling;
  document.querySelector('#columns .cards').append(...[...cards].sort(order));
});
"""


@dataclass(frozen=True)
class PageFacts:
    """The part of the page that is not in the profile.

    Attributes:
        written: The time of writing, as text.
        source: The source of the rows.
        options: The options of the conversion.
        versions: Versions of the libraries that wrote them.
        reference: Name of the former dataset that drift is measured against; empty if there is none.
    """

    title: str
    written: str = ""
    spec_hash: str = ""
    features_hash: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""


def dataset_page(
    facts: PageFacts, profile: DatasetProfile, report: Report, reference: DatasetProfile | None = None
) -> str:
    """Return the page as HTML.

    Args:
        facts: The part of the page that is not in the profile.
        profile: The dataset's profile.
        report: The findings of validation.
        reference: Profile of the former dataset, if the report compares with one.
    """
    label = next((column for column in profile.columns if column.role is Role.LABEL), None)
    links = {column.name: f"#column-{column.name}" for column in profile.columns}
    blocks = [
        _origin(facts),
        _overview(profile, report),
        _split_sizes(profile),
        _findings(report, links),
        label_section(label) if label else "",
        _drift(report, facts.reference, links) if report.drift else "",
        _columns(profile, report, reference, label),
        _how_it_was_made(facts, profile),
    ]
    return page_html("Dataset", facts.title, blocks, script=_SCRIPT)


def _origin(facts: PageFacts) -> Markup:
    parts = [f"written {facts.written}"] if facts.written else []
    for name, value in (("feature spec ", facts.spec_hash), ("compared with ", facts.reference)):
        parts += [joined([name, element("code", value)])] if value else []
    return remark_html(joined(parts, " · "))


def _overview(profile: DatasetProfile, report: Report) -> Markup:
    sizes = profile.splits.values()
    tiles: list[tuple[str, str | Cell]] = [
        ("rows", f"{sum(size.rows for size in sizes):,}"),
        ("feature columns", str(sum(column.role is Role.FEATURE for column in profile.columns))),
    ]
    if stored := sum(size.bytes for size in sizes):
        tiles.append(("in shards", _bytes(stored)))
    for severity in Severity:
        count = len(report.of(severity))
        tiles.append((f"{severity}{'s' * (count != 1)}", Cell(str(count), str(severity) if count else "quiet")))
    return tiles_html(tiles)


def _split_sizes(profile: DatasetProfile) -> Markup:
    sizes = profile.splits.values()
    total, is_stored = sum(size.rows for size in sizes), any(size.bytes for size in sizes)
    stored = ("shards", "bytes") if is_stored else ()
    rows = [
        [
            *(series_html(number, split), f"{size.rows:,}", percent(size.rows / total if total else 0)),
            *((f"{size.shards:,}", _bytes(size.bytes)) if is_stored else ()),
            f"{size.sampled:,}" if size.sampled < size.rows else "all",
        ]
        for number, (split, size) in enumerate(profile.splits.items())
    ]
    return rows_html(("split", "rows", "share", *stored, "sampled for this page"), rows, numbers=range(1, 6))


def _findings(report: Report, links: Mapping[str, str]) -> Markup:
    notes = [vars(finding) for finding in report.of(Severity.NOTE)]
    shown = [vars(finding) for finding in report.findings if finding.severity is not Severity.NOTE]
    are_folded = len(notes) > _SHOWN_NOTES
    shown += [] if are_folded else notes
    return section_html(
        "Findings",
        "" if report.findings else paragraph_html("Nothing stands out in any column.", style="good"),
        findings_html(shown, links=links) if shown else "",
        details_html(f"{len(notes)} notes", findings_html(notes, links=links)) if are_folded else "",
    )


def _drift(report: Report, reference: str, links: Mapping[str, str]) -> Markup:
    limits, drift = report.limits, report.drift
    by_place = {(entry.column, entry.against, entry.split): entry for entry in drift}
    places = list(dict.fromkeys((entry.against, entry.split) for entry in drift))
    places.sort(key=lambda place: (place[0] != "reference", SPLITS.index(place[1]) if place[1] in SPLITS else 0))
    head = ["column", *(f"{split} vs {'former' if of == 'reference' else of}" for of, split in places)]
    rows = [
        [
            Cell(name, link=links.get(name, "")),
            *(_index(entry, limits) if (entry := by_place.get((name, *place))) else DASH for place in places),
        ]
        for name, _ in sorted(_excess(report).items(), key=lambda of: -of[1])
    ]
    against = "Other splits against the training rows; there is no former dataset to compare with."
    if places[0][0] == "reference":
        former = reference or "the former dataset"
        against = f"Training rows against the training rows of {former}; other splits against the training rows."
    remark = (
        f"{against} Population stability index, coloured where it exceeds chance in samples of this size: "
        f"by {limits.drift:g} some shift, by {limits.strong_drift:g} a large one."
    )
    numbers, more = range(1, len(head)), len(rows) - _SHOWN_DRIFT
    return section_html(
        "Drift",
        remark_html(remark),
        rows_html(head, rows[:_SHOWN_DRIFT], numbers=numbers),
        details_html(f"{more} more columns", rows_html(head, rows[_SHOWN_DRIFT:], numbers=numbers)) if more > 0 else "",
    )


def _index(entry: Drift, limits: Limits) -> Cell:
    strength = limits.strength_of(entry.excess)
    return Cell(
        f"{entry.index:.3f}",
        {"large": "error", "some": "warning", "": ""}[strength],
        # Full at twice the upper limit: all values beyond are large.
        bar=min(1.0, 0.5 * entry.index / limits.strong_drift),
        hint=f"{strength or 'stable'}: {entry.index:.4f}, chance below {entry.noise:.4f}",
    )


def _excess(report: Report) -> dict[str, float]:
    """Return the largest drift of each column beyond chance."""
    largest: dict[str, float] = {}
    for entry in report.drift:
        largest[entry.column] = max(entry.excess, largest.get(entry.column, 0.0))
    return largest


def _columns(
    profile: DatasetProfile, report: Report, reference: DatasetProfile | None, label: ColumnProfile | None
) -> Markup:
    """Return a card for each column; keys come last, since there is little to show of them."""
    columns = sorted(
        (column for column in profile.columns if column is not label),
        key=lambda column: (column.role is not Role.FEATURE, column.role is Role.KEY),
    )
    findings: dict[str, list[Finding]] = {}
    for finding in report.findings:
        findings.setdefault(finding.column, []).append(finding)
    excess, moved, rates = _excess(report), _moved(report), rate_name(label) if label else ""
    cards = [
        column_card(
            column,
            findings.get(column.name, []),
            excess.get(column.name, 0.0),
            report.limits,
            place=place,
            rates=rates,
            former=reference.column(column.name) if reference and column.name in moved else None,
        )
        for place, column in enumerate(columns)
    ]
    title = joined(["Columns ", element("span", str(len(columns)), class_="chip")])
    return section_html(title, _TOOLS, cards_html(cards, least=340), name="columns")


def _how_it_was_made(facts: PageFacts, profile: DatasetProfile) -> Markup:
    remark = "All figures are of all rows."
    if any(size.sampled < size.rows for size in profile.splits.values()):
        remark = (
            "Histograms, quantiles and frequent values are of a random sample of rows per split, numbers of rows, "
            "missing and out-of-vocabulary values of all rows. Distinct values are estimated from the sample."
        )
    bars = (
        "The outermost bars of a histogram hold all values beyond. Bars and outlines are shares of the split's own "
        "rows, so splits of any size compare."
    )
    about = [(name, text) for name, text in _about(facts) if text]
    return section_html("How it was made", remark_html(f"{remark} {bars}"), facts_html(about))


def _moved(report: Report) -> set[str]:
    """Return the columns that have drifted from the former dataset."""
    drift = report.drift
    return {each.column for each in drift if each.against == "reference" and each.excess >= report.limits.drift}


def _about(facts: PageFacts) -> Iterator[tuple[str, str]]:
    yield "feature spec", facts.spec_hash
    yield "fitted features", facts.features_hash
    for name, value in facts.source.items():
        yield f"source: {name}", _flat(value)
    for name, value in facts.options.items():
        yield name.replace("_", " "), _flat(value)
    yield from facts.versions.items()


def _bytes(size: int) -> str:
    power = min(4, int(math.log(size, 1000))) if size >= 1000 else 0
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_flat(part)}" for name, part in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list | tuple) else str(value)
