"""The parts of every fit of a baseline: its rows, its time and threads, and the fitted model.

:mod:`training.results.evaluation.boosting` and :mod:`training.results.evaluation.linear` fit from them, and
:mod:`training.results.evaluation.row_baselines` orders the fits of a run.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from scipy.sparse import issparse  # type: ignore[import-untyped]
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.features import SparseRows, kinds
from mirrorspark.evaluation import check_binary_label

MAX_THREADS = 2

# Time of a fit of a baseline.
SECONDS = 120.0

# Time in which the machine is watched for processors in use by others.
_WATCH_SECONDS = 0.2

Columns = Mapping[str, Any]
"""Encoded features, label and weight by name: NumPy arrays, and ``SparseRows`` for sparse features."""


@dataclass(frozen=True)
class BaselineFeature:
    """One encoded feature column.

    By its form, ``value`` is float ``[rows]``; ``id`` int64 ``[rows]``; ``ids`` int64 ``[rows, max_length]``,
    right-padded with 0; ``vector`` float ``[rows, size]``; ``sparse`` are ``SparseRows`` of ``size`` columns. Ids: 0
    missing, 1 out of vocabulary, from 2 the vocabulary by descending frequency.

    By ``monotone`` gradient boosting may only rise with it (1), or only fall (-1); 0 leaves it free.
    """

    name: str
    form: kinds.Form
    size: int = 0
    monotone: int = 0


@dataclass(frozen=True)
class Rows:
    """Rows that a baseline learns from or is stopped by.

    Attributes:
        wanted: The labels ``[rows]``: 0 or 1, positions in ``FittedBaseline.class_numbers``, or numbers; of several
            labels a sparse matrix of bool, ``[rows, labels]``.
        weight: Their weights ``[rows]``; None where all rows count the same.
    """

    columns: Columns
    wanted: Any
    weight: NDArray[Any] | None

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.wanted.shape[0])


@dataclass(frozen=True)
class BaselineData:
    """The training and validation rows that baselines are fitted from.

    Attributes:
        train: The training rows.
        held_back: The validation rows that decide when to stop, or how strong the regularisation is: those of classes
            that ``train`` has, too. None if there are none.
        class_numbers: The classes of ``train``, ascending, or all labels; None unless there are several.
    """

    features: tuple[BaselineFeature, ...]
    task: str
    train: Rows
    held_back: Rows | None
    class_numbers: NDArray[np.int64] | None


class TimeLimit:
    """The time of a fit, which begins now.

    Attributes:
        left_out: Parts of the fit that were left out to end in time.
    """

    def __init__(self) -> None:
        self._until = time.monotonic() + SECONDS
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._until - time.monotonic()

    def in_words(self) -> str:
        """Return a sentence about the parts that were left out; nothing if there are none."""
        return f"It had {SECONDS:g} seconds, which left out {' and '.join(self.left_out)}" if self.left_out else ""


@dataclass(frozen=True)
class FittedBaseline(ABC):
    """A fitted model of encoded columns.

    Attributes:
        model: It has the methods of a scikit-learn classifier or regressor.
        class_numbers: Numbers of the classes or labels that ``predict`` has a column for.
        left_out: Parts of the fit that were left out to end in time, as a sentence; empty if it is whole.
    """

    model: Any
    features: tuple[BaselineFeature, ...]
    class_numbers: NDArray[np.int64] | None
    left_out: str = field(default="", kw_only=True)

    @abstractmethod
    def inputs(self, columns: Columns) -> Any:
        """Return the model's inputs from the columns: a matrix ``[rows, inputs]``."""

    def predict(self, columns: Columns) -> NDArray[np.float64]:
        """Return the probability of label 1, or the number, ``[rows]``; of several ``[rows, classes or labels]``.

        Raises:
            ValueError: a feature's column is missing or has another shape.
        """
        matrix = self.inputs(columns)
        if not hasattr(self.model, "predict_proba"):
            return np.asarray(self.model.predict(matrix), dtype=np.float64)
        probabilities = np.asarray(self.model.predict_proba(matrix), dtype=np.float64)
        return probabilities[:, 1] if self.class_numbers is None else probabilities


