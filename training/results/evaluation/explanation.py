"""Explanations of a trained model's predictions, measured by changing the raw columns of held-back rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.features import (
    FeatureSpec,
    FittedFeatures,
    RaggedIds,
    embedded_columns,
    kinds,
    labels,
    raw_columns,
)
from mirrorspark.pages import drawn, figure_html, heading_html, panel_html, table_html
from mirrorspark.pages.figures import dependence_chart, importance_chart
from mirrorspark.storage import atomic_file

# The rows are held in memory on the driver, and scored once per feature and repetition.
SAMPLE_ROWS = 5000
REPEATS = 5
# The measurement after every training must be quick: two seconds with twenty features.
KEPT_ROWS_REPEATS = 2
MOST_FEATURES = 60
EXPLANATION_FILE = "explanation.json"
_DEPENDENCE_ROWS = 500
_DEPENDENCE_FEATURES = 6
_GRID_POINTS = 15
_MOST_VALUES = 10
_DEPENDENCE_CLASSES = 6
_LEAST_SLICE_ROWS = 30
_NUMBER_SLICES = 5
_WORST_ROWS = 10
_SHOWN_SLICES = 10

# No probability is 0 or 1 for certain.
_LEAST_PROBABILITY = 1e-7

Predict = Callable[[pa.Table], np.ndarray]


class ExplanationError(ClearError, ValueError):
    """Predictions that cannot be explained; the message says why."""


@dataclass(frozen=True)
class Explanation:
    """Influence of the features on the predictions, over a sample of the test rows.

    Attributes:
        importance: A row per feature, most important first: ``feature``, ``importance`` (mean increase of the loss when
            its values are shuffled among the rows) and ``deviation`` over the repetitions.
        dependence: Per feature a table of ``value`` and ``prediction``: the mean prediction when all rows have this
            value (partial dependence: Friedman, 2001); of the most important features that have single values. Of
            several classes a column of mean probabilities for each of the most probable ones, by its name.
        slices: A row per value of a categorical feature, and per fifth of the rows by a number: ``feature``, ``value``,
            ``rows``, mean ``label``, mean ``prediction``, mean ``loss``; the worst first. Of several classes, the
            commonest ``label`` and ``prediction``, and the share of ``right`` predictions.
        worst: The rows with the largest loss: keys, label, prediction (of several classes, their names), loss and raw
            columns.
        rows: Rows of the sample.
    """

    importance: pd.DataFrame
    dependence: Mapping[str, pd.DataFrame]
    slices: pd.DataFrame
    worst: pd.DataFrame
    loss: str
    rows: int

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        """The charts by name: ``importance`` and ``dependence``."""
        columns = (self.importance[name].tolist() for name in ("feature", "importance", "deviation"))
        bars = {name: (mean, deviation) for name, mean, deviation in zip(*columns, strict=True)}
        pictures = {"importance": lambda: importance_chart(bars, loss=self.loss)}
        if self.dependence:
            curves = {}
            for name, of in self.dependence.items():
                means = {str(what): list(of.iloc[:, place]) for place, what in enumerate(of) if place}
                curves[name] = (list(of.iloc[:, 0]), means)
            pictures["dependence"] = lambda: dependence_chart(curves)
        return drawn(pictures)

    def save(self, path: Path) -> None:
        """Write the explanation; values that JSON does not have become texts."""
        document = {
            "importance": _document(self.importance),
            "dependence": {name: _document(table) for name, table in self.dependence.items()},
            "slices": _document(self.slices),
            "worst": _document(self.worst),
            "loss": self.loss,
            "rows": self.rows,
        }
        atomic_file.write_atomically(path, json.dumps(document, default=_plain))

    @classmethod
    def load(cls, path: Path) -> "Explanation | None":
        """Read the file of :meth:`save`; None if there is nothing."""
        if not path.is_file():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        importance, slices, worst = (_table(document[name]) for name in ("importance", "slices", "worst"))
        curves = {name: _table(table) for name, table in document["dependence"].items()}
        return cls(importance, curves, slices, worst, document["loss"], document["rows"])

    def __str__(self) -> str:
        tables = {self._heading(): self.importance} | self._tables()
        return "\n\n".join(f"{title}:\n{table.to_string(index=False)}" for title, table in tables.items())

    def _repr_html_(self) -> str:
        parts = [heading_html(self._heading())]
        parts += [figure_html(figure, name) for name, figure in self.figures.items()]
        for title, table in self._tables().items():
            parts += [heading_html(title), table_html(table)]
        return panel_html(*parts)

    def _heading(self) -> str:
        return f"What the predictions depend on ({self.rows:,} test rows)"

    def _tables(self) -> dict[str, pd.DataFrame]:
        slices = {"Slices with the largest loss": self.slices.head(_SHOWN_SLICES)} if len(self.slices) else {}
        return slices | {"Rows with the largest loss": self.worst}


def explain(
    rows: pa.Table, features: FittedFeatures, predict: Predict, *, repeats: int = REPEATS, seed: int = 1
) -> Explanation:
    """Explain the predictions on some labelled rows.

    Args:
        rows: Raw columns, keys and label; held-back rows, some thousands.
        features: The fitted features of the model.
        predict: Returns the predictions for raw columns: ``[rows]``, or ``[rows, classes]``.
        repeats: Number of times that each feature is shuffled.
        seed: Fixes the shuffling.

    Raises:
        ExplanationError: There are no rows, or the label is of a kind without explanations.
    """
    spec = features.spec
    if spec.label.form not in _LOSSES:
        raise ExplanationError(
            f"predictions of a label of kind {spec.label.kind} cannot be explained; only those of {sorted(_LOSSES)} can"
        )
    if not rows.num_rows:
        raise ExplanationError("there are no test rows to explain the predictions on")
    loss, losses = _LOSSES[spec.label.form]
    label = _label(rows, features)
    predictions = predict(rows)
    base = losses(label, predictions)
    importance = _importance(
        rows, spec, lambda table: losses(label, predict(table)).mean() - base.mean(), repeats, seed
    )
    of_rows = _of_rows(label, predictions, features) | {"loss": base}
    return Explanation(
        importance,
        _dependence(rows, features, importance["feature"].tolist(), predict),
        _slices(rows, spec, pd.DataFrame(of_rows)),
        _worst(rows, spec, pd.DataFrame(of_rows)),
        loss,
        rows.num_rows,
    )


def explain_on_kept_rows(rows: pa.Table | None, features: FittedFeatures, predict: Predict) -> Explanation | None:
    """Return a quick explanation after a training, on the test rows that the dataset has kept.

    None without such rows, for a label of a kind without explanations, and for more than ``MOST_FEATURES`` features of
    their own columns, whose shuffling takes minutes.
    """
    spec = features.spec
    shuffled = sum(not isinstance(feature, kinds.DerivedFeature) for feature in spec.query_features)
    if rows is None or not rows.num_rows or spec.label.form not in _LOSSES or shuffled > MOST_FEATURES:
        return None
    return explain(rows, features, predict, repeats=KEPT_ROWS_REPEATS)


def _document(table: pd.DataFrame) -> dict[str, Any]:
    # A raw column may have the name of one of ours.
    return {"columns": list(table.columns), "data": [list(row) for row in table.itertuples(index=False, name=None)]}


def _table(document: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(document["data"], columns=document["columns"])


def _plain(value: Any) -> Any:
    """Return a number or a list of NumPy as Python's, and anything else as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _of_rows(label: np.ndarray, predictions: np.ndarray, features: FittedFeatures) -> dict[str, Any]:
    """Return ``label`` and ``prediction`` of every row; of several classes their names, and which are ``right``."""
    if features.spec.label.form != "multi_class":
        return {"label": _per_row(label), "prediction": _per_row(predictions)}
    names, best = np.array(features.class_names, object), predictions.argmax(axis=1)
    return {"label": names[label], "prediction": names[best], "right": label == best}


