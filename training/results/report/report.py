"""``report.html``: a run on one self-contained page to share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from mirrorspark.plots.html import figure_html, table_html
from mirrorspark.storage.atomic_file import write_atomically
from mirrorspark.storage.credentials import clean
from mirrorspark.training.recipe import as_yaml
from mirrorspark.training.records.run_history import headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mirrorspark.training.results.evaluation.explain import Explanation

REPORT_FILE = "report.html"

# Of these a smaller value is better; of a bias, one nearer to 0; of all others, a larger one.
_ERRORS = ("log_loss", "brier", "rmse", "mae", "mse", "loss", "deviance", "pinball", "interval_width")
_BIAS = "bias"
# They describe the rows or the recommended candidates, or are right at a value that the quantiles say.
_WITHOUT_VERDICT = ("base_rate", "interval_coverage", "coverage", "mean_popularity", "novelty")

_TITLES = {
    "roc": "ROC",
    "precision_recall": "Precision and recall",
    "score_histogram": "Scores",
    "recall_at_k": "Recall at k",
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
    return _template().render(
        facts=facts,
        sentence=verdict_sentence(facts.metrics, facts.baseline),
        metrics=Markup(table_html(metrics_table(facts.metrics, facts.baseline), index=True)),  # noqa: S704 - escaped
        figures=[(title_of(name), _figure(figure, name)) for name, figure in facts.figures.items()],
        shares={name: 100 * seconds / total for name, seconds in facts.seconds.items()} if total else {},
        total=total,
        settings=as_yaml(clean(dict(facts.settings), names=False)) if facts.settings else "",
        importance=[(title_of(name), _figure(figure, name)) for name, figure in explanation.figures.items()]
        if explanation
        else [],
        slices=Markup(table_html(explanation.slices.head(15))) if explanation else "",  # noqa: S704 - escaped
        worst=Markup(table_html(explanation.worst)) if explanation else "",  # noqa: S704 - escaped
    )


def metrics_table(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> Any:
    """Return the metrics as a pandas table: a row per metric, a column per split, and one for the baseline."""
    import pandas as pd

    columns: dict[str, Mapping[str, float]] = {split: metrics[split] for split in metrics}
    if baseline:
        columns[str(baseline["name"])] = baseline["metrics"]
    table = pd.DataFrame(columns)
    first = [name for name in headline(metrics.get("test", {})) if name in table.index]
    return table.reindex([*first, *(name for name in table.index if name not in first)])


def verdict_sentence(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> str:
    """Return in a sentence or two whether the model is better than its baseline on the test rows."""
    test, other = metrics.get("test", {}), baseline.get("metrics", {})
    compared = [name for name in headline(test) if name in test and name in other]
    if not compared:
        named = [f"{in_words(name)} {test[name]:.4g}" for name in headline(test) if name in test]
        return f"On the test rows: {', '.join(named)}. It was compared with nothing." if named else ""
    rival = in_words(str(baseline["name"]))
    cells = {name: f"{in_words(name)} ({test[name]:.4g} against {other[name]:.4g})" for name in compared}
    better = [cells[name] for name in compared if is_better(name, test[name], other[name])]
    worse = [cells[name] for name in compared if is_better(name, other[name], test[name])]
    if not better and not worse:
        return f"The model is as good as {rival} on the test rows: {_listed(list(cells.values()))}."
    if not worse:
        return f"The model is better than {rival} on the test rows, in {_listed(better)}."
    if not better:
        return f"{rival.capitalize()} is better than the model on the test rows, in {_listed(worse)}: consider it."
    return f"The model is better than {rival} on the test rows in {_listed(better)}, but worse in {_listed(worse)}."


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether the value of a metric is better than another one; some have no better value."""
    name = metric.removeprefix("val_")
    if name in _WITHOUT_VERDICT:
        return False
    if name == _BIAS:
        return abs(value) < abs(other)
    return value < other if name.startswith(_ERRORS) else value > other


def in_words(name: str) -> str:
    """Return the name of a metric or baseline as a reader knows it."""
    known = {"auc": "AUC", "pr_auc": "PR AUC", "r2": "R²", "rmse": "RMSE", "mae": "MAE"}
    return known.get(name, name.replace("_", " ").replace("hist gradient", "gradient"))


def title_of(figure: str) -> str:
    """Return the heading of a figure."""
    return _TITLES.get(figure, figure.replace("_", " ").capitalize())


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _figure(figure: "Figure", name: str) -> Markup:
    return Markup(figure_html(figure, title_of(name)))  # noqa: S704 - the name is escaped there


@cache
def _template() -> Template:
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