def baseline_data(
    train: Columns,
    validation: Columns,
    features: Sequence[BaselineFeature],
    label: str,
    *,
    weight: str | None = None,
    task: str = "binary",
) -> BaselineData:
    """Return the rows that a baseline is fitted from, which are checked.

    Args:
        train: feature, label and weight columns by name.
        validation: the same columns.
        features: which columns to use, and how.
        label: name of the label column: 0 or 1, class numbers, numbers, or a sparse matrix ``[rows, labels]`` of bool.
        weight: name of the row weight column, if any.
        task: ``binary``, ``multi_class``, ``multi_label`` or ``regression``.

    Raises:
        ValueError: no features, a column missing, or a binary label with one class only.
    """
    if not features:
        raise ValueError("features is empty; the baseline needs at least one feature")
    wanted, held_back = column(train, label), column(validation, label)
    weights = [None if weight is None else column(of, weight) for of in (train, validation)]
    numbers, usable = None, np.ones(held_back.shape[0], bool)
    if task == "binary":
        wanted = check_binary_label(wanted, split="train")
        held_back = check_binary_label(held_back, split="validation")
    if task == "multi_class":
        # A class that no training row has cannot be learnt, and libraries refuse validation rows with one.
        numbers, wanted = np.unique(wanted, return_inverse=True)
        usable = np.isin(held_back, numbers)
        held_back = np.searchsorted(numbers, held_back[usable])
    if task == "multi_label":
        numbers = np.arange(wanted.shape[1])
    kept = {feature.name: _taken(column(validation, feature.name), usable) for feature in features}
    weights[1] = None if weights[1] is None else weights[1][usable]
    rest = Rows(kept, held_back, weights[1]) if usable.any() else None
    return BaselineData(tuple(features), task, Rows(train, wanted, weights[0]), rest, numbers)


def column(columns: Columns, name: str) -> Any:
    """Return a column.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in columns:
        raise ValueError(f"column {name!r} is missing; there are {sorted(columns)}")
    found = columns[name]
    return found if isinstance(found, SparseRows) or issparse(found) else np.asarray(found)


def feature_columns(columns: Columns, features: Sequence[BaselineFeature]) -> list[Any]:
    """Return the columns of features.

    Raises:
        ValueError: one is missing or has another shape than its form, or they have different numbers of rows.
    """
    found: list[Any] = []
    rows = 0
    for feature in features:
        values = column(columns, feature.name)
        if isinstance(values, SparseRows):
            count = len(values.row_lengths)
        else:
            count, dimensions = len(values), 1 if feature.form in ("value", "id") else 2
            if values.ndim != dimensions:
                raise ValueError(
                    f"feature {feature.name!r} of form {feature.form} has shape {values.shape}; "
                    f"it needs {dimensions} dimensions"
                )
        rows = rows if found else count
        if count != rows:
            raise ValueError(f"feature {feature.name!r} has {count} rows, others have {rows}")
        found.append(values)
    return found


@contextlib.contextmanager
def free_threads() -> Iterator[int]:
    """Limit OpenMP to as many threads as processors are free now, ``MAX_THREADS`` at most, and give their number.

    OpenMP's threads meet after every few microseconds of work; where another process has the processor of one, all
    others wait for it, and gradient boosting with two threads may take many times as with one.
    """
    free = round((psutil.cpu_count() or 1) * (1 - psutil.cpu_percent(_WATCH_SECONDS) / 100))
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"]
    number = max(1, min([MAX_THREADS, free, *pools]))
    with threadpool_limits(limits=number, user_api="openmp"):
        yield number


def _taken(values: Any, usable: NDArray[np.bool_]) -> Any:
    if usable.all():
        return values
    return values.at(np.flatnonzero(usable)) if isinstance(values, SparseRows) else values[usable]