def _importance(
    rows: pa.Table, spec: FeatureSpec, increase: Callable[[pa.Table], float], repeats: int, seed: int
) -> pd.DataFrame:
    """Return the features with the increase of the loss when they are shuffled (Breiman, 2001), largest first."""
    random = np.random.default_rng(seed)
    found = []
    own = {
        name
        for feature in spec.query_features
        if not isinstance(feature, kinds.DerivedFeature)
        for name in feature.columns
    }
    for feature in spec.query_features:
        # Its columns are shuffled for their own features, too, and would count twice.
        if isinstance(feature, kinds.DerivedFeature) and own.issuperset(feature.columns):
            continue
        increases = []
        for _ in range(repeats):
            order = pa.array(random.permutation(rows.num_rows))
            shuffled = rows
            # Columns of one feature belong together.
            for name in feature.columns:
                shuffled = _with(shuffled, name, rows[name].take(order))
            increases.append(increase(shuffled))
        found.append((feature.name, float(np.mean(increases)), float(np.std(increases))))
    table = pd.DataFrame(found, columns=["feature", "importance", "deviation"])
    return table.sort_values("importance", ascending=False, ignore_index=True)


def _dependence(
    rows: pa.Table, features: FittedFeatures, ordered: Sequence[str], predict: Predict
) -> dict[str, pd.DataFrame]:
    spec, some = features.spec, rows.slice(0, _DEPENDENCE_ROWS)
    curves: dict[str, pd.DataFrame] = {}
    if spec.label.kind == "multi_label":
        return curves
    names, places = ["prediction"], np.array([0])
    if spec.label.form == "multi_class":
        places = np.sort(np.argsort(-predict(some).mean(axis=0), kind="stable")[:_DEPENDENCE_CLASSES])
        names = [features.class_names[place] for place in places]
    for name in ordered:
        columns = spec[name].columns
        if len(columns) != 1 or pa.types.is_nested(rows.schema.field(columns[0]).type):
            continue
        values = _grid(rows[columns[0]])
        if len(values) < 2:
            continue
        kind = rows.schema.field(columns[0]).type
        means = [
            predict(_with(some, columns[0], pa.array([value] * some.num_rows, kind))).mean(axis=0, dtype=np.float64)
            for value in values
        ]
        table = pd.DataFrame(np.reshape(means, (len(values), -1))[:, places], columns=names)
        table.insert(0, "value", values, allow_duplicates=True)  # a class may have that name
        curves[name] = table
        if len(curves) == _DEPENDENCE_FEATURES:
            break
    return curves


