"""Metrics of a model's scores on a held-back split.

scikit-learn is imported where it is used: it takes more than a second, and a comparison of values does not need it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RECALL_AT_PRECISIONS = (0.3, 0.5, 0.7)
PRECISION_KS = (1, 3, 5)
# The names of their metrics have one of these in front.
SEGMENTS = ("new_items", "light_users")
# A row is said to have the labels whose probability is so high.
CLASS_THRESHOLD = 0.5

# Of these a smaller value is better; of a bias, one nearer to 0; of all others, a larger one.
_ERRORS = (
    "log_loss",
    "brier",
    "rmse",
    "mae",
    "rank_mae",
    "mse",
    "loss",
    "deviance",
    "pinball",
    "interval_width",
    "ece",
    "cost",
)
_BIAS = "bias"
# They describe the rows or the recommended candidates, or are right at a value that the quantiles fix.
_WITHOUT_VERDICT = ("base_rate", "calibration", "interval_coverage", "coverage", "mean_popularity", "novelty")
_ROWS = "_rows"
# Of means of equal ranks this may be left as their variance.
_ROUNDING = 1e-9


def check_binary_label(label: ArrayLike, *, split: str) -> NDArray[np.int64]:
    """Return the label as int64 ``[rows]`` after a check that it can be used for training and evaluation.

    Raises:
        ValueError: no rows, a value other than 0 and 1, or one class only.
    """
    values = _one_label_per_row(label, split)
    if not values.size:
        raise ValueError(f"split {split!r} has no rows; choose bounds that leave rows in every split")
    other = np.flatnonzero((values != 0) & (values != 1))
    if other.size:
        raise ValueError(f"label is {values[other[0]]} in row {other[0]} of split {split!r}; use 0 and 1 only")
    if values.min() == values.max():
        raise ValueError(
            f"label has one class only ({int(values[0])}) in split {split!r} ({values.size} rows); "
            "choose a split or a label definition that has both classes"
        )
    return values.astype(np.int64)


def binary_metrics(
    label: ArrayLike,
    score: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    split: str = "test",
) -> dict[str, float]:
    """Return the metrics of predicted probabilities.

    Args:
        label: 0 or 1, ``[rows]``.
        score: probability of label 1, ``[rows]``.
        weight: non-negative row weights, ``[rows]``; rows of weight zero count as absent.
        split: name of the split for messages.

    Returns:
        ``auc``, ``pr_auc`` (average precision), ``log_loss`` (nats), ``brier``, ``base_rate``, and
        ``recall_at_precision_P``: the largest recall at a threshold with precision of at least P, 0 when none has.

    Raises:
        ValueError: no rows, one class only, unequal lengths, a score outside 0 to 1, or a negative weight.
    """
    from sklearn import metrics

    labels = _one_label_per_row(label, split)
    scores = _column("score", score, labels.shape, split)
    outside = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if outside.size:
        raise ValueError(
            f"score is {scores[outside[0]]} in row {outside[0]} of split {split!r} ({outside.size} such rows); "
            "probabilities lie between 0 and 1"
        )
    if weight is None:
        weights = np.ones(labels.shape)
    else:
        weights = _column("weight", weight, labels.shape, split)
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if bad.size:
            raise ValueError(f"weight is {weights[bad[0]]} in row {bad[0]} of split {split!r}; use zero or more")
    used = weights > 0
    labels = check_binary_label(labels[used], split=split)
    scores, weights = scores[used], weights[used]

    precision, recall, _ = metrics.precision_recall_curve(labels, scores, sample_weight=weights)
    result = {
        "auc": metrics.roc_auc_score(labels, scores, sample_weight=weights),
        "pr_auc": metrics.average_precision_score(labels, scores, sample_weight=weights),
        "log_loss": metrics.log_loss(labels, scores, sample_weight=weights, labels=[0, 1]),
        "brier": metrics.brier_score_loss(labels, scores, sample_weight=weights),
        "base_rate": np.average(labels, weights=weights),
    }
    for wanted in RECALL_AT_PRECISIONS:
        # The curve ends with precision 1 at recall 0, so it always has at least that point.
        result[f"recall_at_precision_{wanted:g}"] = recall[precision >= wanted].max()
    return {name: float(value) for name, value in result.items()}


def regression_metrics(
    label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, *, split: str = "test"
) -> dict[str, float]:
    """Return the metrics of predicted numbers.

    Args:
        label: actual values, ``[rows]``.
        score: predictions, ``[rows]``.
        weight: non-negative row weights, ``[rows]``.
        split: name of the split for messages.

    Returns:
        ``rmse``, ``mae``, ``r2`` (the share of the variance that is explained; 0 for the mean of the rows) and ``bias``
        (the mean of prediction minus actual).

    Raises:
        ValueError: no rows, or unequal lengths.
    """
    from sklearn import metrics

    labels = _one_label_per_row(label, split).astype(np.float64)
    if not labels.size:
        raise ValueError(f"split {split!r} has no rows; choose bounds that leave rows in every split")
    scores = _column("score", score, labels.shape, split)
    weights = np.ones(labels.shape) if weight is None else _column("weight", weight, labels.shape, split)
    return {
        "rmse": float(metrics.root_mean_squared_error(labels, scores, sample_weight=weights)),
        "mae": float(metrics.mean_absolute_error(labels, scores, sample_weight=weights)),
        "r2": float(metrics.r2_score(labels, scores, sample_weight=weights)) if labels.size > 1 else 0.0,
        "bias": float(np.average(scores - labels, weights=weights)),
    }


def multi_class_metrics(
    label: ArrayLike,
    scores: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    split: str = "test",
    is_ordinal: bool = False,
) -> dict[str, float]:
    """Return the metrics of a probability per row and class.

    Args:
        label: class numbers from 0, ``[rows]``.
        scores: probabilities, ``[rows, classes]``.
        weight: non-negative row weights, ``[rows]``.
        split: name of the split for messages.
        is_ordinal: the classes have an order, that of their numbers.

    Returns:
        ``accuracy``, ``macro_f1`` (the mean over the classes among labels and predictions), ``log_loss`` (nats) and
        ``base_rate`` (the share of the most frequent class); of classes that have an order also :func:`rank_metrics` of
        the most probable class.

    Raises:
        ValueError: no rows, or shapes that do not match.
    """
    from sklearn import metrics

    labels, probabilities = _one_label_per_row(label, split), np.asarray(scores, np.float64)
    if not labels.size:
        raise ValueError(f"split {split!r} has no rows; choose bounds that leave rows in every split")
    if probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise ValueError(
            f"scores has shape {probabilities.shape} and label {labels.shape} in split {split!r}; pass [rows, classes] "
            f"and [rows]"
        )
    weights = np.ones(len(labels)) if weight is None else _column("weight", weight, labels.shape, split)
    best = probabilities.argmax(axis=1)
    of_ranks = rank_metrics(np.average(rank_columns(labels, best), axis=0, weights=weights)[:, None])
    # float32 probabilities sum to 1 within 1e-6 only, which scikit-learn warns of.
    sure = np.clip(probabilities / probabilities.sum(axis=1, keepdims=True), 1e-15, 1.0)
    return {
        "accuracy": float(metrics.accuracy_score(labels, best, sample_weight=weights)),
        "macro_f1": float(metrics.f1_score(labels, best, average="macro", sample_weight=weights, zero_division=0.0)),
        "log_loss": float(np.average(-np.log(sure[np.arange(len(labels)), labels.astype(np.int64)]), weights=weights)),
        "base_rate": float(np.bincount(labels.astype(np.int64), weights).max() / weights.sum()),
        **({name: float(value[0]) for name, value in of_ranks.items()} if is_ordinal else {}),
    }


def rank_columns(label: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    """Return of each row the values whose means :func:`rank_metrics` takes: ``[rows, 6]``, for ranks ``[rows]``."""
    actual, given = label.astype(np.float64), predicted.astype(np.float64)
    error = given - actual
    return np.stack([np.abs(error), error**2, actual, given, actual**2, given**2], axis=1)


def rank_metrics(means: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return ``rank_mae`` and ``quadratic_kappa`` from the means of :func:`rank_columns`, ``[6, …]``: ``[…]`` each.

    ``rank_mae`` is the mean distance of the ranks of prediction and label. ``quadratic_kappa`` is 1 minus their mean
    squared distance over that of independent predictions and labels of the same frequencies: 1 for predictions that are
    all right, 0 for those of chance and of one class alone. Source: Cohen 1968, "Weighted kappa", with squared weights.
    """
    mae, square, actual, given, actual_square, given_square = means
    by_chance = actual_square + given_square - 2 * actual * given
    # Where labels and predictions are all of one class, they cannot be distinguished from chance.
    kappa = 1 - np.divide(square, by_chance, out=np.ones_like(square), where=by_chance > _ROUNDING)
    return {"rank_mae": mae, "quadratic_kappa": kappa}


