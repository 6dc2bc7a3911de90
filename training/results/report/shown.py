"""Trained models as notebooks show them."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pandas as pd

from mirrorspark.evaluation import is_better
from mirrorspark.pages import (
    details_html,
    figure_html,
    heading_html,
    panel_html,
    paragraph_html,
    remark_html,
    table_html,
)
from mirrorspark.storage import without_credentials
from mirrorspark.training.results.report.baselines import each_baseline
from mirrorspark.training.results.report.leaderboard import leaderboard_html
from mirrorspark.training.results.report.report import (
    REPORT_FILE,
    best_first,
    metrics_table,
    title_of,
    verdict_sentences,
)
from mirrorspark.training.run_records import run_history

if TYPE_CHECKING:
    from mirrorspark.training.entry_points import Launched
    from mirrorspark.training.results.trained import Trained

_RESULT_CHARACTERS = 300
_BASELINES_IN_TEXT = 2
_MOST_METRICS = 10


class PagePath(type(Path())):  # type: ignore[misc] # the class of this system's paths, which is known when it runs
    """The path of a page. It is any other path, and in a notebook a link."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        if not self.exists():
            return f"<code>{escape(str(self))}</code> is not there"
        # A notebook's server serves what is below the notebook's folder, and no browser opens file:// from there.
        below = Path.cwd()
        address = quote(str(self.relative_to(below))) if self.is_relative_to(below) else self.absolute().as_uri()
        return f'<a href="{escape(address)}" target="_blank">{escape(str(self))}</a>'


def report_of(run_folder: Path) -> PagePath:
    """Return the path of a run's report."""
    return PagePath(run_folder / REPORT_FILE)


def trained_text(trained: "Trained", prediction: str = "") -> str:
    """Return a model in ten lines at most: its prediction in words, the verdict on it, metrics, its run's places."""
    verdict = trained.verdict
    title = f"{trained.version_uri}: {prediction}" if prediction else trained.version_uri
    sentences = verdict_sentences(verdict.metrics, verdict.compared)[: 1 if trained.chosen else _BASELINES_IN_TEXT]
    if trained.withheld:
        sentences.append(f"{trained.withheld}.")
    lines = [*_lines(trained)]
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *sentences, *(f"{name:<{width}}  {text}" for name, text in lines)])


def _lines(trained: "Trained") -> Iterator[tuple[str, str]]:
    """Yield the name and content of each line below the verdict."""
    metrics, places = trained.verdict.metrics, ("run folder", without_credentials(str(trained.run_folder)))
    if trained.chosen:
        yield "registered", trained.chosen
    if trained.decisions:
        yield "decisions", trained.decisions
    if trained.rows:
        yield "rows", ", ".join(f"{count:,} {split}" for split, count in trained.rows.items())
    names = run_history.headline(metrics.get("test", {}))
    compared = best_first(metrics, each_baseline(trained.verdict.baseline))
    baselines = [(str(entry["name"]), entry["metrics"]) for entry in compared]
    for title, values in [("test", metrics.get("test", {})), *baselines[:_BASELINES_IN_TEXT]]:
        if shown := [f"{name} {values[name]:.4f}" for name in names if name in values]:
            yield title, ", ".join(shown)
    if more := [name for name, _ in baselines[_BASELINES_IN_TEXT:]]:
        yield "compared", f"with {', '.join(more)}, too"
    yield places
    if (report := report_of(trained.run_folder)).is_file():
        yield "report", without_credentials(str(report))


def trained_html(trained: "Trained", prediction: str = "") -> str:
    """Return a panel on a model: its prediction in words, the verdict on it, metrics, plots, and its run's places."""
    verdict = trained.verdict
    report = report_of(trained.run_folder)
    places = [f"MLflow run {trained.run_id}", f"run folder {trained.run_folder}"]
    return panel_html(
        heading_html(trained.version_uri),
        paragraph_html(f"{prediction[:1].upper()}{prediction[1:]}.") if prediction else "",
        *map(paragraph_html, verdict_sentences(verdict.metrics, verdict.compared)),
        paragraph_html(f"{trained.withheld}.") if trained.withheld else "",
        paragraph_html(f"Registered: {trained.chosen}.") if trained.chosen else "",
        paragraph_html(f"Calibration: {trained.calibration}.") if trained.calibration else "",
        paragraph_html(f"Decisions: {trained.decisions}.") if trained.decisions else "",
        *_metrics_html(trained),
        leaderboard_html(trained.leaderboard),
        *(
            details_html(title_of(name), figure_html(figure, title_of(name)))
            for name, figure in verdict.figures.items()
        ),
        *(remark_html(without_credentials(place)) for place in places),
        f"<p>Report: {report._repr_html_()}</p>" if report.is_file() else "",
        f'<p><a href="{escape(trained.run_page)}">The run in MLflow</a></p>' if trained.run_page else "",
    )