def _grid(column: pa.ChunkedArray) -> list[Any]:
    """Return values of a column: quantiles of many numbers, else the most frequent values."""
    present = column.drop_null()
    distinct = pc.value_counts(present).sort(order="descending", by="counts") if len(present) else []
    is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if is_number and len(distinct) > _GRID_POINTS:
        grid = _quantiles(present)
        if 2 * len(grid) <= _GRID_POINTS:
            # Most rows have one value, such as 0 of an amount: the others get points as well.
            commonest = distinct[0]["values"]
            grid = sorted({commonest.as_py(), *_quantiles(present.filter(pc.not_equal(present, commonest)))})
        return grid
    values = [entry["values"].as_py() for entry in distinct[:_MOST_VALUES]]
    return sorted(values) if is_number else values


def _quantiles(column: pa.ChunkedArray) -> list[Any]:
    at = np.linspace(0.01, 0.99, _GRID_POINTS)
    return list(dict.fromkeys(pc.quantile(column, q=list(at), interpolation="nearest").to_pylist()))


def _slices(rows: pa.Table, spec: FeatureSpec, of_rows: pd.DataFrame) -> pd.DataFrame:
    tables = []
    typical = {name: "mean" if is_numeric_dtype(column) else _commonest for name, column in of_rows.items()}
    for feature in (*spec.categorical, *spec.numeric):
        if feature.name == spec.label.name or len(feature.columns) != 1 or isinstance(feature, kinds.DerivedFeature):
            continue
        values = _sliced(rows[feature.columns[0]], spec[feature.name])
        is_enough = of_rows.groupby(values, dropna=False)["loss"].transform("size") >= _LEAST_SLICE_ROWS
        if not is_enough.any():
            continue
        grouped = of_rows[is_enough].groupby(values[is_enough], dropna=False)
        means = grouped.agg(typical)
        means.insert(0, "rows", grouped.size())
        means = means.reset_index(names="value")
        means["value"] = means["value"].astype(str)
        means.insert(0, "feature", feature.name)
        tables.append(means)
    columns = ["feature", "value", "rows", *of_rows]
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables).sort_values("loss", ascending=False, ignore_index=True)[columns]


