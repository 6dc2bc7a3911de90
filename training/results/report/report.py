"""``report.html``: a run on one self-contained page to share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template
from markupsafe import Markup

from mirrorspark.data_pipelines.quality.dataset_page import rate_rows
from mirrorspark.data_pipelines.quality.profile import DatasetProfile
from mirrorspark.evaluation.bootstrap import TEST_ROWS
from mirrorspark.evaluation.metrics import is_better
from mirrorspark.pages.blocks import figure_html, table_html
from mirrorspark.pages.figures.style import PANEL_WIDTH_INCHES
from mirrorspark.pages.numbers import in_digits, short_number
from mirrorspark.pages.page import page_template
from mirrorspark.storage.atomic_file import write_atomically
from mirrorspark.storage.credentials import clean
from mirrorspark.training.configuration.recipe import as_yaml
from mirrorspark.training.results.report import rivals
from mirrorspark.training.results.report.cost import Cost
from mirrorspark.training.results.report.rivals import each_baseline
from mirrorspark.training.run_records.run_history import headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mirrorspark.training.results.evaluation.explain import Explanation

REPORT_FILE = "report.html"

_SHOWN_RATES = 9

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
    """What the page shows.

    Attributes:
        title: The model and its version.
        metrics: Metrics by split.
        baseline: Name of the baseline and its test metrics; empty without one.
        figures: Plots by name.
        rows: Rows per split.
        findings: Findings of validation about the data: ``severity``, ``column``, ``sentence``.
        seconds: Seconds per stage.
        cost: What they cost.
        rates: By column, the label's mean for its values: name, sampled training rows and mean each; the columns with
            the largest differences first.
        rate_name: Heading of that mean.
        facts: Other facts in words, by name.
        settings: The configuration.
        explanation: What the predictions depend on, once it has been measured.
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


def write_report(facts: ReportFacts, path: Path) -> str:
    """Write the page to ``path`` and return it."""
    page = report_page(facts)
    write_atomically(path, page)
    return page


def report_page(facts: ReportFacts) -> str:
    """Return the page as HTML."""
    total = sum(facts.seconds.values())
    explanation = facts.explanation
    differences = {
        in_words(str(rival["name"])): Markup(table_html(table, index=True))  # noqa: S704 - escaped
        for rival in each_baseline(facts.baseline)
        if len(table := comparison_table(facts.metrics, rival))
    }
    return _template().render(
        facts=facts,
        sentences=verdict_sentences(facts.metrics, facts.baseline),
        metrics=Markup(table_html(metrics_table(facts.metrics, facts.baseline), index=True)),  # noqa: S704 - escaped
        differences=differences,
        test_rows=TEST_ROWS,
        # Runs of earlier versions do not say it.
        resampled=facts.baseline.get("resampled", TEST_ROWS),
        figures=_cards(facts.figures),
        shares=_shares(facts, total),
        total=total,
        shown_rates=[(column, rows, _scale(rows)) for column, rows in facts.rates[:_SHOWN_RATES]],
        settings=as_yaml(clean(dict(facts.settings), names=False)) if facts.settings else "",
        importance=_cards(explanation.figures) if explanation else [],
        slices=Markup(table_html(explanation.slices.head(15))) if explanation else "",  # noqa: S704 - escaped
        worst=Markup(table_html(explanation.worst)) if explanation else "",  # noqa: S704 - escaped
    )


def _shares(facts: ReportFacts, total: float) -> dict[str, float]:
    """Return the percentage of the time by stage; 0 for one that has only a cost, such as a trial's training."""
    costing = facts.cost.core_seconds if facts.cost else {}
    stages = dict.fromkeys([*facts.seconds, *costing])
    return {name: 100 * facts.seconds.get(name, 0.0) / total for name in stages} if total else {}


