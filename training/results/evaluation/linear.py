"""The linear baseline of encoded features: logistic regression, or ridge regression of numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error

from mirrorspark.data_pipelines.features.transform import SparseRows
from mirrorspark.training.executor.child_process import Tell
from mirrorspark.training.results.evaluation.baselines import (
    BaselineFeature,
    Columns,
    FittedBaseline,
    Rows,
    Split,
    column,
)

# Inverse strengths of the regularisation, of which the validation rows choose one.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_MAX_ITERATIONS = 1_000


@dataclass(frozen=True)
class _Scaling:
    """How one feature enters.

    Attributes:
        centre: Means of the training rows, ``[size]``, which missing numbers become; empty of ids and sparse features.
        scale: What the numbers are divided by, ``[size]``; of ids ones.
        has_missing: Whether a column says which numbers are missing.
    """

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    has_missing: bool = False


@dataclass(frozen=True)
class FittedLinear(FittedBaseline):
    """A fitted linear model."""

    scalings: tuple[_Scaling, ...]

    def inputs(self, columns: Columns) -> sparse.csr_matrix:
        """Return the features side by side, ``[rows, inputs]``."""
        return _design(columns, self.features, self.scalings)


def linear_model(split: Split, *, tell: Tell = lambda doing, done=0, total=0: None) -> FittedLinear:
    """Fit logistic regression, or ridge regression where the task is ``regression``.

    A category enters as a column for each id, a list as the counts of its ids, a number standardised, a sparse column
    divided by its largest absolute value. The validation rows choose the strength of the regularisation.

    Raises:
        ValueError: a column is missing or mis-shaped.
    """
    train, held_back = split.train, split.held_back
    scalings = tuple(_scaling(feature, column(train.columns, feature.name)) for feature in split.features)
    matrix = _design(train.columns, split.features, scalings)
    rest = None if held_back is None else _design(held_back.columns, split.features, scalings)
    is_ridge = split.task == "regression"
    # Each strength goes on from the weights of the one before.
    model: Any = Ridge(solver="lsqr") if is_ridge else LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
    best, least = None, np.inf
    for place, strength in enumerate(_STRENGTHS if rest is not None else _STRENGTHS[-1:]):
        tell("strengths of the regularisation", place, len(_STRENGTHS))
        model.set_params(**({"alpha": 1 / strength} if is_ridge else {"C": strength}))
        model.fit(matrix, train.wanted, sample_weight=train.weight)
        error = 0.0 if rest is None or held_back is None else _error(model, rest, held_back, is_ridge=is_ridge)
        if best is None or error < least:
            best, least = copy.deepcopy(model), error
    return FittedLinear(best, split.features, split.class_numbers, scalings)


def _error(model: Any, matrix: sparse.csr_matrix, rows: Rows, *, is_ridge: bool) -> float:
    if is_ridge:
        return float(mean_squared_error(rows.wanted, model.predict(matrix), sample_weight=rows.weight))
    probabilities = model.predict_proba(matrix)
    return float(log_loss(rows.wanted, probabilities, sample_weight=rows.weight, labels=model.classes_))


def _scaling(feature: BaselineFeature, values: Any) -> _Scaling:
    nothing = np.zeros(0)
    if isinstance(values, SparseRows):
        largest = np.zeros(feature.size)
        np.maximum.at(largest, values.indices, np.abs(values.values))
        return _Scaling(nothing, np.where(largest > 0, largest, 1.0))
    if feature.form in ("id", "ids"):
        return _Scaling(nothing, np.ones(int(values.max(initial=0)) + 1))
    numbers = values.reshape(len(values), -1).astype(np.float64)
    is_known = ~np.isnan(numbers)
    known = np.maximum(is_known.sum(axis=0), 1)
    centre = np.where(is_known, numbers, 0.0).sum(axis=0) / known
    deviation = np.sqrt((np.where(is_known, numbers - centre, 0.0) ** 2).sum(axis=0) / known)
    return _Scaling(centre, np.where(deviation > 0, deviation, 1.0), not is_known.all())


def _design(
    columns: Columns, features: tuple[BaselineFeature, ...], scalings: tuple[_Scaling, ...]
) -> sparse.csr_matrix:
    parts: list[sparse.csr_matrix] = []
    for feature, scaling in zip(features, scalings, strict=True):
        part = _part(feature, column(columns, feature.name), scaling)
        if parts and part.shape[0] != parts[0].shape[0]:
            raise ValueError(f"feature {feature.name!r} has {part.shape[0]} rows, others have {parts[0].shape[0]}")
        parts.append(part)
    return sparse.hstack(parts, format="csr", dtype=np.float32)


def _part(feature: BaselineFeature, values: Any, scaling: _Scaling) -> sparse.csr_matrix:
    """Return the inputs of one feature, ``[rows, inputs]``."""
    width = len(scaling.scale)
    if isinstance(values, SparseRows):
        entries = values.values / scaling.scale[values.indices]
        return sparse.csr_matrix((entries, values.indices, values.row_starts), shape=(len(values.row_lengths), width))
    dimensions = 1 if feature.form in ("value", "id") else 2
    if values.ndim != dimensions:
        raise ValueError(
            f"feature {feature.name!r} of form {feature.form} has shape {values.shape}; it needs {dimensions} "
            f"dimensions"
        )
    rows = len(values)
    values = values.reshape(rows, -1)
    if feature.form in ("id", "ids"):
        # Padding is nothing; an id beyond those of the training rows has no weight.
        is_kept = (values < width) & ((values > 0) | (feature.form == "id"))
        starts = np.concatenate([[0], np.cumsum(is_kept.sum(axis=1))])
        return sparse.csr_matrix((np.ones(starts[-1]), values[is_kept], starts), shape=(rows, width))
    is_missing = np.isnan(values)
    scaled = np.where(is_missing, 0.0, (values - scaling.centre) / scaling.scale)
    return sparse.csr_matrix(np.hstack([scaled, is_missing]) if scaling.has_missing else scaled)