def _sliced(column: pa.ChunkedArray, feature: kinds.Feature) -> pd.Series:
    """Return the slice of every row: its value, or of many numbers the interval between two quantiles."""
    if not isinstance(feature, kinds.Numeric) or isinstance(feature, kinds.Ordinal):
        return column.to_pandas()
    if isinstance(feature, kinds.Date):
        column = pa.chunked_array([raw_columns.raw_column(pa.table({feature.name: column}), feature)])
    numbers = column.cast(pa.float64(), safe=False).to_pandas().replace([np.inf, -np.inf], np.nan)
    if numbers.nunique() <= _MOST_VALUES:
        return numbers
    return pd.qcut(numbers, _NUMBER_SLICES, duplicates="drop").astype(object).map(str, na_action="ignore")


def _commonest(values: pd.Series) -> Any:
    return values.mode().iloc[0]


def _worst(rows: pa.Table, spec: FeatureSpec, of_rows: pd.DataFrame) -> pd.DataFrame:
    order = np.argsort(-of_rows["loss"].to_numpy(), kind="stable")[:_WORST_ROWS]
    # Columns that are not features stay out of a page that is shared.
    shown = [name for name in spec.columns if name in rows.column_names and name != spec.label.name]
    table = embedded_columns.as_contents(rows.take(pa.array(order)).select(shown)).to_pandas()
    for position, name in enumerate(("label", "prediction", "loss")):
        table.insert(len(spec.keys) + position, name, of_rows[name].to_numpy()[order], allow_duplicates=True)
    return table


def _with(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _label(rows: pa.Table, features: FittedFeatures) -> np.ndarray:
    label = labels.encode_label(rows, features)
    assert label is not None  # noqa: S101 - only the label of a retrieval model is none
    return label.multi_hot(features.classes) if isinstance(label, RaggedIds) else label


def _per_row(values: np.ndarray) -> np.ndarray:
    """Return a number per row: of several labels, their number or the expected one."""
    return values if values.ndim == 1 else values.sum(axis=1)


def _log_loss(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    certain = np.clip(probability.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return -(label * np.log(certain) + (1 - label) * np.log1p(-certain))


def _class_log_loss(label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    of_class = scores[np.arange(len(label)), label.astype(np.int64)].astype(np.float64)
    return -np.log(np.clip(of_class, _LEAST_PROBABILITY, 1.0))


# Per kind of label: the loss's name, and the loss of every row.
_LOSSES: Mapping[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "binary": ("log loss", _log_loss),
    "multi_class": ("log loss", _class_log_loss),
    "numeric": ("squared error", lambda label, score: (label.astype(np.float64) - score) ** 2),
    "multi_label": ("log loss", lambda label, scores: _log_loss(label, scores).mean(axis=1)),
}
