"""``report.html``: a run on one self-contained page to share."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mirrorspark.data_pipelines.quality import DatasetProfile, rate_rows
from mirrorspark.evaluation import SEGMENTS, bootstrap, is_better
from mirrorspark.pages import (
    Cell,
    card_html,
    cards_html,
    details_html,
    element,
    facts_html,
    figure_html,
    findings_html,
    in_digits,
    page_html,
    remark_html,
    rows_html,
    section_html,
    short_number,
    table_html,
    verdict_html,
)
from mirrorspark.pages.figures import PANEL_WIDTH_INCHES
from mirrorspark.storage import atomic_file, clean
from mirrorspark.training.configuration import as_yaml
from mirrorspark.training.results.report import baselines
from mirrorspark.training.results.report.baselines import each_baseline
from mirrorspark.training.results.report.cost import Cost
from mirrorspark.training.results.report.leaderboard import Leaderboard, leaderboard_html
from mirrorspark.training.run_records import run_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mirrorspark.training.results.evaluation import Explanation

REPORT_FILE = "report.html"

_SHOWN_RATES = 9
_SHOWN_SLICES = 15
_MOST_IN_SENTENCES = 3

_TITLES = {
    "roc": "ROC",
    "precision_recall": "Precision and recall",
    "score_histogram": "Scores",
    "recall_at_k": "Recall at k",
    "classes": "Precision and recall by class",
    "residuals": "Errors by prediction",
}


@dataclass(frozen=True)
class ReportFacts:
    """Content of the page.

    Attributes:
        title: The model and its version.
        metrics: Metrics by split.
        baseline: Name of the baseline and its test metrics; empty without one.
        figures: Plots by name.
        rows: Rows per split.
        findings: Findings of validation about the data: ``severity``, ``column``, ``sentence``.
        seconds: Seconds per stage.
        cost: Cost of the stages.
        rates: By column, the label's mean for its values: name, sampled training rows and mean each; the columns with
            the largest differences first.
        rate_name: Heading of that mean.
        facts: Other facts in words, by name.
        settings: The configuration.
        explanation: The features' influence on the predictions, once it has been measured.
        base_rate: The same as ``baseline``, where there is none.
        withheld: The reason why the version has no alias, if it has none.
        leaderboard: The models that were compared, the best one first.
    """

    title: str
    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Any]
    figures: "Mapping[str, Figure]" = field(repr=False)
    rows: Mapping[str, int]
    findings: Sequence[Mapping[str, str]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: Cost | None = None
    rates: Sequence[tuple[str, Sequence[tuple[str, int, float]]]] = ()
    rate_name: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    explanation: "Explanation | None" = None
    base_rate: Mapping[str, Any] = field(default_factory=dict)
    withheld: str | None = None
    leaderboard: Leaderboard = ()


def write_report(facts: ReportFacts, path: Path) -> str:
    """Write the page to ``path`` and return it."""
    page = report_page(facts)
    atomic_file.write_atomically(path, page)
    return page


def report_page(facts: ReportFacts) -> str:
    """Return the page as HTML."""
    blocks = [
        *map(verdict_html, verdict_sentences(facts.metrics, facts.baseline or facts.base_rate)),
        *([verdict_html(facts.withheld)] if facts.withheld else []),
        cards_html(_overview(facts)),
        section_html("On the test rows", cards_html(_figure_cards(facts.figures))) if facts.figures else "",
        _explained(facts.explanation) if facts.explanation is not None else "",
        section_html("Findings in the data", findings_html(facts.findings)) if facts.findings else "",
        _rates(facts) if facts.rates else "",
        _times(facts) if sum(facts.seconds.values()) else "",
    ]
    if facts.settings:
        settings = element("pre", as_yaml(clean(dict(facts.settings), names=False)))
        blocks.append(section_html("Settings", card_html(details_html("All settings of the run", settings))))
    return page_html("Training run", facts.title, blocks)


def _overview(facts: ReportFacts) -> Iterator[Markup]:
    """Yield the metrics, their differences to those of each baseline, and the facts of the run."""
    yield card_html(table_html(metrics_table(facts.metrics, facts.baseline), index=True), title="Metrics")
    compared = [(entry, comparison_table(facts.metrics, entry)) for entry in each_baseline(facts.baseline)]
    compared = [(entry, table) for entry, table in compared if len(table)]
    for number, (entry, table) in enumerate(compared, 1):
        title = f"Model minus {in_words(str(entry['name']))}, with its 95% interval"
        # Runs of earlier versions do not say it.
        drawn = facts.baseline.get("resampled", bootstrap.TEST_ROWS)
        whole = "" if drawn == bootstrap.TEST_ROWS else ", each with all of its test rows"
        remark = (
            f"Change of the difference when other {drawn} are drawn{whole}. The effect of another seed is not in it."
        )
        yield card_html(
            table_html(table, index=True),
            remark_html(remark) if number == len(compared) else "",
            title=title,
        )
    if board := leaderboard_html(facts.leaderboard):
        yield card_html(board, title="Leaderboard", wide=True)
    rows = {f"{split} rows": f"{count:,}" for split, count in facts.rows.items()}
    yield card_html(facts_html((rows | dict(facts.facts)).items()), title="Run", wide=bool(compared))


def _explained(explanation: "Explanation") -> Markup:
    cards = list(_figure_cards(explanation.figures))
    if len(explanation.slices):
        cards.append(
            card_html(table_html(explanation.slices.head(15)), title="Slices with the largest loss", wide=True)
        )
    cards.append(card_html(table_html(explanation.worst), title="Rows with the largest loss", wide=True))
    remark = f"Measured on {explanation.rows:,} test rows, by the {explanation.loss}."
    return section_html("What the predictions depend on", remark_html(remark), cards_html(cards))


def _rates(facts: ReportFacts) -> Markup:
    shown = facts.rates[:_SHOWN_RATES]
    more = "" if len(shown) == len(facts.rates) else "; all are in dataset.html"
    remark = (
        "In a sample of the training rows; of each column the most frequent values, or ten ranges with as many rows "
        f"each. Columns with the largest differences first{more}."
    )
    cards = [card_html(_rate_table(facts.rate_name, rows), title=column) for column, rows in shown]
    title = f"{_begun(facts.rate_name)} by value"
    return section_html(title, remark_html(remark), cards_html(cards, least=380))


def _rate_table(heading: str, rows: Sequence[tuple[str, int, float]]) -> Markup:
    rates = [rate for _, _, rate in rows]
    # A negative mean has no bar.
    largest = max(rates) if min(rates) >= 0 and max(rates) > 0 else None
    cells = [
        (name, f"{count:,}", Cell(short_number(rate), bar=None if largest is None else rate / largest))
        for name, count, rate in rows
    ]
    return rows_html(("value", "rows", heading), cells, numbers=(1, 2))


def _times(facts: ReportFacts) -> Markup:
    cost, total = facts.cost, sum(facts.seconds.values())
    rows = []
    # A stage may have a cost only, such as a trial's training.
    for name in dict.fromkeys([*facts.seconds, *(cost.core_seconds if cost else ())]):
        seconds = facts.seconds.get(name)
        taken = "" if seconds is None else f"{seconds:.1f} s"
        costing = [f"{cost.core_seconds.get(name, 0):,.0f} core-s"] if cost else []
        rows.append([name, taken, *costing, Cell("", bar=(seconds or 0.0) / total)])
    rows.append(["together", f"{total:.1f} s", *([f"{cost.total_core_seconds:,.0f} core-s"] if cost else []), ""])
    table = rows_html((), rows, numbers=(1, 2) if cost else (1,), name="times")
    return section_html("Where the time went", card_html(table, _cost_in_words(cost) if cost else ""))


def _cost_in_words(cost: Cost) -> Markup:
    words = [
        "Core-seconds: seconds times the cores of each attempt's workers (train), of Spark's slots (infer, convert, "
        "score) or of the driver (all else).",
        cost.gap,
    ]
    if cost.money is not None:
        words.append(f"At {cost.price_per_core_hour:g} per core and hour they cost {cost.money:.4g}.")
    return remark_html(" ".join(filter(None, words)))


def metrics_table(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> Any:
    """Return the metrics as a pandas table: a row per metric, a column per split, and one for each baseline.

    The most informative metrics come first; of lists those of the longest ones, and segments last.
    """
    import pandas as pd

    columns: dict[str, Mapping[str, float]] = {split: metrics[split] for split in metrics}
    for entry in each_baseline(baseline):
        columns[str(entry["name"])] = entry["metrics"]
    table = pd.DataFrame(columns)
    first = [name for name in run_history.headline(metrics.get("test", {})) if name in table.index]
    rest = [name for name in table.index if name not in first]
    if first and (longest := first[0].removeprefix("recall")) != first[0]:
        rest.sort(key=lambda name: (name.startswith(SEGMENTS), "_at_" in name and not name.endswith(longest)))
    return table.reindex([*first, *rest])


def verdict_sentences(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> list[str]:
    """Return for each baseline, in a sentence or two, whether the model is better than it on the test rows.

    Of many baselines the best one comes first, and those that the model is better than in all metrics are counted.
    """
    entries = each_baseline(baseline)
    told = entries or [{}]
    if len(entries) > _MOST_IN_SENTENCES:
        best, *others = best_first(metrics, entries)
        told = [best, *(entry for entry in others if not _is_beaten(metrics, entry) or _sample(entry))]
    sentences = [text for entry in told if (text := _sentence(metrics, entry) + _sample(entry))]
    if len(told) >= len(entries):
        return sentences
    names = [in_words(name) for name in run_history.headline(metrics["test"]) if name in metrics["test"]]
    return [*sentences, f"The model is better than {len(entries) - len(told)} others in {_listed(names)}, too."]


def best_first(
    metrics: Mapping[str, Mapping[str, float]], entries: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return baselines by the first metric of the test rows' headline, the best one first."""
    first = next(iter(run_history.headline(metrics.get("test", {}))), "")
    sign = 1 if is_better(first, 1, 0) else -1
    return sorted(entries, key=lambda entry: sign * entry["metrics"].get(first, -math.inf * sign), reverse=True)


