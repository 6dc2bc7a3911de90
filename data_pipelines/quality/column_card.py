"""A column's card on the page of a dataset: its distribution and measures by split, and findings."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from markupsafe import Markup

from mirrorspark.data_pipelines.dataset import TRAIN_SPLIT
from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Severity
from mirrorspark.data_pipelines.quality.profile import ColumnProfile
from mirrorspark.data_pipelines.quality.raw_value_columns import ColumnKind, Role
from mirrorspark.pages import (
    DASH,
    card_html,
    cards_html,
    details_html,
    element,
    findings_html,
    joined,
    paragraph_html,
    remark_html,
    rows_html,
    section_html,
    series_html,
    short_number,
)
from mirrorspark.pages.charts import overlaid_histogram, share_bars

_SHOWN_TOKENS = 6
_SHOWN_CLASSES = 12
_FORMER_COLOUR = 4
_WEIGHTS = {Severity.ERROR: 10_000, Severity.WARNING: 100, Severity.NOTE: 1}

_Row = tuple[str, list[str]]


def column_card(
    column: ColumnProfile,
    findings: Sequence[Finding],
    excess: float,
    limits: Limits,
    *,
    place: int,
    rates: str,
    former: ColumnProfile | None,
) -> Markup:
    """Return the card of a column, with the attributes by which cards are found and ordered.

    Args:
        column: Its profile.
        findings: Its findings.
        excess: Its largest drift beyond chance.
        limits: Thresholds of drift.
        place: Its place in the order of the spec.
        rates: Heading of the mean label.
        former: Its profile in the former dataset, if it has drifted from there.
    """
    kind = (column.feature_kind or column.kind) if column.role is Role.FEATURE else column.role
    chips = [element("span", text, class_="chip") for text in (kind.replace("_", " "), column.type)]
    if strength := limits.strength_of(excess):
        chips.append(element("span", "drift", class_=f"chip {'warning' if strength == 'large' else 'note'}"))
    return card_html(
        paragraph_html(*chips),
        _figure(column),
        _split_table("", column, _measures(column)),
        _unseen(column),
        _rates(column, rates),
        _beside_former(column, former) if former else "",
        findings_html([vars(finding) for finding in findings], are_of_one_column=True) if findings else "",
        title=column.name,
        class_=str(findings[0].severity) if findings else "",
        id=f"column-{column.name}",
        data_name=column.name,
        data_place=str(place),
        data_drift=f"{excess:.4f}",
        data_missing=f"{max(part.missing_share for part in column.splits.values()):.4f}",
        data_weight=str(sum(_WEIGHTS[finding.severity] for finding in findings)),
    )


def label_section(label: ColumnProfile) -> Markup:
    """Return the section of the label: its classes or its distribution."""
    kind = element("span", f"{label.feature_kind.replace('_', ' ')} label", class_="chip")
    return section_html(
        joined(["Label ", element("code", label.name), " ", kind]),
        _classes(label) or (card_html(figure) if (figure := _figure(label)) else ""),
        name=f"column-{label.name}",
    )


def rate_rows(column: ColumnProfile) -> list[tuple[str, int, float]]:
    """Return the most frequent values or the ranges of a column: name, sampled training rows, and mean label."""
    if not column.label_rates:
        return []
    counts = column.splits[TRAIN_SPLIT].bins
    rows = zip(_bin_names(column), counts, column.label_rates, strict=True)
    return [(name, count, rate) for name, count, rate in rows if count and rate is not None]


def rate_name(label: ColumnProfile) -> str:
    """Return the heading of the mean label: a share of rows, or the mean of a number."""
    return f"mean {label.name}" if label.feature_kind in ("numeric", "number") else f"rate of {label.name}"


def percent(share: float) -> str:
    """Return a share for a table, never rounded to 0% or 100%."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.001:
        return "<0.1%"
    return ">99.9%" if share > 0.999 else f"{share:.1%}"


def _classes(label: ColumnProfile) -> Markup | str:
    """Return the figure of a label's classes, and a row per class with its share in each split."""
    shown = _token_shares(label, _SHOWN_CLASSES)
    if shown is None:
        return ""
    names, shares = shown
    rows = [(name, [percent(values[row]) for values in shares.values()]) for row, name in enumerate(names)]
    if label.splits[TRAIN_SPLIT].distinct > len(names):
        rows.append(("all others", _others(shares)))
    return cards_html([card_html(share_bars(names, shares)), _split_table(label.name, label, rows)])


