"""``dataset.html``: a self-contained page with the content of a dataset and the findings about it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Template

from mirrorspark.data_pipelines.dataset.manifest import SPLITS, TRAIN_SPLIT
from mirrorspark.data_pipelines.quality.drift import Drift
from mirrorspark.data_pipelines.quality.findings import Finding, Report, Severity
from mirrorspark.data_pipelines.quality.profile import ColumnProfile, DatasetProfile
from mirrorspark.data_pipelines.quality.raw_values import ColumnKind, Role
from mirrorspark.pages.charts.histogram import overlaid_histogram, share_bars
from mirrorspark.pages.numbers import short_number
from mirrorspark.pages.page import page_template

PAGE_FILE = "dataset.html"

_SHOWN_TOKENS = 6
_SHOWN_CLASSES = 12
_SHOWN_DRIFT = 15
_SHOWN_NOTES = 5
_FORMER_COLOUR = 4
_WEIGHTS = {Severity.ERROR: 10_000, Severity.WARNING: 100, Severity.NOTE: 1}
_DASH = "-"

_Row = tuple[str, list[str]]


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


@dataclass(frozen=True)
class _DriftTable:
    """A row per column, the largest drift first; a cell per comparison, None if it was not measured."""

    places: list[tuple[str, str]]
    rows: list[tuple[str, list[Drift | None]]]
    excess: dict[str, float]


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
    sizes = profile.splits.values()
    limits = report.limits
    findings: dict[str, list[Finding]] = {}
    for finding in report.findings:
        findings.setdefault(finding.column, []).append(finding)
    notes = report.of(Severity.NOTE)
    serious = [finding for finding in report.findings if finding.severity is not Severity.NOTE]
    are_folded = len(notes) > _SHOWN_NOTES
    label = next((column for column in profile.columns if column.role is Role.LABEL), None)
    # Keys come last: there is little to show of them.
    columns = sorted(
        (column for column in profile.columns if column is not label),
        key=lambda column: (column.role is not Role.FEATURE, column.role is Role.KEY),
    )
    return _template().render(
        facts=facts,
        profile=profile,
        report=report,
        limits=limits,
        severities=list(Severity),
        rows=sum(size.rows for size in sizes),
        stored=sum(size.bytes for size in sizes),
        is_sampled=any(size.sampled < size.rows for size in sizes),
        shown_findings=serious if are_folded else [*serious, *notes],
        folded_notes=notes if are_folded else [],
        label=label,
        classes=_classes(label) if label else None,
        drift=_drift_table(report.drift),
        drift_rows=_SHOWN_DRIFT,
        strength_of=lambda excess: (
            "large" if excess >= limits.strong_drift else "some" if excess >= limits.drift else ""
        ),
        columns=columns,
        findings=findings,
        figure=_figure,
        measures=_measures,
        rates=rate_rows,
        rate_name=rate_name(label) if label else "",
        former={name: _beside_former(profile, reference, name) for name in _moved(report)} if reference else {},
        former_colour=_FORMER_COLOUR,
        about=[(name, text) for name, text in _about(facts) if text],
    )


@cache
def _template() -> Template:
    return page_template(
        Path(__file__).with_name("dataset_page.html.jinja"),
        {"percent": _percent, "bytes": _bytes, "weight": _weight, "number": short_number},
    )


def _classes(label: ColumnProfile) -> tuple[str, list[_Row]] | None:
    """Return the figure of a label's classes, and a row per class with its share in each split."""
    shown = _token_shares(label, _SHOWN_CLASSES)
    if shown is None:
        return None
    names, shares = shown
    rows = [(name, [_percent(values[row]) for values in shares.values()]) for row, name in enumerate(names)]
    if label.splits[TRAIN_SPLIT].distinct > len(names):
        rows.append(("all others", _others(shares)))
    return share_bars(names, shares), rows