def metrics_table(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> Any:
    """Return the metrics as a pandas table: a row per metric, a column per split, and one for each baseline."""
    import pandas as pd

    columns: dict[str, Mapping[str, float]] = {split: metrics[split] for split in metrics}
    for rival in each_baseline(baseline):
        columns[str(rival["name"])] = rival["metrics"]
    table = pd.DataFrame(columns)
    first = [name for name in headline(metrics.get("test", {})) if name in table.index]
    return table.reindex([*first, *(name for name in table.index if name not in first)])


def verdict_sentences(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> list[str]:
    """Return for each baseline, in a sentence or two, whether the model is better than it on the test rows."""
    sentences = (_sentence(metrics, rival) + _sample(rival) for rival in each_baseline(baseline) or [{}])
    return list(filter(None, sentences))


def _sample(baseline: Mapping[str, Any]) -> str:
    """Return from how many rows a baseline learnt that did not learn from all, as a sentence."""
    if not (part := baseline.get("learnt_from")):
        return ""
    rival = _begun(in_words(str(baseline["name"])))
    return f" {rival} learnt from the first {part['rows']:,} of the {part['of']:,} training rows."


def _sentence(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> str:
    test, other = metrics.get("test", {}), baseline.get("metrics", {})
    compared = [name for name in headline(test) if name in test and name in other]
    if not compared:
        named = [f"{in_words(name)} {in_digits(test[name])}" for name in headline(test) if name in test]
        return f"On the test rows: {', '.join(named)}. It was compared with nothing." if named else ""
    rival = in_words(str(baseline["name"]))
    intervals = baseline.get("intervals", {})
    cells = {name: _compared(name, test[name], other[name], intervals.get(name)) for name in compared}
    verdicts = {name: _verdict(name, test[name], other[name], intervals.get(name)) for name in compared}
    better, worse, equal = ([cells[name] for name in compared if verdicts[name] == of] for of in (1, -1, 0))
    noise = "" if not equal or not intervals else f" There is no difference beyond the noise in {_listed(equal)}."
    if not better and not worse:
        if noise:
            return f"The model and {rival} do not differ beyond the noise on the test rows: {_listed(equal)}."
        return f"The model is as good as {rival} on the test rows: {_listed(equal)}."
    if not worse:
        return f"The model is better than {rival} on the test rows, in {_listed(better)}.{noise}"
    if not better:
        return f"{_begun(rival)} is better than the model on the test rows, in {_listed(worse)}: consider it.{noise}"
    sentence = f"The model is better than {rival} on the test rows in {_listed(better)}, but worse in {_listed(worse)}."
    return f"{sentence}{noise}"


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
    """Return 1 where the model is better, -1 where its rival is, 0 for no difference beyond the noise."""
    if interval is not None and interval["low"] <= 0 <= interval["high"]:
        return 0
    return int(is_better(name, value, other)) - int(is_better(name, other, value))


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def in_words(name: str) -> str:
    """Return the name of a metric or baseline as a reader knows it."""
    known = {"auc": "AUC", "pr_auc": "PR AUC", "r2": "R²", "rmse": "RMSE", "mae": "MAE"}
    return known.get(name) or rivals.in_words(name)


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


def _scale(rows: Sequence[tuple[str, int, float]]) -> float:
    """Return what makes the largest mean a full bar; 0 where a mean is negative, which has no bar."""
    rates = [rate for _, _, rate in rows]
    return 100 / max(rates) if min(rates) >= 0 and max(rates) > 0 else 0.0


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _cards(figures: "Mapping[str, Figure]") -> list[tuple[str, Markup, bool]]:
    """Return title and image of each figure, and True for those of several panels side by side."""
    wide = 1.2 * PANEL_WIDTH_INCHES
    return [(title_of(name), _figure(figure, name), figure.get_figwidth() > wide) for name, figure in figures.items()]


def _figure(figure: "Figure", name: str) -> Markup:
    return Markup(figure_html(figure, title_of(name)))  # noqa: S704 - the name is escaped there


@cache
def _template() -> Template:
    return page_template(Path(__file__).with_name("report.html.jinja"), {"number": short_number})
