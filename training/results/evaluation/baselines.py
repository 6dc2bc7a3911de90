"""The baseline of models that score rows: gradient boosting on the same features."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.features.kinds import Form
from mirrorspark.training.results.evaluation.metrics import check_binary_label

MAX_THREADS = 2
MAX_ITERATIONS = 300
PATIENCE = 15

_TELL_SECONDS = 0.5

# scikit-learn bins every feature into at most 255 values, and refuses a categorical one with more.
_MAX_CATEGORIES = 255
_MISSING_ID = 0

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class BaselineFeature:
    """One encoded feature column.

    By its form, ``value`` is float ``[rows]``; ``id`` int64 ``[rows]``; ``ids`` int64 ``[rows, max_length]``,
    right-padded with 0. Ids: 0 missing, 1 out of vocabulary, from 2 the vocabulary by descending frequency.
    """

    name: str
    form: Form


@dataclass(frozen=True)
class FittedBaseline:
    """A fitted gradient-boosting model of encoded columns."""

    model: HistGradientBoostingClassifier | HistGradientBoostingRegressor
    features: tuple[BaselineFeature, ...]
    native_categorical: tuple[bool, ...]
    classes: int = 0

    @property
    def iterations(self) -> int:
        """Number of boosting iterations that were fitted."""
        return int(self.model.n_iter_)

    def predict(self, columns: Columns) -> NDArray[np.float64]:
        """Return the probability of label 1, or the number, ``[rows]``; of several classes ``[rows, classes]``.

        Raises:
            ValueError: a feature's column is missing or has another shape.
        """
        matrix = _ordinals_missing_as_nan(_matrix(columns, self.features), self.features, self.native_categorical)
        with threadpool_limits(limits=_threads(), user_api="openmp"):
            if isinstance(self.model, HistGradientBoostingRegressor):
                return np.asarray(self.model.predict(matrix), dtype=np.float64)
            probabilities = np.asarray(self.model.predict_proba(matrix), dtype=np.float64)
        return probabilities if self.classes else probabilities[:, 1]


def hist_gradient_boosting(
    train: Columns,
    validation: Columns,
    features: Sequence[BaselineFeature],
    label: str,
    *,
    seed: int,
    weight: str | None = None,
    task: str = "binary",
    classes: int = 0,
    tell: Callable[[str, int, int], None] = lambda doing, done, most: None,
) -> FittedBaseline:
    """Fit scikit-learn's histogram gradient boosting on encoded features, stopped early on the validation split.

    A multi-valued feature enters as its last id and its length. An id column with more than 255 different ids is
    ordered by frequency, as its ids are; smaller ones are split as categories.

    Args:
        train: feature, label and weight columns by name.
        validation: the same columns; decides when to stop (with scikit-learn before 1.7, a random tenth of
            ``train`` does), by its rows of classes that ``train`` has, too.
        features: which columns to use, and how.
        label: name of the label column: 0 or 1, class numbers, or numbers.
        seed: fixes the sampling inside the fit.
        weight: name of the row weight column, if any.
        task: ``binary``, ``multi_class`` or ``regression``.
        classes: number of classes of a multi-class label.
        tell: gets what is done, how many iterations, and the most that there may be, every half second.

    Raises:
        ValueError: no features, a column missing or mis-shaped, or a label with one class only.
    """
    if not features:
        raise ValueError("features is empty; the baseline needs at least one feature")
    kept = tuple(features)
    wanted, wanted_validation = _column(train, label), _column(validation, label)
    if task == "binary":
        wanted = check_binary_label(wanted, split="train")
        wanted_validation = check_binary_label(wanted_validation, split="validation")
    # A class that no training row has cannot be learnt; scikit-learn refuses validation rows with one.
    usable = np.isin(wanted_validation, wanted) if task == "multi_class" else np.ones(len(wanted_validation), bool)
    matrix = _matrix(train, kept)
    is_id = _id_columns(kept)
    native = tuple(
        bool(ids and np.unique(matrix[:, position]).size <= _MAX_CATEGORIES) for position, ids in enumerate(is_id)
    )
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    model = kind(
        max_iter=MAX_ITERATIONS,
        early_stopping=bool(usable.any()),
        n_iter_no_change=PATIENCE,
        categorical_features=list(native),
        random_state=seed,
    )
    held_back: dict[str, Any] = {}
    if usable.any() and "X_val" in inspect.signature(model.fit).parameters:
        held_back = {
            "X_val": _ordinals_missing_as_nan(_matrix(validation, kept)[usable], kept, native),
            "y_val": wanted_validation[usable],
            "sample_weight_val": None if weight is None else _column(validation, weight)[usable],
        }
    with threadpool_limits(limits=_threads(), user_api="openmp"), _told(model, tell):
        model.fit(
            _ordinals_missing_as_nan(matrix, kept, native),
            wanted,
            sample_weight=None if weight is None else _column(train, weight),
            **held_back,
        )
    return FittedBaseline(model, kept, native, classes if task == "multi_class" else 0)


@contextlib.contextmanager
def _told(model: Any, tell: Callable[[str, int, int], None]) -> Iterator[None]:
    """Tell how many iterations a model has made while it is fitted inside."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_TELL_SECONDS):
            # scikit-learn has no callback; its model grows in a private attribute.
            tell("boosting iterations", len(getattr(model, "_predictors", ())), MAX_ITERATIONS)

    watcher = threading.Thread(target=watch, name="gradient-boosting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _threads() -> int:
    """Return the number of threads: at most ``MAX_THREADS``, or fewer if the process is limited to fewer."""
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"]
    return min([MAX_THREADS, *pools])


def _column(columns: Columns, name: str) -> NDArray[Any]:
    if name not in columns:
        raise ValueError(f"column {name!r} is missing; there are {sorted(columns)}")
    return np.asarray(columns[name])


def _matrix(columns: Columns, features: Sequence[BaselineFeature]) -> NDArray[np.float32]:
    """Return the features side by side, ``[rows, columns]``: two columns for a multi-valued feature, one for others.

    float32 holds ids exactly up to 16.7 million and halves the memory.
    """
    parts: list[NDArray[Any]] = []
    for feature in features:
        values = _column(columns, feature.name)
        dimensions = 2 if feature.form == "ids" else 1
        if values.ndim != dimensions:
            raise ValueError(
                f"feature {feature.name!r} of form {feature.form} has shape {values.shape}; "
                f"it needs {dimensions} dimensions"
            )
        if feature.form == "ids":
            length = np.count_nonzero(values, axis=1)
            last = np.take_along_axis(values, np.maximum(length - 1, 0)[:, None], axis=1)[:, 0]
            parts += [last, length]
        else:
            parts.append(values)
        if len(values) != len(parts[0]):
            raise ValueError(f"feature {feature.name!r} has {len(values)} rows, others have {len(parts[0])}")
    matrix = np.empty((len(parts[0]), len(parts)), dtype=np.float32)
    for position, part in enumerate(parts):
        matrix[:, position] = part
    return matrix


def _id_columns(features: Sequence[BaselineFeature]) -> list[bool]:
    """Return True for each column of ``_matrix`` that holds ids."""
    of_form = {"value": [False], "id": [True], "ids": [True, False]}
    return [is_id for feature in features for is_id in of_form[feature.form]]


def _ordinals_missing_as_nan(
    matrix: NDArray[np.float32], features: Sequence[BaselineFeature], native: Sequence[bool]
) -> NDArray[np.float32]:
    """Mark missing ids as NaN where ids are ordered: 0 would read as more frequent than the most frequent one."""
    ordered = [is_id and not split for is_id, split in zip(_id_columns(features), native, strict=True)]
    marked = matrix.copy()
    for position in np.flatnonzero(ordered):
        marked[marked[:, position] == _MISSING_ID, position] = np.nan
    return marked