def _drift_table(drift: tuple[Drift, ...]) -> _DriftTable:
    by_place = {(entry.column, entry.against, entry.split): entry for entry in drift}
    places = list(dict.fromkeys((entry.against, entry.split) for entry in drift))
    places.sort(key=lambda place: (place[0] != "reference", SPLITS.index(place[1]) if place[1] in SPLITS else 0))
    largest: dict[str, float] = {}
    for entry in drift:
        largest[entry.column] = max(entry.excess, largest.get(entry.column, 0.0))
    rows = [
        (name, [by_place.get((name, *place)) for place in places])
        for name in sorted(largest, key=lambda name: -largest[name])
    ]
    return _DriftTable(places, rows, largest)


def _moved(report: Report) -> set[str]:
    """Return the columns that have drifted from the former dataset."""
    drift = report.drift
    return {each.column for each in drift if each.against == "reference" and each.excess >= report.limits.drift}


def _beside_former(profile: DatasetProfile, reference: DatasetProfile, name: str) -> str:
    """Return a figure of the training rows beside those of the former dataset, in the bins for drift."""
    column, former = profile.column(name), reference.column(name)
    if column is None or former is None or former.bins.is_empty:
        return ""
    counted = {"now": column.splits[TRAIN_SPLIT].reference_bins, "former": former.splits[TRAIN_SPLIT].bins}
    shares = {name: _shares(counts) for name, counts in counted.items()}
    return share_bars(_bin_names(former), shares, colours=(0, _FORMER_COLOUR))


def _bin_names(column: ColumnProfile) -> list[str]:
    text = _value_text(column)
    edges = [text(edge) for edge in column.bins.edges]
    between = [f"above {low} to {high}" for low, high in pairwise(edges)]
    names = [f"up to {edges[0]}", *between, f"above {edges[-1]}"] if edges else [*column.bins.tokens, "all others"]
    return [*names, "missing"]


def rate_rows(column: ColumnProfile) -> list[tuple[str, int, float]]:
    """Return the most frequent values or the ranges of a column: name, sampled training rows, and mean label."""
    if not column.label_rates:
        return []
    counts = column.splits[TRAIN_SPLIT].bins
    rows = zip(_bin_names(column), counts, column.label_rates, strict=True)
    return [(name, count, rate) for name, count, rate in rows if count and rate is not None]


def rate_name(label: ColumnProfile) -> str:
    """Return the heading of the mean label: a share of rows, or the mean of a number."""
    return f"mean {label.name}" if label.feature_kind == "number" else f"rate of {label.name}"


def _figure(column: ColumnProfile) -> str:
    if len(column.edges) > 1:
        shares = {split: _shares(part.histogram) for split, part in column.splits.items()}
        if column.kind is ColumnKind.TIME:
            low, high = column.edges[0], column.edges[-1]
            ticks = [low, (low + high) / 2, high]
            return overlaid_histogram(column.edges, shares, value_text=_time_text(high - low), ticks=ticks)
        return overlaid_histogram(column.edges, shares)
    shown = _token_shares(column, _SHOWN_TOKENS)
    return share_bars(*shown) if shown else ""


def _token_shares(column: ColumnProfile, most: int) -> tuple[list[str], dict[str, list[float]]] | None:
    """Return the most frequent tokens of the training rows and, per split, their shares of the present values."""
    if not column.bins.tokens:
        return None
    named = list(column.bins.tokens[:most])
    # The last bin counts missing values.
    return named, {split: _shares(part.bins[:-1])[: len(named)] for split, part in column.splits.items()}


def _others(shares: Mapping[str, list[float]]) -> list[str]:
    return [_percent(max(0.0, 1 - sum(values))) for values in shares.values()]