def _metrics_html(trained: "Trained") -> Iterator[str]:
    """Yield the most informative metrics of the best baselines, and all behind a summary if there are more."""
    verdict = trained.verdict
    table = metrics_table(verdict.metrics, verdict.baseline)
    others = [str(entry["name"]) for entry in best_first(verdict.metrics, each_baseline(verdict.baseline))]
    few = table.drop(columns=others[_BASELINES_IN_TEXT:]).head(_MOST_METRICS)
    yield table_html(few, index=True)
    if few.shape != table.shape:
        models = f" of {len(others) + 1} models" if others[_BASELINES_IN_TEXT:] else ""
        yield details_html(f"all {len(table)} metrics{models}", table_html(table, index=True))


def launched_html(launched: "Launched") -> str:
    """Return a panel on a training function: its result, and the places of its run."""
    epochs = sum(attempt.epochs or 0 for attempt in launched.attempts[-1:])
    tries = f", {len(launched.attempts)} attempts" if len(launched.attempts) > 1 else ""
    places = (f"MLflow run {launched.run_id}", f"run folder {launched.run_folder}")
    returned = launched.model or textwrap.shorten(repr(launched.result), _RESULT_CHARACTERS)
    return panel_html(
        heading_html(launched.model or launched.run_folder.name),
        paragraph_html(f"{epochs} epochs{tries}; returned {returned}"),
        *(remark_html(without_credentials(place)) for place in places),
    )


class RunComparison(pd.DataFrame):
    """The test metrics of two models side by side, and which is better; a table of pandas like any other.

    The column ``verdict`` is on the first model, next to the second.
    """

    @classmethod
    def of(
        cls,
        names: tuple[str, str],
        metrics: tuple[pd.Series, pd.Series],
        intervals: Mapping[str, Mapping[str, float]],
    ) -> "RunComparison":
        """Build the table.

        Args:
            names: The two models.
            metrics: The test metrics of each by name; the rows are those of the first.
            intervals: By metric the ``low`` and ``high`` end of the interval of the difference; not of every metric.
        """
        table = cls(dict(zip(names, metrics, strict=True)), index=metrics[0].index)
        table["difference"] = table[names[0]] - table[names[1]]
        for column, end in (("from", "low"), ("to", "high")):
            table[column] = [intervals.get(str(metric), {}).get(end, math.nan) for metric in table.index]
        table["verdict"] = [
            _verdict(str(metric), *row) for metric, row in zip(table.index, table.to_numpy().tolist(), strict=True)
        ]
        table["better"] = table["verdict"].map(dict(zip(_WORDS, names, strict=True))).fillna("")
        return table

    def _repr_html_(self) -> str:
        # The sentences name the better one.
        return panel_html(paragraph_html(self.in_words()), table_html(self.drop(columns="better"), index=True))

    def in_words(self) -> str:
        """Return the verdicts as a sentence or two."""
        parts = []
        for name in (str(name) for name in self.columns[:2]):
            if metrics := self.index[self["better"] == name].tolist():
                parts.append(f"{name} is significantly better in {', '.join(metrics)}.")
        if unclear := self.index[self["verdict"] == _UNCLEAR].tolist():
            parts.append(f"There is no clear difference in {', '.join(unclear)}.")
        return " ".join(parts) or "No metric of the two has an interval."


_WORDS = ("significantly better", "significantly worse")
_UNCLEAR = "no clear difference"


def _verdict(metric: str, own: float, other: float, difference: float, low: float, high: float) -> str:
    """Return the verdict on the first of two models; empty for a metric without an interval."""
    if math.isnan(low) or math.isnan(difference):
        return ""
    if low <= 0 <= high:
        return _UNCLEAR
    return _WORDS[0] if is_better(metric, own, other) else _WORDS[1]