def _is_beaten(metrics: Mapping[str, Mapping[str, float]], entry: Mapping[str, Any]) -> bool:
    """Return whether the model is better in all metrics of the headline that the baseline has, one at least."""
    return set(_verdicts(metrics, entry).values()) == {1}


def _verdicts(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> dict[str, int]:
    """Return the verdict of :func:`_verdict` on each metric of the headline that both have on the test rows."""
    test, other, intervals = metrics.get("test", {}), baseline.get("metrics", {}), baseline.get("intervals", {})
    compared = [name for name in run_history.headline(test) if name in test and name in other]
    return {name: _verdict(name, test[name], other[name], intervals.get(name)) for name in compared}


def _sample(baseline: Mapping[str, Any]) -> str:
    """Return the number of rows that a baseline learnt from, if not from all, and the parts that its fit left out."""
    left_out = f" {baseline['left_out']}." if baseline.get("left_out") else ""
    if not (part := baseline.get("learnt_from")):
        return left_out
    named = _begun(in_words(str(baseline["name"])))
    return f" {named} learnt from the first {part['rows']:,} of the {part['of']:,} training rows.{left_out}"


def _sentence(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> str:
    test, other = metrics.get("test", {}), baseline.get("metrics", {})
    verdicts = _verdicts(metrics, baseline)
    if not verdicts:
        named = [f"{in_words(name)} {in_digits(test[name])}" for name in run_history.headline(test) if name in test]
        return f"On the test rows: {', '.join(named)}. It was compared with nothing." if named else ""
    label = in_words(str(baseline["name"]))
    intervals = baseline.get("intervals", {})
    cells = {name: _compared(name, test[name], other[name], intervals.get(name)) for name in verdicts}
    better, worse, equal = ([cells[name] for name in verdicts if verdicts[name] == of] for of in (1, -1, 0))
    noise = "" if not equal or not intervals else f" There is no difference beyond the noise in {_listed(equal)}."
    if not better and not worse:
        if noise:
            return f"The model and {label} do not differ beyond the noise on the test rows: {_listed(equal)}."
        return f"The model is as good as {label} on the test rows: {_listed(equal)}."
    if not worse:
        return f"The model is better than {label} on the test rows, in {_listed(better)}.{noise}"
    if not better:
        return f"{_begun(label)} is better than the model on the test rows, in {_listed(worse)}: consider it.{noise}"
    sentence = f"The model is better than {label} on the test rows in {_listed(better)}, but worse in {_listed(worse)}."
    return f"{sentence}{noise}"


def better_baseline(
    metrics: Mapping[str, Mapping[str, float]], compared: Mapping[str, Any], monitor: str
) -> str | None:
    """Return in words what is better than the model on the test rows beyond the noise, and in which metric, or None.

    Args:
        metrics: Metrics by split.
        compared: The baselines, or the base rate.
        monitor: The monitored metric decides, or where only the training has it, the first one of the verdict.
    """
    test = metrics.get("test", {})
    for entry in each_baseline(compared):
        intervals, other = entry.get("intervals", {}), entry.get("metrics", {})
        names = (monitor.removeprefix("val_"), *run_history.headline(test))
        name = next((name for name in names if name in intervals and name in test and name in other), None)
        if name is not None and _verdict(name, test[name], other[name], intervals[name]) < 0:
            return f"{in_words(str(entry['name']))} is better in {in_words(name)}"
    return None


def comparison_table(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> Any:
    """Return the test metrics that have an interval as a pandas table: model minus baseline, its interval, verdict."""
    import pandas as pd

    test, other = metrics.get("test", {}), baseline.get("metrics", {})
    words = {1: "better", -1: "worse", 0: "no difference beyond the noise"}
    rows = {
        name: {
            "difference": interval["difference"],
            "from": interval["low"],
            "to": interval["high"],
            "the model is": words[_verdict(name, test[name], other[name], interval)],
        }
        for name, interval in baseline.get("intervals", {}).items()
        if name in test and name in other
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _compared(name: str, value: float, other: float, interval: Mapping[str, float] | None) -> str:
    """Return a metric in words: both values or, where the interval is known, how much better the better one is."""
    values = f"{in_digits(value)} against {in_digits(other)}"
    if interval is None:
        return f"{in_words(name)} ({values})"
    difference, low, high = (interval[end] for end in ("difference", "low", "high"))
    verdict = _verdict(name, value, other, interval)
    if verdict == 0:
        signed = [in_digits(end, 2, sign="+") for end in (difference, low, high)]
        return f"{in_words(name)} ({values}; difference {signed[0]}, 95% interval {signed[1]} to {signed[2]})"
    low, high = sorted((abs(low), abs(high)))
    by, least, most = (in_digits(end, 2) for end in (abs(difference), low, high))
    return f"{in_words(name)} by {by} (95% interval {least} to {most}; {values})"


def _verdict(name: str, value: float, other: float, interval: Mapping[str, float] | None) -> int:
    """Return 1 where the model is better, -1 where the baseline is, 0 for no difference beyond the noise."""
    if interval is not None and interval["low"] <= 0 <= interval["high"]:
        return 0
    return int(is_better(name, value, other)) - int(is_better(name, other, value))


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def in_words(name: str) -> str:
    """Return the name of a metric or baseline as a reader knows it."""
    known = {"auc": "AUC", "pr_auc": "PR AUC", "r2": "R²", "rmse": "RMSE", "mae": "MAE"}
    return known.get(name) or baselines.in_words(name)


def title_of(figure: str) -> str:
    """Return the heading of a figure."""
    return _TITLES.get(figure, figure.replace("_", " ").capitalize())


def rates_of(profile: DatasetProfile) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Return the mean label of each column's values; the columns whose values differ the most, by rows, first."""
    columns = [(column.name, rate_rows(column)) for column in profile.columns]
    return sorted(((name, rows) for name, rows in columns if len(rows) > 1), key=lambda of: -_deviation(of[1]))


def _deviation(rows: Sequence[tuple[str, int, float]]) -> float:
    total = sum(count for _, count, _ in rows)
    mean = sum(count * rate for _, count, rate in rows) / total
    return sum(count * (rate - mean) ** 2 for _, count, rate in rows) / total


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _figure_cards(figures: "Mapping[str, Figure]") -> Iterator[Markup]:
    """Yield a card for each figure; those of several panels side by side are wide."""
    for name, figure in figures.items():
        title = title_of(name)
        is_wide = figure.get_figwidth() > 1.2 * PANEL_WIDTH_INCHES
        yield card_html(figure_html(figure, title), title=title, wide=is_wide)