def _measures(column: ColumnProfile) -> Iterator[_Row]:
    """Yield the rows of a card's table: one per measure, with a cell per split."""
    parts = list(column.splits.values())
    has_lengths = any(part.lengths for part in parts)
    yield "empty" if has_lengths else "missing", [_percent(part.missing_share) for part in parts]
    shown = _token_shares(column, _SHOWN_TOKENS)
    if shown and len(column.bins.tokens) > _SHOWN_TOKENS:
        # As a bar, they would dwarf the others.
        yield "all others", _others(shown[1])
    if any(part.spread for part in parts):
        yield from _spread_measures(column)
    if has_lengths:
        for name, measure in (("per row, median", "median"), ("per row, most", "maximum")):
            yield name, [short_number(getattr(part.lengths, measure)) if part.lengths else _DASH for part in parts]
    if column.kind is not ColumnKind.OTHER:
        is_sample = any(part.distinct_estimate != part.distinct for part in parts)
        name, sign = ("distinct (est.)", "~") if is_sample else ("distinct", "")
        yield name, [f"{sign}{short_number(part.distinct_estimate)}" for part in parts]
    if any(part.out_of_vocabulary_share is not None for part in parts):
        shares = [part.out_of_vocabulary_share for part in parts]
        yield "out of vocabulary", [_DASH if share is None else _percent(share) for share in shares]
    elif column.kind in (ColumnKind.TOKEN, ColumnKind.TOKENS):
        splits = column.splits.items()
        yield (
            "not in training",
            [_DASH if name == TRAIN_SPLIT else _percent(part.unseen_share) for name, part in splits],
        )
    for name, counts in (("NaN", [part.nan for part in parts]), ("infinite", [part.infinite for part in parts])):
        if any(counts):
            yield f"{name}, sampled", [f"{count:,}" for count in counts]


def _spread_measures(column: ColumnProfile) -> Iterator[_Row]:
    text = _value_text(column)
    spreads = [part.spread for part in column.splits.values()]
    for name, measure in (
        ("lowest", lambda spread: text(spread.minimum)),
        ("1%", lambda spread: text(spread.quantiles[0])),
        ("median", lambda spread: text(spread.median)),
        ("mean", lambda spread: text(spread.mean)),
        ("99%", lambda spread: text(spread.quantiles[-1])),
        ("highest", lambda spread: text(spread.maximum)),
        ("standard dev.", lambda spread: short_number(spread.standard_deviation)),
    ):
        if column.kind is not ColumnKind.TIME or name in ("lowest", "median", "highest"):
            yield name, [measure(spread) if spread else _DASH for spread in spreads]


def _about(facts: PageFacts) -> Iterator[tuple[str, str]]:
    yield "feature spec", facts.spec_hash
    yield "fitted features", facts.features_hash
    for name, value in facts.source.items():
        yield f"source: {name}", _flat(value)
    for name, value in facts.options.items():
        yield name.replace("_", " "), _flat(value)
    yield from facts.versions.items()


def _shares(counts: tuple[int, ...]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _value_text(column: ColumnProfile) -> Callable[[float], str]:
    if column.kind is ColumnKind.TIME and column.edges:
        return _time_text(column.edges[-1] - column.edges[0])
    return short_number


def _time_text(span_seconds: float) -> Callable[[float], str]:
    form = "%Y-%m-%d" if span_seconds > 2 * 86_400 else "%Y-%m-%d %H:%M"

    def text(seconds: float) -> str:
        try:
            return datetime.fromtimestamp(seconds, UTC).strftime(form)
        except (ValueError, OverflowError, OSError):
            # Tables have years before 1 and after 9999 as placeholders.
            return f"{seconds:.3g} s"

    return text


def _weight(findings: list[Finding]) -> int:
    """Return the weight of a column's findings, to sort columns by."""
    return sum(_WEIGHTS[finding.severity] for finding in findings)


def _percent(share: float) -> str:
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.1%"
    return ">99.9%" if share > 0.999 else f"{share:.1%}"


def _bytes(size: int) -> str:
    power = min(4, int(math.log(size, 1000))) if size >= 1000 else 0
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_flat(part)}" for name, part in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list | tuple) else str(value)