def _split_table(head: str, column: ColumnProfile, rows: Iterable[_Row]) -> Markup:
    """Return a table with a column per split."""
    splits = [series_html(number, split) for number, split in enumerate(column.splits)]
    return rows_html([head, *splits], [[name, *cells] for name, cells in rows], numbers=range(1, len(splits) + 1))


def _figure(column: ColumnProfile) -> Markup | str:
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
    return [percent(max(0.0, 1 - sum(values))) for values in shares.values()]


def _measures(column: ColumnProfile) -> Iterator[_Row]:
    """Yield the rows of a card's table: one per measure, with a cell per split."""
    parts = list(column.splits.values())
    has_lengths = any(part.lengths for part in parts)
    yield "empty" if has_lengths else "missing", [percent(part.missing_share) for part in parts]
    shown = _token_shares(column, _SHOWN_TOKENS)
    if shown and len(column.bins.tokens) > _SHOWN_TOKENS:
        # As a bar, they would dwarf the others.
        yield "all others", _others(shown[1])
    if any(part.spread for part in parts):
        yield from _spread_measures(column)
    if has_lengths:
        for name, measure in (("per row, median", "median"), ("per row, most", "maximum")):
            yield name, [short_number(getattr(part.lengths, measure)) if part.lengths else DASH for part in parts]
    if column.kind is not ColumnKind.OTHER:
        is_sample = any(part.distinct_estimate != part.distinct for part in parts)
        name, sign = ("distinct (est.)", "~") if is_sample else ("distinct", "")
        yield name, [f"{sign}{short_number(part.distinct_estimate)}" for part in parts]
    if any(part.out_of_vocabulary_share is not None for part in parts):
        shares = [part.out_of_vocabulary_share for part in parts]
        yield "out of vocabulary", [DASH if share is None else percent(share) for share in shares]
    elif column.kind in (ColumnKind.TOKEN, ColumnKind.TOKENS):
        splits = column.splits.items()
        yield (
            "not in training",
            [DASH if name == TRAIN_SPLIT else percent(part.unseen_share) for name, part in splits],
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
            yield name, [measure(spread) if spread else DASH for spread in spreads]


def _unseen(column: ColumnProfile) -> Markup | str:
    """Return the values that the training rows lack, by split."""
    brought = []
    for split, part in column.splits.items():
        values = [element("code", of.value) + f" {percent(of.count / part.values)}" for of in part.unseen]
        if values:
            brought.append(element("b", split) + " " + joined(values, ", "))
    return remark_html("New in ", joined(brought, "; ")) if brought else ""


def _rates(column: ColumnProfile, heading: str) -> Markup | str:
    rows = [(name, f"{count:,}", short_number(rate)) for name, count, rate in rate_rows(column)]
    table = rows_html(("training rows", "sampled", heading), rows, numbers=(1, 2)) if rows else ""
    return details_html(f"{heading} by value", table) if rows else ""


def _beside_former(column: ColumnProfile, former: ColumnProfile) -> Markup | str:
    """Return a figure of the training rows and those of the former dataset, in the bins for drift."""
    if former.bins.is_empty:
        return ""
    counted = {"now": column.splits[TRAIN_SPLIT].reference_bins, "former": former.splits[TRAIN_SPLIT].bins}
    shares = {name: _shares(counts) for name, counts in counted.items()}
    return details_html(
        "compare with the former dataset",
        remark_html("Training rows ", series_html(0, "now"), series_html(_FORMER_COLOUR, "then")),
        share_bars(_bin_names(former), shares, colours=(0, _FORMER_COLOUR)),
    )


def _bin_names(column: ColumnProfile) -> list[str]:
    text = _value_text(column)
    edges = [text(edge) for edge in column.bins.edges]
    between = [f"above {low} to {high}" for low, high in pairwise(edges)]
    names = [f"up to {edges[0]}", *between, f"above {edges[-1]}"] if edges else [*column.bins.tokens, "all others"]
    return [*names, "missing"]


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
