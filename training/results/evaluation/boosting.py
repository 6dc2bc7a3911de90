"""Gradient boosting on encoded features: scikit-learn's, XGBoost's, LightGBM's and CatBoost's."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirrorspark.training.configuration import BOOSTING
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.results.evaluation.baseline_fit import (
    BaselineData,
    BaselineFeature,
    Columns,
    FittedBaseline,
    Rows,
    TimeLimit,
    feature_columns,
    free_threads,
)

MAX_ITERATIONS = 1_000
# Fewer iterations without validation rows, since nothing but the time limit then stops a fit early.
_ITERATIONS_UNVALIDATED = 300
PATIENCE = 15
# Half the step of its default, and half the columns, drawn for each split: better on all tables of docs/quality.md.
_HIST_SETTINGS: Mapping[str, Any] = {"learning_rate": 0.05, "max_features": 0.5}
# XGBoost's own default, 0.3, is three times that of the other libraries.
_XGBOOST_LEARNING_RATE = 0.1

_REPORT_SECONDS = 0.5
# The private method by which scikit-learn asks whether to stop.
_STOP_METHOD = "_check_early_stopping_loss"

# scikit-learn bins every feature into at most 255 values, and refuses a categorical one with more.
_MAX_CATEGORIES = 255
_MISSING_ID = 0


@dataclass(frozen=True)
class FittedBoosting(FittedBaseline):
    """A fitted gradient boosting.

    Attributes:
        native_categorical: For each input, whether its ids are split as categories.
        library: Its library.
    """

    native_categorical: tuple[bool, ...]
    library: str = "hist_gradient_boosting"

    def inputs(self, columns: Columns) -> Any:
        """Return the features side by side, ``[rows, inputs]``; missing ids that are ordered are NaN."""
        matrix = _ordinals_missing_as_nan(_matrix(columns, self.features), self.features, self.native_categorical)
        return _frame(matrix, self.native_categorical) if self.library == "catboost" else matrix


@dataclass(frozen=True)
class _Inputs:
    """Rows as the libraries take them: inputs ``[rows, inputs]``, labels and weights ``[rows]``."""

    matrix: NDArray[np.float32]
    wanted: NDArray[Any]
    weight: NDArray[Any] | None


@dataclass(frozen=True)
class _Fit:
    """Rows and settings of a fit by one of the libraries."""

    train: _Inputs
    held_back: _Inputs | None
    native_categorical: tuple[bool, ...]
    monotone: tuple[int, ...]
    is_regression: bool
    seed: int
    threads: int
    on_progress: OnProgress
    limit: TimeLimit
    library: str
    options: Mapping[str, Any]

    def model(self, **ours: Any) -> Any:
        """Return the library's classifier or regressor, unfitted, with our settings and those that are given."""
        library = BOOSTING[self.library]
        kind = library.class_for(is_regression=self.is_regression)
        return kind(**{library.iterations: self.most_iterations, **ours, **self.options})

    @property
    def most_iterations(self) -> int:
        """The most iterations."""
        most = _ITERATIONS_UNVALIDATED if self.held_back is None else MAX_ITERATIONS
        return int(self.options.get(BOOSTING[self.library].iterations, most))

    def is_late(self, done: int) -> bool:
        """Return whether the fit must end after ``done`` iterations, and note what is left out."""
        is_late = self.limit.left <= 0 and 0 < done < self.most_iterations
        if is_late:
            self.limit.left_out.append(f"the iterations after {done:,} of {self.most_iterations:,}")
        return is_late