def multi_label_metrics(
    label: ArrayLike,
    scores: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    split: str = "test",
) -> dict[str, float]:
    """Return the metrics of a probability per row and label.

    Args:
        label: 0 or 1, ``[rows, labels]``.
        scores: probability that the row has the label, ``[rows, labels]``.
        weight: non-negative row weights, ``[rows]``; rows of weight zero count as absent.
        split: name of the split for messages.

    Returns:
        Those of :func:`binary_metrics` over all pairs of a row and a label ("micro averages"); ``micro_f1``, the F1
        score of the pairs with a probability of 0.5 or more; and ``precision_at_K`` for each K up to the number of
        labels: the share of the K labels with the highest scores that the row has, averaged over rows.

    Raises:
        ValueError: as :func:`binary_metrics`, or shapes that do not match.
    """
    labels, probabilities = np.asarray(label), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != probabilities.shape:
        raise ValueError(
            f"label has shape {labels.shape} and scores {probabilities.shape} in split {split!r}; pass [rows, labels]"
        )
    weights = np.ones(len(labels)) if weight is None else _column("weight", weight, (len(labels),), split)
    result = binary_metrics(labels.ravel(), probabilities.ravel(), np.repeat(weights, labels.shape[1]), split=split)
    right, either = right_and_either(labels > 0, probabilities)
    result["micro_f1"] = float(2 * (weights @ right) / (weights @ either))
    values = precisions_at(labels, probabilities)
    return result | {name: float(np.average(of, weights=weights)) for name, of in values.items()}


