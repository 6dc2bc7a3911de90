"""The linear baseline of encoded features: logistic regression, of several labels one by one, or ridge regression."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, delayed  # type: ignore[import-untyped]
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error

from mirrorspark.data_pipelines.features import SparseRows
from mirrorspark.evaluation import bootstrap
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.baseline_fit import (
    BaselineData,
    BaselineFeature,
    Columns,
    FittedBaseline,
    Rows,
    TimeLimit,
    feature_columns,
)

if TYPE_CHECKING:
    from mirrorspark.models import linear_model as linear_model_graph

# scikit-learn's C, the inverse of the strength of the regularisation: the validation rows choose one.
_INVERSE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Each one costs a model per label, so those that can no longer be the best are skipped.
_INVERSE_STRENGTHS_OF_LABELS = (1.0, 5.0, 0.2, 30.0, 150.0)
# A baseline need not be exact, so the optimiser stops before the last digits.
_MAX_ITERATIONS = 200
# Parts of a fit that might take longer than there is time, and rows by which its time is estimated.
_PARTS = 8
_TIMED_ROWS = 10_000
# Weights of all classes; the optimiser holds some twenty times as many numbers.
_MOST_WEIGHTS = 10_000_000
# Validation rows of several labels whose losses are in memory together.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Scaling:
    """Scaling of one feature.

    Attributes:
        centre: Means of the training rows, ``[size]``, which replace missing numbers; empty for ids and sparse ones.
        scale: Divisors of the numbers, ``[size]``; ones for ids.
        has_missing: True if a column marks the missing numbers.
    """

    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    has_missing: bool = False


@dataclass(frozen=True)
class FittedLinear(FittedBaseline):
    """A fitted linear model.

    Attributes:
        kept: int64 ``[inputs]``: the columns of the features side by side that it reads; None for all.
    """

    scalings: tuple[_Scaling, ...]
    kept: NDArray[np.int64] | None

    def inputs(self, columns: Columns) -> sparse.csr_matrix:
        """Return the features side by side, ``[rows, inputs]``."""
        matrix = _design(columns, self.features, self.scalings)
        return matrix if self.kept is None else matrix[:, self.kept]


def linear_model(
    data: BaselineData,
    *,
    strengths: float | Sequence[float] | None = None,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> FittedLinear:
    """Fit logistic regression, one for each label of several, or ridge regression where the task is ``regression``.

    A category enters as a column for each id, a list as the counts of its ids, a number standardised, a sparse column
    divided by its largest absolute value. The validation rows choose the strength of the regularisation; without any it
    is scikit-learn's default. Where ids, columns and classes are too many, the most frequent columns are read.

    Args:
        data: rows to learn from, and rows that choose.
        strengths: scikit-learn's ``C``, or its ``alpha`` of ridge regression: one, or several to choose from.
        on_progress: gets the number of strengths that were tried.

    Raises:
        ValueError: a column is missing or mis-shaped.
    """
    train, held_back = data.train, data.held_back
    scalings = tuple(map(_scaling, data.features, feature_columns(train.columns, data.features)))
    matrix = _design(train.columns, data.features, scalings)
    kept = _most_frequent(matrix, 1 if data.class_numbers is None else len(data.class_numbers))
    fitted = FittedLinear(None, data.features, data.class_numbers, scalings, kept)
    matrix = matrix if kept is None else matrix[:, kept]
    rest = None if held_back is None else fitted.inputs(held_back.columns)
    model = _MODELS[data.task]()
    best, limit = None, TimeLimit()
    tried = _tried(data, strengths)
    errors: dict[float, float] = {}
    for place, inverse in enumerate(tried):
        if strengths is None and data.task == "multi_label" and not _may_be_best(inverse, errors):
            continue
        before = limit.left
        on_progress("strengths of the regularisation", place, len(tried))
        if isinstance(model, _OneVsRest):
            model.seconds, labels = before, data.train.wanted.shape[1]
            model.on_label = partial(_report_label, on_progress, place * labels, len(tried) * labels)
        model.set_params(**({"alpha": 1 / inverse} if data.task == "regression" else {"C": inverse}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the limit of iterations is on purpose
            if isinstance(model, LogisticRegression):
                _fit_in_time(model, matrix, train, limit)
            else:
                model.fit(matrix, train.wanted, sample_weight=train.weight)
        least = min(errors.values(), default=np.inf)
        errors[inverse] = 0.0 if rest is None or held_back is None else _error(model, rest, held_back, data.task)
        if best is None or errors[inverse] < least:
            best = copy.copy(model) if isinstance(model, _OneVsRest) else copy.deepcopy(model)
        # Another strength is tried only if the last one took less than what is left.
        if (rest_of := tried[place + 1 :]) and before - limit.left > limit.left:
            is_ridge = data.task == "regression"
            untried = ", ".join(f"{1 / one if is_ridge else one:g}" for one in rest_of)
            name = "alpha" if is_ridge else "C"
            limit.left_out.append(f"the strengths {name} = {untried} of the regularisation")
            break
    if unfinished := getattr(best, "unfinished_", 0):
        limit.left_out.append(f"the last updates of {unfinished} of its {data.train.wanted.shape[1]} labels")
    return replace(fitted, model=best, left_out=limit.in_words())


def _fit_in_time(model: LogisticRegression, matrix: sparse.csr_matrix, train: Rows, limit: TimeLimit) -> None:
    """Fit logistic regression, in parts that go on from each other where the whole might not end in time.

    scikit-learn's solver cannot be stopped, and begins each part without the curvature that it knew.
    """
    of_iteration = _seconds_of_an_iteration(matrix, len(np.unique(train.wanted)))
    each = int(limit.left / _PARTS / of_iteration)
    each = _MAX_ITERATIONS if each * _PARTS >= _MAX_ITERATIONS else max(1, each)
    model.set_params(max_iter=each)
    done = 0
    while True:
        model.fit(matrix, train.wanted, sample_weight=train.weight)
        done += each
        if int(np.max(model.n_iter_)) < each or done >= _MAX_ITERATIONS:
            return
        if limit.left <= 0:
            limit.left_out.append(f"the iterations after {done:,} of {_MAX_ITERATIONS:,}")
            return


def _seconds_of_an_iteration(matrix: sparse.csr_matrix, classes: int) -> float:
    """Return the time of an iteration, estimated from some rows: it has about three products with the weights."""
    some = matrix[:_TIMED_ROWS]
    begin = time.monotonic()
    some @ np.zeros((matrix.shape[1], 1 if classes <= 2 else classes))
    return max(3 * (time.monotonic() - begin) * matrix.shape[0] / some.shape[0], 1e-9)


def linear_of(fitted: FittedLinear, task: str, classes: int = 0) -> linear_model_graph.Linear:
    """Return the weights of a fit for :mod:`models.linear_model`.

    Args:
        fitted: A fit that reads all columns.
        task: The task of the fit.
        classes: The number of classes, of several.
    """
    from mirrorspark.models import linear_model as graph

    model: Any = fitted.model
    if task == "multi_label":
        weights, bias = model.weights_, model.biases_
    else:
        weights, bias = np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)
    inputs, first = [], 0
    for feature, scaling in zip(fitted.features, fitted.scalings, strict=True):
        size = len(scaling.scale) * (2 if scaling.has_missing else 1)
        inputs.append(
            graph.LinearInput(
                *(feature.name, feature.form, scaling.centre, scaling.scale, scaling.has_missing),
                weights[first : first + size],
            )
        )
        first += size
    several: graph.Link = "softmax" if len(bias) > 1 else "logit"
    links: Mapping[str, graph.Link] = {
        "multi_label": "sigmoid",
        "regression": "identity",
        "multi_class": several,
        "binary": "logit",
    }
    numbers = () if fitted.class_numbers is None else tuple(map(int, fitted.class_numbers))
    return graph.Linear(tuple(inputs), bias, links[task], numbers, classes)


def _tried(data: BaselineData, given: float | Sequence[float] | None) -> Sequence[float]:
    """Return the inverse strengths of the regularisation to try, given those that the user wants."""
    if given is None:
        several = _INVERSE_STRENGTHS_OF_LABELS if data.task == "multi_label" else _INVERSE_STRENGTHS
        return several if data.held_back else (1.0,)
    wanted = given if isinstance(given, Sequence) else (given,)
    inverse = [1 / one for one in wanted] if data.task == "regression" else list(wanted)
    return inverse if data.held_back else inverse[:1]


def _may_be_best(inverse: float, errors: Mapping[float, float]) -> bool:
    """Return False if the error has its only minimum elsewhere, by the ``errors`` of other strengths."""
    best = min(errors, key=errors.__getitem__, default=inverse)
    return not any(min(inverse, best) < other < max(inverse, best) for other in errors)


def _report_label(on_progress: OnProgress, before: int, total: int, done: int) -> None:
    on_progress("labels, times strengths of the regularisation", before + done, total)


class _OneVsRest(BaseEstimator):
    """Logistic regression for each of several labels, with the weights side by side.

    A second fit goes on from the weights of the first.
    """

    def __init__(self, C: float = 1.0) -> None:  # noqa: N803 - as scikit-learn's
        self.C = C
        self.seconds = np.inf
        self.on_label: Callable[[int], None] = lambda done: None

    def fit(
        self, matrix: sparse.csr_matrix, wanted: sparse.csc_matrix, sample_weight: NDArray[np.float64] | None = None
    ) -> None:
        """Learn from ``[rows, inputs]`` and labels, bool ``[rows, labels]``, on all cores, within ``seconds``."""
        if sample_weight is not None and not sample_weight.all():
            used = np.flatnonzero(sample_weight > 0)
            matrix, wanted, sample_weight = matrix[used], wanted[used], sample_weight[used]
        labels, cores = wanted.shape[1], len(os.sched_getaffinity(0))
        before = getattr(self, "solutions_", [None] * labels)
        deadline, transposed = time.monotonic() + self.seconds, matrix.T.tocsr()

        def fitted(label: int) -> tuple[NDArray[np.float64], bool]:
            # Each label gets its share of the time left, so that the last one learns as much as the first.
            rounds = -(-(labels - label) // cores)
            until = time.monotonic() + (deadline - time.monotonic()) / rounds
            column = wanted[:, [label]].toarray().ravel()
            return _weights_of_a_label(self.C, (matrix, transposed), column, sample_weight, before[label], until)

        found = []
        for one in Parallel(min(cores, labels), prefer="threads", return_as="generator")(
            delayed(fitted)(label) for label in range(labels)
        ):
            found.append(one)
            self.on_label(len(found))
        self.solutions_ = [solution for solution, _ in found]
        together = np.stack(self.solutions_, axis=1)
        self.weights_, self.biases_ = together[:-1], together[-1]
        self.unfinished_ = sum(not is_done for _, is_done in found)

    def predict_proba(self, matrix: sparse.csr_matrix) -> NDArray[np.float64]:
        """Return the probability of each label, ``[rows, labels]``."""
        return np.asarray(expit(matrix @ self.weights_ + self.biases_))


def _weights_of_a_label(
    inverse: float,
    matrices: tuple[sparse.csr_matrix, sparse.csr_matrix],
    wanted: NDArray[Any],
    weight: NDArray[np.float64] | None,
    begin: NDArray[np.float64] | None,
    deadline: float,
) -> tuple[NDArray[np.float64], bool]:
    """Return the weights of a label and its bias, ``[inputs + 1]``, and False if the time was up before the end.

    L-BFGS minimises the mean log loss plus half the squared norm of the weights over ``inverse`` times the rows; the
    bias is free. Unlike scikit-learn's solvers it can be stopped at a time.
    """
    matrix, transposed = matrices
    if wanted.min() == wanted.max():
        # A label that no row or every row has cannot be fitted; its rate is that of one more row that differs.
        return np.append(np.zeros(matrix.shape[1]), np.log(len(wanted)) * (1 if wanted[0] else -1)), True
    sign = np.where(wanted, 1.0, -1.0)
    share = (np.ones(len(sign)) if weight is None else weight) / (len(sign) if weight is None else weight.sum())
    strength = 1 / (inverse * (len(sign) if weight is None else weight.sum()))
    is_done = True

    def loss(solution: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (matrix @ solution[:-1] + solution[-1])
        slope = -sign * expit(-margin) * share
        value = share @ np.logaddexp(0, -margin) + strength / 2 * (solution[:-1] @ solution[:-1])
        return float(value), np.append(transposed @ slope + strength * solution[:-1], slope.sum())

    def stop_in_time(_: NDArray[np.float64]) -> None:
        nonlocal is_done
        if time.monotonic() > deadline:
            is_done = False
            raise StopIteration

    first = np.zeros(matrix.shape[1] + 1) if begin is None else begin
    options = {"maxiter": _MAX_ITERATIONS, "gtol": 1e-5, "ftol": 1e-9}
    found = minimize(loss, first, jac=True, method="L-BFGS-B", callback=stop_in_time, options=options)
    return np.asarray(found.x), is_done


# Logistic regression goes on from the weights with the strength before.
_MODELS: Mapping[str, Callable[[], Any]] = {
    "binary": partial(LogisticRegression, max_iter=_MAX_ITERATIONS, warm_start=True),
    "multi_class": partial(LogisticRegression, max_iter=_MAX_ITERATIONS, warm_start=True),
    "multi_label": _OneVsRest,
    "regression": partial(Ridge, solver="lsqr"),
}


def _most_frequent(matrix: sparse.csr_matrix, classes: int) -> NDArray[np.int64] | None:
    """Return the columns with the most values, ascending, as have not too many weights; None for all."""
    most = max(1, _MOST_WEIGHTS // classes)
    if matrix.shape[1] <= most:
        return None
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.sort(np.argsort(-counts, kind="stable")[:most])


def _error(model: Any, matrix: sparse.csr_matrix, rows: Rows, task: str) -> float:
    if task == "regression":
        return float(mean_squared_error(rows.wanted, model.predict(matrix), sample_weight=rows.weight))
    if task == "multi_label":
        parts = (slice(first, first + _ROWS_AT_ONCE) for first in range(0, matrix.shape[0], _ROWS_AT_ONCE))
        wanted = rows.wanted.tocsr()
        losses = [
            bootstrap.row_log_losses(wanted[part].toarray(), model.predict_proba(matrix[part])).mean(axis=1)
            for part in parts
        ]
        return float(np.average(np.concatenate(losses), weights=rows.weight))
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
    parts = map(_part, features, feature_columns(columns, features), scalings)
    return sparse.hstack(list(parts), format="csr", dtype=np.float32)


def _part(feature: BaselineFeature, values: Any, scaling: _Scaling) -> sparse.csr_matrix:
    """Return the inputs of one feature, ``[rows, inputs]``."""
    width = len(scaling.scale)
    if isinstance(values, SparseRows):
        entries = values.values / scaling.scale[values.indices]
        return sparse.csr_matrix((entries, values.indices, values.row_starts), shape=(len(values.row_lengths), width))
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