def gradient_boosting(
    data: BaselineData,
    *,
    seed: int,
    library: str = "hist_gradient_boosting",
    options: Mapping[str, Any] | None = None,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> FittedBoosting:
    """Fit gradient boosting, stopped early on the validation rows.

    A multi-valued feature enters as its last id and its length. An id column with more than 255 different ids is
    ordered by frequency, as its ids are; smaller ones are split as categories. CatBoost takes them all as categories.

    Args:
        data: rows to learn from, and rows that decide when to stop (with scikit-learn before 1.7, a random tenth of
            the training rows).
        seed: fixes the sampling inside the fit.
        library: ``hist_gradient_boosting`` (scikit-learn), ``xgboost``, ``lightgbm`` or ``catboost``.
        options: Settings of the library that differ from our defaults.
        on_progress: gets the number of iterations every half second.

    Raises:
        ValueError: a column is missing or mis-shaped.
        ImportError: the library is not installed.
    """
    matrix, given = _matrix(data.train.columns, data.features), options or {}
    most = min(_MAX_CATEGORIES, int(given.get("max_bins", _MAX_CATEGORIES)))
    native = tuple(
        bool(is_id and (library == "catboost" or np.unique(matrix[:, position]).size <= most))
        for position, is_id in enumerate(_id_columns(data.features))
    )

    def inputs(rows: Rows, matrix: NDArray[np.float32]) -> _Inputs:
        return _Inputs(_ordinals_missing_as_nan(matrix, data.features, native), rows.wanted, rows.weight)

    rest = data.held_back
    held_back = None if rest is None else inputs(rest, _matrix(rest.columns, data.features))
    with free_threads() as threads:
        limit, is_regression = TimeLimit(), data.task == "regression"
        fit = _Fit(
            train=inputs(data.train, matrix),
            held_back=held_back,
            native_categorical=native,
            monotone=_monotone(data.features),
            is_regression=is_regression,
            seed=seed,
            threads=threads,
            on_progress=on_progress,
            limit=limit,
            library=library,
            options=given,
        )
        model = _LIBRARIES[library](fit)
    return FittedBoosting(model, data.features, data.class_numbers, native, library, left_out=limit.in_words())


def _hist_gradient_boosting(fit: _Fit) -> Any:
    # Without validation rows the loss is that of the training rows, and only the time stops the fit.
    stopping = {"n_iter_no_change": PATIENCE if fit.held_back else fit.most_iterations}
    model = fit.model(
        early_stopping=True,
        **_HIST_SETTINGS,
        **stopping | ({} if fit.held_back else {"validation_fraction": None}),
        categorical_features=list(fit.native_categorical),
        monotonic_cst=fit.monotone if any(fit.monotone) else None,
        random_state=fit.seed,
    )
    held_back: dict[str, Any] = {}
    if (rest := fit.held_back) is not None and "X_val" in inspect.signature(model.fit).parameters:
        held_back = {"X_val": rest.matrix, "y_val": rest.wanted, "sample_weight_val": rest.weight}

    # scikit-learn has no callback; its model grows in a private attribute, and asks a private method for the end.
    def done() -> int:
        return len(getattr(model, "_predictors", ()))

    usual = getattr(model, _STOP_METHOD, lambda *_, **__: False)
    setattr(model, _STOP_METHOD, lambda *loss, **named: usual(*loss, **named) or fit.is_late(done()))
    with _reporting(done, fit):
        model.fit(fit.train.matrix, fit.train.wanted, sample_weight=fit.train.weight, **held_back)
    delattr(model, _STOP_METHOD)
    return model


def _xgboost(fit: _Fit) -> Any:
    import xgboost

    done = 0

    class Count(xgboost.callback.TrainingCallback):
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            nonlocal done
            done = epoch + 1
            return fit.is_late(done)

    rest = fit.held_back
    model = fit.model(
        learning_rate=_XGBOOST_LEARNING_RATE,
        early_stopping_rounds=None if rest is None else PATIENCE,
        enable_categorical=True,
        feature_types=["c" if is_native else "q" for is_native in fit.native_categorical],
        monotone_constraints=fit.monotone if any(fit.monotone) else None,
        n_jobs=fit.threads,
        random_state=fit.seed,
        callbacks=[Count()],
    )
    with _reporting(lambda: done, fit):
        model.fit(
            fit.train.matrix,
            fit.train.wanted,
            sample_weight=fit.train.weight,
            eval_set=None if rest is None else [(rest.matrix, rest.wanted)],
            sample_weight_eval_set=None if rest is None or rest.weight is None else [rest.weight],
            verbose=False,
        )
    return model


def _lightgbm(fit: _Fit) -> Any:
    import lightgbm

    done = 0

    def count(environment: Any) -> None:
        nonlocal done
        done = environment.iteration + 1
        if fit.is_late(done):
            raise lightgbm.callback.EarlyStopException(environment.iteration, environment.evaluation_result_list)

    rest = fit.held_back
    model = fit.model(
        monotone_constraints=list(fit.monotone) if any(fit.monotone) else None,
        n_jobs=fit.threads,
        random_state=fit.seed,
        deterministic=True,
        force_col_wise=True,  # else timings decide, and another fit may differ
        verbosity=-1,
    )
    held_back: dict[str, Any] = {}
    if rest is not None:
        held_back = {"eval_set": [(rest.matrix, rest.wanted)]}
        if "eval_X" in inspect.signature(model.fit).parameters:  # from LightGBM 4.7 on
            held_back = {"eval_X": rest.matrix, "eval_y": rest.wanted}
    with _reporting(lambda: done, fit):
        model.fit(
            fit.train.matrix,
            fit.train.wanted,
            sample_weight=fit.train.weight,
            **held_back,
            eval_sample_weight=None if rest is None or rest.weight is None else [rest.weight],
            categorical_feature=np.flatnonzero(fit.native_categorical).tolist(),
            callbacks=[count, *([] if rest is None else [lightgbm.early_stopping(PATIENCE, verbose=False)])],
        )
    return model


def _catboost(fit: _Fit) -> Any:
    import catboost  # type: ignore[import-untyped]

    done = 0

    class Count:
        def after_iteration(self, info: Any) -> bool:
            nonlocal done
            done = info.iteration
            return not fit.is_late(done)

    def pool(of: _Inputs) -> Any:
        categories = np.flatnonzero(fit.native_categorical).tolist()
        return catboost.Pool(_frame(of.matrix, fit.native_categorical), of.wanted, categories, weight=of.weight)

    model = fit.model(
        thread_count=fit.threads,
        random_seed=fit.seed,
        monotone_constraints=list(fit.monotone) if any(fit.monotone) else None,
        early_stopping_rounds=None if fit.held_back is None else PATIENCE,
        allow_writing_files=False,
        verbose=0,
    )
    with _reporting(lambda: done, fit):
        held_back = None if fit.held_back is None else pool(fit.held_back)
        model.fit(pool(fit.train), eval_set=held_back, callbacks=[Count()])
    return model


def _frame(matrix: NDArray[np.float32], native_categorical: Sequence[bool]) -> Any:
    """Return the inputs as CatBoost takes them: its categories must be whole numbers."""
    import pandas as pd

    columns = [
        column.astype(np.int64) if is_native else column
        for column, is_native in zip(matrix.T, native_categorical, strict=True)
    ]
    return pd.DataFrame(dict(enumerate(columns)))


_LIBRARIES: Mapping[str, Callable[[_Fit], Any]] = {
    "hist_gradient_boosting": _hist_gradient_boosting,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "catboost": _catboost,
}


@contextlib.contextmanager
def _reporting(iterations: Callable[[], int], fit: _Fit) -> Iterator[None]:
    """Report the number of iterations of a model while it is fitted inside."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_REPORT_SECONDS):
            fit.on_progress("boosting iterations", iterations(), fit.most_iterations)

    watcher = threading.Thread(target=watch, name="gradient-boosting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _matrix(columns: Columns, features: Sequence[BaselineFeature]) -> NDArray[np.float32]:
    """Return the features side by side, ``[rows, inputs]``: two inputs for a multi-valued feature, one for others.

    float32 holds ids exactly up to 16.7 million and halves the memory.
    """
    parts: list[NDArray[Any]] = []
    for feature, values in zip(features, feature_columns(columns, features), strict=True):
        if feature.form == "ids":
            length = np.count_nonzero(values, axis=1)
            last = np.take_along_axis(values, np.maximum(length - 1, 0)[:, None], axis=1)[:, 0]
            parts += [last, length]
        else:
            parts.append(values)
    matrix = np.empty((len(parts[0]), len(parts)), dtype=np.float32)
    for position, part in enumerate(parts):
        matrix[:, position] = part
    return matrix


def _id_columns(features: Sequence[BaselineFeature]) -> list[bool]:
    """Return True for each column of ``_matrix`` that holds ids."""
    of_form = {"value": [False], "id": [True], "ids": [True, False]}
    return [is_id for feature in features for is_id in of_form[feature.form]]


def _monotone(features: Sequence[BaselineFeature]) -> tuple[int, ...]:
    """Return the constraint of each column of ``_matrix``."""
    return tuple(
        of for feature in features for of in ((feature.monotone, 0) if feature.form == "ids" else (feature.monotone,))
    )


def _ordinals_missing_as_nan(
    matrix: NDArray[np.float32], features: Sequence[BaselineFeature], native: Sequence[bool]
) -> NDArray[np.float32]:
    """Mark missing ids as NaN where ids are ordered: 0 would read as more frequent than the most frequent one."""
    ordered = [is_id and not split for is_id, split in zip(_id_columns(features), native, strict=True)]
    marked = matrix.copy()
    for position in np.flatnonzero(ordered):
        marked[marked[:, position] == _MISSING_ID, position] = np.nan
    return marked
