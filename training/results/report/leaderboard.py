"""The models of a training side by side: the registered one, and those that it was chosen from or compared with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from mirrorspark.evaluation import is_better
from mirrorspark.models import catalog
from mirrorspark.pages import Cell, fixed_number, rows_html
from mirrorspark.training.configuration import BOOSTING
from mirrorspark.training.results.report.baselines import each_baseline, in_words
from mirrorspark.training.run_records import run_history

if TYPE_CHECKING:
    from mirrorspark.training.results.evaluation import Choice, evaluate_run

Leaderboard = Sequence[Mapping[str, Any]]
"""A row per model, as :func:`leaderboard_rows` describes it."""


def leaderboard_rows(
    verdict: "evaluate_run.BaselineComparison",
    choice: "Choice | None",
    *,
    name: str,
    monitor: str,
    seconds: float | None,
) -> Leaderboard:
    """Return a row per model, the best one on the validation rows first, and those that have only test rows last.

    A row has the ``model``, the metric on both splits (``validation_auc``, ``test_auc``), the ``difference`` on the
    test rows of the registered model to this one with its 95% interval (``low``, ``high``), the ``share`` of each part
    of a blend, the ``seconds`` of its training, whether it is ``registered``, and with monotone constraints, whether it
    holds them (``monotone``). Unknown values are None.

    Args:
        verdict: Metrics of the registered model and of those it is compared with.
        choice: The choice of the registered model, if there was one.
        name: The model that was trained, where there was no choice.
        monitor: The metric that chose the best epoch; if it is not one of the test rows, the first of the run's
            headline is shown.
        seconds: Time of the training.
    """
    of_test, of_validation = verdict.metrics.get("test", {}), verdict.metrics.get("validation", {})
    metric = choice.metric if choice else monitor.removeprefix("val_")
    metric = metric if metric in of_test else next(iter(run_history.headline(of_test)), metric)
    trained = name if choice is None else catalog.NETWORK
    registered = name if choice is None else choice.registered
    values = {registered: of_validation.get(metric)} | dict(choice.values if choice else {})
    compared = {str(entry["name"]): entry for entry in each_baseline(verdict.baseline)}
    times = {known: entry.get("seconds") for known, entry in compared.items()} | {trained: seconds}
    shares: Mapping[str, float] = {}
    if choice is not None:
        times |= choice.seconds
        of_parts = [times.get(part) for part in choice.weights]
        times[catalog.BLEND] = None if None in of_parts else sum(filter(None, of_parts))
        shares = choice.weights if registered == catalog.BLEND else {}

    def row(model: str) -> dict[str, Any]:
        entry = compared.get(model, {})
        interval = entry.get("intervals", {}).get(metric, {})
        return {
            "model": model,
            f"validation_{metric}": values.get(model),
            f"test_{metric}": (of_test if model == registered else entry.get("metrics", {})).get(metric),
            "difference": interval.get("difference"),
            "low": interval.get("low"),
            "high": interval.get("high"),
            "share": shares.get(model),
            "seconds": times.get(model),
            "registered": model == registered,
            "monotone": holds_constraints(model),
        }

    def holds_constraints(model: str) -> bool | None:
        if choice is None or not choice.monotone:
            return None
        # All gradient boosting does, and a blend, which then has no other parts.
        return model.startswith((*BOOSTING, catalog.BLEND))

    def place(model: str) -> tuple[bool, float]:
        value = values.get(model)
        return value is None, 0.0 if value is None else -value if is_better(metric, 1, 0) else value

    return [row(model) for model in sorted(dict.fromkeys([*values, *compared]), key=place)]


def leaderboard_table(rows: Leaderboard) -> pd.DataFrame:
    """Return the rows as a table, without the columns that no model has."""
    return pd.DataFrame(rows).dropna(axis=1, how="all").set_index("model") if rows else pd.DataFrame()


def leaderboard_html(rows: Leaderboard) -> Markup:
    """Return the rows as a table of a page; empty if there is only one model."""
    if len(rows) < 2:
        return Markup()
    (metric,) = (name.removeprefix("test_") for name in rows[0] if name.startswith("test_"))
    head = ("model", f"validation {metric}", f"test {metric}", "difference", "share", "seconds")
    return rows_html(head, [_cells(row, metric) for row in rows], numbers=range(1, len(head)))


def _cells(row: Mapping[str, Any], metric: str) -> list[Cell | str]:
    """Return the cells of a row; the interval of a difference is below it."""
    low, high, difference = row["low"], row["high"], row["difference"]
    interval = "" if low is None else f"{fixed_number(low, sign='+')} to {fixed_number(high, sign='+')}"
    values = [row[f"{split}_{metric}"] for split in ("validation", "test")]
    marks = [name for name in ("registered", "monotone") if row[name]]
    return [
        Cell(in_words(row["model"]).removeprefix("the "), "name", below=marks),
        *("" if value is None else fixed_number(value) for value in values),
        "" if difference is None else Cell(fixed_number(difference, sign="+"), below=[interval] if interval else ()),
        "" if row["share"] is None else f"{row['share']:.0%}",
        "" if row["seconds"] is None else f"{row['seconds']:,.1f}",
    ]
