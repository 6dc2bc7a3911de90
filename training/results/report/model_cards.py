"""The card of a registered model: its description on MLflow's page of a version, in Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.training.results.report.report import REPORT_FILE, in_words, metrics_table, verdict_sentences

# MLflow's limit for the description of a version.
_CHARACTERS = 5000
_COLUMNS = 30


def model_card(
    model: str,
    architecture: str,
    run: str,
    spec: FeatureSpec,
    dataset: str,
    rows: Mapping[str, int],
    metrics: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Any],
) -> str:
    """Return the card.

    Args:
        model: URI of the registered version.
        architecture: Name of the architecture.
        run: Name of the training's run folder.
        spec: The features and the label.
        dataset: Name of the dataset.
        rows: Rows per split.
        metrics: Metrics by split.
        baseline: Name of the baseline, or of the base rate, and its test metrics; empty without one.
    """
    columns = list(dict.fromkeys(column for feature in spec.query_features for column in feature.columns))
    amounts = [f"{count:,} {split}" for split, count in rows.items()]
    keys = spec.keys[0] if len(spec.keys) == 1 else list(spec.keys)
    parts = [
        f"Predicts `{spec.label.name}` ({in_words(spec.label.kind)}) from {len(columns)} columns: {_names(columns)}. "
        f"Its prediction is: {_literal(spec.label.prediction)}.",
        *verdict_sentences(metrics, baseline),
        _table(metrics, baseline),
        f"Data: {', '.join(amounts)} rows of `{dataset}`. Architecture: `{architecture}`. Run: `{run}`; its artifact "
        f"`{REPORT_FILE}` has the plots.",
        "To score a table:",
        f'```python\nimport mirrorspark as ms\n\nscores = ms.score(table, "{model}", keys={keys!r})\n```',
        "In a process without Mirrorspark:",
        f'```python\nimport mlflow\n\nscores = mlflow.pyfunc.load_model("{model}").predict(rows)\n```',
    ]
    return "\n\n".join(part for part in parts if part)[:_CHARACTERS]


def _literal(text: str) -> str:
    """Return a text with values of the table so that Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|$~#])", r"\\\1", " ".join(text.split()))


def _names(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _COLUMNS} more" if len(columns) > _COLUMNS else ""
    return ", ".join(f"`{column}`" for column in columns[:_COLUMNS]) + more


def _table(metrics: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Any]) -> str:
    table = metrics_table(metrics, baseline)
    if table.empty:
        return ""
    lines = [_row("", map(in_words, map(str, table.columns))), _row("---", ["---"] * table.shape[1])]
    for name, values in table.astype(object).where(table.notna(), None).iterrows():
        lines.append(_row(in_words(str(name)), ("" if value is None else f"{value:.4f}" for value in values)))
    return "\n".join(lines)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join((name, *cells))} |"