def right_and_either(
    positive: NDArray[np.bool_], probabilities: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row's number of correctly predicted labels, and its numbers of labels and of predicted labels added.

    The micro-averaged F1 score is twice the sum of the first, divided by that of the second.
    """
    is_named = probabilities >= CLASS_THRESHOLD
    return (positive & is_named).sum(axis=1), positive.sum(axis=1) + is_named.sum(axis=1)


def precisions_at(labels: NDArray[Any], probabilities: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return ``precision_at_K`` of each row, ``[rows]`` by name, for ``[rows, labels]`` of both."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(PRECISION_KS)]
    hits = np.take_along_axis(labels, best, axis=1)
    return {f"precision_at_{k}": hits[:, :k].mean(axis=1) for k in PRECISION_KS if k <= labels.shape[1]}


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether the value of a metric is better than another one; some have no better value."""
    name = metric.removeprefix("val_")
    if name.endswith((*_WITHOUT_VERDICT, _ROWS)):
        return False
    if name == _BIAS:
        return abs(value) < abs(other)
    return value < other if name.startswith(_ERRORS) else value > other


def _one_label_per_row(label: ArrayLike, split: str) -> NDArray[Any]:
    values = np.asarray(label)
    if values.ndim != 1:
        raise ValueError(f"label has shape {values.shape} in split {split!r}; pass one label per row")
    return values


def _column(name: str, values: ArrayLike, shape: tuple[int, ...], split: str) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != shape:
        raise ValueError(f"{name} has shape {column.shape} but label has {shape} in split {split!r}; they must match")
    return column
