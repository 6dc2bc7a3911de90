"""``dataset.html``: what a dataset holds and what is wrong with it, on one page that needs nothing but itself."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import Any

from data_pipelines.manifest import SPLITS, TRAIN_SPLIT
from data_pipelines.quality.page_style import SCRIPT, STYLE
from data_pipelines.quality.profile import ColumnProfile, DatasetProfile, SplitColumn
from data_pipelines.quality.raw_values import ColumnKind, Role
from data_pipelines.quality.validation import Drift, Finding, Limits, Report, Severity
from plots.histogram import overlaid_histogram, share_bars, short_number

PAGE_FILE = "dataset.html"

_SHOWN_TOKENS = 6
_SHOWN_CLASSES = 12
_SHOWN_DRIFT = 15
_SHOWN_NOTES = 5
_FORMER_COLOUR = 4
# What no script or style of the page needs is forbidden: nothing is fetched, whatever a value holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

_SEVERITY_SIGNS = {Severity.ERROR: "x", Severity.WARNING: "!", Severity.NOTE: "i"}
_DASH = "-"


@dataclass(frozen=True)
class PageFacts:
    """What the page says of the dataset beside its profile.

    Attributes:
        title: Name of the dataset.
        written: When it was written, as text.
        spec_hash: Of the feature spec.
        features_hash: Of the fitted features.
        source: What the rows came from.
        options: How they were written.
        versions: Libraries that wrote them.
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
        facts: What the page says of the dataset beside its profile.
        profile: What the columns look like.
        report: What validation found in it.
        reference: Profile of the former dataset, where the report compares with one.
    """
    body = [
        _header(facts, profile, report),
        _findings(report),
        _label(profile),
        _drift(report, facts),
        _columns(profile, report, reference),
        _about(facts, profile),
    ]
    title = escape(facts.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} - dataset</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="color-scheme" content="light dark"><style>{STYLE}</style></head>\n'
        f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _header(facts: PageFacts, profile: DatasetProfile, report: Report) -> str:
    rows = sum(size.rows for size in profile.splits.values())
    stored = sum(size.bytes for size in profile.splits.values())
    features = sum(column.role is Role.FEATURE for column in profile.columns)
    tiles = [(f"{rows:,}", "rows"), (f"{features:,}", "feature columns")]
    if stored:
        tiles.append((_bytes(stored), "in shards"))
    tiles += [
        (f"{len(report.of(severity)):,}", f"{severity}{'s' * (len(report.of(severity)) != 1)}") for severity in Severity
    ]
    classes = [""] * (len(tiles) - len(Severity)) + [
        f"{severity} {'none' if not report.of(severity) else ''}" for severity in Severity
    ]
    told = "".join(
        f'<div class="tile {name}"><b>{number}</b><span>{word}</span></div>'
        for (number, word), name in zip(tiles, classes, strict=True)
    )
    lines = [f"written {escape(facts.written)}"] if facts.written else []
    if facts.spec_hash:
        lines.append(f"feature spec <code>{escape(facts.spec_hash)}</code>")
    if facts.reference:
        lines.append(f"compared with <code>{escape(facts.reference)}</code>")
    return (
        f'<header><p class="kicker">Dataset</p><h1>{escape(facts.title)}</h1>'
        f'<p class="quiet">{" &middot; ".join(lines)}</p>'
        f'<div class="tiles">{told}</div>{_split_table(profile, rows)}</header>'
    )


def _split_table(profile: DatasetProfile, rows: int) -> str:
    with_bytes = any(size.bytes for size in profile.splits.values())
    head = ["split", "rows", "share", *(["shards", "bytes"] if with_bytes else []), "sampled for this page"]
    lines = []
    for number, (split, size) in enumerate(profile.splits.items()):
        cells = [f"{size.rows:,}", _percent(size.rows / rows if rows else 0)]
        if with_bytes:
            cells += [f"{size.shards:,}", _bytes(size.bytes)]
        cells.append(f"{size.sampled:,}" if size.sampled < size.rows else "all")
        lines.append(_row(_series(number, split), cells))
    return _table(head, lines)


def _findings(report: Report) -> str:
    if not report.findings:
        return '<section id="findings"><h2>Findings</h2><p class="calm">Nothing stands out in any column.</p></section>'
    serious = [finding for finding in report.findings if finding.severity is not Severity.NOTE]
    notes = list(report.of(Severity.NOTE))
    shown = serious + (notes if len(notes) <= _SHOWN_NOTES else [])
    parts = f'<ul class="findings">{"".join(map(_finding, shown))}</ul>' if shown else ""
    if len(notes) > _SHOWN_NOTES:
        listed = "".join(map(_finding, notes))
        parts += f'<details><summary>{len(notes)} notes</summary><ul class="findings">{listed}</ul></details>'
    return f'<section id="findings"><h2>Findings</h2>{parts}</section>'


def _finding(finding: Finding) -> str:
    about = f'<a href="#{_anchor(finding.column)}">{escape(finding.column)}</a>' if finding.column else "dataset"
    return (
        f'<li class="{finding.severity}"><span class="sign" title="{finding.severity}" aria-label="{finding.severity}">'
        f'{_SEVERITY_SIGNS[finding.severity]}</span><div><p class="about">{about} <span>{escape(finding.check)}</span>'
        f"</p><p>{escape(_capitalised(finding.sentence))}.</p></div></li>"
    )


def _label(profile: DatasetProfile) -> str:
    label = next((column for column in profile.columns if column.role is Role.LABEL), None)
    if label is None:
        return ""
    shown = _token_shares(label, _SHOWN_CLASSES)
    if shown is None:
        figure = _figure(label)
        return _label_section(label, f'<div class="card">{figure}</div>' if figure else "")
    names, shares = shown
    head = [escape(label.name), *(_series(number, split) for number, split in enumerate(shares))]
    lines = [
        _row(escape(name), [_percent(values[row]) for values in shares.values()]) for row, name in enumerate(names)
    ]
    if label.splits[TRAIN_SPLIT].distinct > len(names):
        lines.append(_row("all others", [_percent(max(0.0, 1 - sum(values))) for values in shares.values()]))
    return _label_section(
        label,
        f'<div class="pair"><div class="card">{share_bars(names, shares)}</div>{_table(head, lines)}</div>',
    )


def _label_section(label: ColumnProfile, content: str) -> str:
    kind = f"{label.feature_kind} label".replace("_", " ")
    return (
        f'<section id="{_anchor(label.name)}"><h2>Label <code>{escape(label.name)}</code> '
        f'<span class="chip">{escape(kind)}</span></h2>{content}</section>'
    )


def _drift(report: Report, facts: PageFacts) -> str:
    if not report.drift:
        return ""
    limits = report.limits
    kinds = list(dict.fromkeys((entry.against, entry.split) for entry in report.drift))
    kinds.sort(key=lambda kind: (kind[0] != "reference", SPLITS.index(kind[1]) if kind[1] in SPLITS else 0))
    names = list(dict.fromkeys(entry.column for entry in report.drift))
    by_place = {(entry.column, entry.against, entry.split): entry for entry in report.drift}
    names.sort(key=lambda name: -max(entry.excess for entry in report.drift if entry.column == name))
    head = [
        "column",
        *(f"{split} vs {'former' if against == 'reference' else against}" for against, split in kinds),
    ]
    lines = [
        f'<tr><th scope="row"><a href="#{_anchor(name)}">{escape(name)}</a></th>'
        + "".join(_drift_cell(by_place.get((name, *kind)), limits) for kind in kinds)
        + "</tr>"
        for name in names
    ]
    more = ""
    if len(lines) > _SHOWN_DRIFT:
        rest = _table(head, lines[_SHOWN_DRIFT:])
        more = f"<details><summary>{len(lines) - _SHOWN_DRIFT} more columns</summary>{rest}</details>"
    told = (
        f"Training rows against the training rows of {escape(facts.reference or 'the former dataset')}; other splits "
        f"against the training rows."
        if any(entry.against == "reference" for entry in report.drift)
        else "Other splits against the training rows; there is no former dataset to compare with."
    )
    return (
        f'<section id="drift"><h2>Drift</h2><p class="quiet">{told} Population stability index, coloured where it is '
        f"above what chance does in samples of this size: by {limits.drift:g} some shift, by {limits.strong_drift:g} a "
        f"large one.</p>{_table(head, lines[:_SHOWN_DRIFT])}{more}</section>"
    )


def _drift_cell(entry: Drift | None, limits: Limits) -> str:
    if entry is None:
        return f"<td>{_DASH}</td>"
    strength = "large" if entry.excess >= limits.strong_drift else "some" if entry.excess >= limits.drift else "stable"
    # Full at twice the upper limit: what lies beyond is large, however large.
    width = min(100.0, 50 * entry.index / limits.strong_drift)
    return (
        f'<td class="psi {strength}" title="{strength}: {entry.index:.4f}, chance below {entry.noise:.4f}">'
        f'<span>{entry.index:.3f}</span><i style="--width:{width:.0f}%"></i></td>'
    )


def _columns(profile: DatasetProfile, report: Report, reference: DatasetProfile | None) -> str:
    # Keys come last: there is little to see of them.
    columns = sorted(
        (column for column in profile.columns if column.role is not Role.LABEL),
        key=lambda column: (column.role is not Role.FEATURE, column.role is Role.KEY),
    )
    cards = "".join(_card(place, column, report, reference) for place, column in enumerate(columns))
    tools = (
        '<div class="tools"><input id="filter" type="search" placeholder="Find a column" aria-label="Find a column">'
        '<select id="order" aria-label="Order of the columns"><option value="place">in the order of the spec</option>'
        '<option value="weight">findings first</option><option value="drift">most drift first</option>'
        '<option value="missing">most missing first</option><option value="name">by name</option></select></div>'
    )
    return (
        f'<section id="columns"><h2>Columns <span class="chip">{len(columns)}</span></h2>{tools}'
        f'<div class="cards">{cards}</div></section>'
    )


def _card(place: int, column: ColumnProfile, report: Report, reference: DatasetProfile | None) -> str:
    findings = [finding for finding in report.findings if finding.column == column.name]
    drift = max((entry.excess for entry in report.drift if entry.column == column.name), default=0.0)
    missing = max(part.missing_share for part in column.splits.values())
    weight = sum({Severity.ERROR: 10_000, Severity.WARNING: 100, Severity.NOTE: 1}[each.severity] for each in findings)
    worst = findings[0].severity if findings else ""
    moved = any(
        entry.excess >= report.limits.drift
        for entry in report.drift
        if entry.column == column.name and entry.against == "reference"
    )
    former = _beside_former(column, reference.column(column.name)) if reference and moved else ""
    chips = f'<span class="chip">{escape(_kind_text(column))}</span><span class="chip">{escape(column.type)}</span>'
    if drift >= report.limits.drift:
        chips += f'<span class="chip {"warning" if drift >= report.limits.strong_drift else "note"}">drift</span>'
    said = "".join(
        f'<li class="{finding.severity}"><span class="sign" aria-label="{finding.severity}">'
        f"{_SEVERITY_SIGNS[finding.severity]}</span>{escape(_capitalised(finding.sentence))}.</li>"
        for finding in findings
    )
    return (
        f'<article class="card {worst}" id="{_anchor(column.name)}" data-name="{escape(column.name)}" '
        f'data-place="{place}" data-drift="{drift:.4f}" data-missing="{missing:.4f}" data-weight="{weight}">'
        f"<h3>{escape(column.name)}</h3>"
        f'<p class="chips">{chips}</p>{_figure(column)}{_numbers(column)}{_new_values(column)}{former}'
        f"{f'<ul class=said>{said}</ul>' if said else ''}</article>"
    )


def _beside_former(column: ColumnProfile, former: ColumnProfile | None) -> str:
    """Return the training rows beside those of the former dataset, in the bins that drift is measured in."""
    if former is None or former.bins.is_empty:
        return ""
    text = _value_text(former)
    edges = [text(edge) for edge in former.bins.edges]
    between = [f"above {low} to {high}" for low, high in pairwise(edges)]
    names = [f"up to {edges[0]}", *between, f"above {edges[-1]}"] if edges else [*former.bins.tokens, "all others"]
    counted = {"now": column.splits[TRAIN_SPLIT].reference_bins, "former": former.splits[TRAIN_SPLIT].bins}
    shares = {name: _shares(counts) for name, counts in counted.items()}
    bars = share_bars([*names, "missing"], shares, colours=(0, _FORMER_COLOUR))
    return (
        f'<details><summary>compare with the former dataset</summary><p class="former">Training rows '
        f"{_series(0, 'now')} and {_series(_FORMER_COLOUR, 'then')}</p>{bars}</details>"
    )


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
    """Return the most frequent tokens of the training rows and, per split, their shares of the values there are."""
    if not column.bins.tokens:
        return None
    named = list(column.bins.tokens[:most])
    # The last bin counts what is missing.
    return named, {split: _shares(part.bins[:-1])[: len(named)] for split, part in column.splits.items()}


def _numbers(column: ColumnProfile) -> str:
    """Return the table of a card: one line per measure, one column per split."""
    parts = list(column.splits.values())
    missing = "empty" if any(part.lengths for part in parts) else "missing"
    lines: list[tuple[str, list[str]]] = [(missing, [_percent(part.missing_share) for part in parts])]
    text = _value_text(column)
    shown = _token_shares(column, _SHOWN_TOKENS)
    if shown and len(column.bins.tokens) > _SHOWN_TOKENS:
        # As a bar they would dwarf the others.
        lines.append(("all others", [_percent(max(0.0, 1 - sum(values))) for values in shown[1].values()]))
    if any(part.spread for part in parts):
        for name, measure in (
            ("lowest", lambda spread: text(spread.minimum)),
            ("1%", lambda spread: text(spread.quantiles[0])),
            ("median", lambda spread: text(spread.median)),
            ("mean", lambda spread: text(spread.mean)),
            ("99%", lambda spread: text(spread.quantiles[-1])),
            ("highest", lambda spread: text(spread.maximum)),
            ("standard dev.", lambda spread: short_number(spread.standard_deviation)),
        ):
            if column.kind is ColumnKind.TIME and name in ("1%", "99%", "mean", "standard dev."):
                continue
            lines.append((name, [measure(part.spread) if part.spread else _DASH for part in parts]))
    if any(part.lengths for part in parts):
        lines.append(("per row, median", [_length(part, "median") for part in parts]))
        lines.append(("per row, most", [_length(part, "maximum") for part in parts]))
    if column.kind is not ColumnKind.OTHER:
        is_sample = any(part.distinct_estimate != part.distinct for part in parts)
        lines.append(
            (
                "distinct (est.)" if is_sample else "distinct",
                [f"{'~' if is_sample else ''}{short_number(part.distinct_estimate)}" for part in parts],
            )
        )
    if any(part.out_of_vocabulary_share is not None for part in parts):
        shares = [part.out_of_vocabulary_share for part in parts]
        lines.append(("out of vocabulary", [_DASH if share is None else _percent(share) for share in shares]))
    elif column.kind in (ColumnKind.TOKEN, ColumnKind.TOKENS):
        unseen = [
            _DASH if split == TRAIN_SPLIT else _percent(part.unseen_share) for split, part in column.splits.items()
        ]
        lines.append(("not in training", unseen))
    for name, counts in (("NaN", [part.nan for part in parts]), ("infinite", [part.infinite for part in parts])):
        if any(counts):
            lines.append((f"{name}, sampled", [f"{count:,}" for count in counts]))
    head = ["", *(_series(number, split) for number, split in enumerate(column.splits))]
    return _table(head, [_row(escape(name), cells) for name, cells in lines])


def _new_values(column: ColumnProfile) -> str:
    """Return the values that the validation and test rows brought, for columns of tokens."""
    if column.kind not in (ColumnKind.TOKEN, ColumnKind.TOKENS):
        return ""
    told = [
        f"<b>{escape(split)}</b> "
        + ", ".join(
            f"<code>{escape(entry.value)}</code> {_percent(entry.count / part.values)}" for entry in part.unseen
        )
        for split, part in column.splits.items()
        if part.unseen
    ]
    return f'<p class="new">New in {"; ".join(told)}</p>' if told else ""


def _about(facts: PageFacts, profile: DatasetProfile) -> str:
    entries = [
        ("feature spec", facts.spec_hash),
        ("fitted features", facts.features_hash),
        *((f"source: {name}", _flat(value)) for name, value in facts.source.items()),
        *((name.replace("_", " "), _flat(value)) for name, value in facts.options.items()),
        *((name, version) for name, version in facts.versions.items()),
    ]
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in entries if value != "")
    is_sampled = any(size.sampled < size.rows for size in profile.splits.values())
    how = (
        "Histograms, quantiles and frequent values are of a random sample of rows per split, numbers of rows, missing "
        "and out-of-vocabulary values of all rows. Distinct values are estimated from the sample."
        if is_sampled
        else "All figures are of all rows."
    )
    return (
        f'<footer><h2>How it was made</h2><p class="quiet">{how} The outermost bars of a histogram hold all values '
        f"beyond. Bars and outlines are shares of the split's own rows, so splits of any size compare.</p>"
        f"<dl>{told}</dl></footer>"
    )


def _table(head: Iterable[str], lines: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _row(head: str, cells: Iterable[str]) -> str:
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'


def _series(number: int, name: str) -> str:
    """Return a split's name with the colour that it has in the figures."""
    return f'<span class="series" style="--colour:var(--series-{number})">{escape(name)}</span>'


def _shares(counts: tuple[int, ...]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _length(part: SplitColumn, measure: str) -> str:
    return short_number(getattr(part.lengths, measure)) if part.lengths else _DASH


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
            # Years before 1 and after 9999 exist in tables, as placeholders.
            return f"{seconds:.3g} s"

    return text


def _kind_text(column: ColumnProfile) -> str:
    if column.role is Role.FEATURE:
        return (column.feature_kind or str(column.kind)).replace("_", " ")
    return str(column.role)


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


def _anchor(name: str) -> str:
    return escape(f"column-{name}".replace(" ", "-"))


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
