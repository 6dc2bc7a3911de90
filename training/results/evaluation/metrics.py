"""Metrics of a model's predictions on a held-back split: of scores and of ranked lists.

scikit-learn is imported where it is used: it takes more than a second, and a comparison of values does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RECALL_AT_PRECISIONS = (0.3, 0.5, 0.7)
RANKING_KS = (1, 5, 10, 20)
PRECISION_KS = (1, 3, 5)

# Of these a smaller value is better; of a bias, one nearer to 0; of all others, a larger one.
_ERRORS = ("log_loss", "brier", "rmse", "mae", "mse", "loss", "deviance", "pinball", "interval_width")
_BIAS = "bias"
# They describe the rows or the recommended candidates, or are right at a value that the quantiles say.
_WITHOUT_VERDICT = ("base_rate", "interval_coverage", "coverage", "mean_popularity", "novelty")


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
    label: ArrayLike, scores: ArrayLike, weight: ArrayLike | None = None, *, split: str = "test"
) -> dict[str, float]:
    """Return the metrics of a probability per row and class.

    Args:
        label: class numbers from 0, ``[rows]``.
        scores: probabilities, ``[rows, classes]``.
        weight: non-negative row weights, ``[rows]``.
        split: name of the split for messages.

    Returns:
        ``accuracy``, ``macro_f1`` (the mean over the classes among labels and predictions), ``log_loss`` (nats) and
        ``base_rate`` (the share of the most frequent class).

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
    # float32 probabilities sum to 1 within 1e-6 only, which scikit-learn warns of.
    sure = np.clip(probabilities / probabilities.sum(axis=1, keepdims=True), 1e-15, 1.0)
    return {
        "accuracy": float(metrics.accuracy_score(labels, best, sample_weight=weights)),
        "macro_f1": float(metrics.f1_score(labels, best, average="macro", sample_weight=weights, zero_division=0.0)),
        "log_loss": float(np.average(-np.log(sure[np.arange(len(labels)), labels.astype(np.int64)]), weights=weights)),
        "base_rate": float(np.bincount(labels.astype(np.int64), weights).max() / weights.sum()),
    }


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
        Those of :func:`binary_metrics` over all pairs of a row and a label ("micro averages"), and ``precision_at_K``
        for each K up to the number of labels: the share of the K labels with the highest scores that the row has,
        averaged over rows.

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
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(PRECISION_KS)]
    hits = np.take_along_axis(labels, best, axis=1)
    for k in PRECISION_KS:
        if k <= labels.shape[1]:
            result[f"precision_at_{k}"] = float(np.average(hits[:, :k].mean(axis=1), weights=weights))
    return result


def ranking_metrics(
    recommended_ids: ArrayLike,
    held_back: ArrayLike,
    ks: Sequence[int] = RANKING_KS,
    *,
    queries: ArrayLike | None = None,
) -> dict[str, float]:
    """Return recall, NDCG and MRR at each k: means over rows, or over queries that have several rows each.

    Of a query with the relevant items R, recall@k is the number of them among the first k, divided by |R| (the protocol
    of NGCF and LightGCN: Wang et al. 2019, He et al. 2020). NDCG@k is the sum of 1 / log2(1 + rank) over the relevant
    items listed, divided by its largest possible value (Järvelin and Kekäläinen, 2002). MRR@k is 1 / rank of the first
    one, or 0. MAP@k is the sum of the precision at the rank of each relevant item listed, divided by min(|R|, k).
    Hit rate@k is the share of queries with any relevant item listed. An id that a list repeats counts once.

    Args:
        recommended_ids: ids, best first, ``[rows, k]``; fill short lists with an id that no item has, -1 say.
        held_back: the item that each row's user took next, ``[rows]``.
        ks: list lengths to report.
        queries: what each row belongs to, a user say, ``[rows]``: its rows' items are all relevant, and the list of its
            first row is measured. By default each row is its own query.

    Returns:
        ``recall_at_K``, ``ndcg_at_K`` and ``mrr_at_K`` for each K (MLflow refuses ``@`` in a metric's name); with
        ``queries`` also ``hit_rate_at_K`` and ``map_at_K``, which equal recall and MRR for one relevant item.

    Raises:
        ValueError: no rows, shapes or types that do not match, or a k longer than the lists.
    """
    values = ranking_values(recommended_ids, held_back, ks, queries=queries)
    return {name: float(of.mean()) for name, of in values.items()}


def ranking_values(
    recommended_ids: ArrayLike,
    held_back: ArrayLike,
    ks: Sequence[int] = RANKING_KS,
    *,
    queries: ArrayLike | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of each query, whose means :func:`ranking_metrics` returns: ``[queries]`` by name."""
    lists, wanted = np.asarray(recommended_ids), np.asarray(held_back)
    if lists.ndim != 2 or wanted.shape != (len(lists),):
        raise ValueError(
            f"recommended_ids has shape {lists.shape} and held_back {wanted.shape}; pass [rows, k] and [rows]"
        )
    if not wanted.size:
        raise ValueError("held_back has no rows; hold back at least one interaction")
    if _is_text(lists) != _is_text(wanted):
        raise ValueError(f"recommended_ids is {lists.dtype} but held_back is {wanted.dtype}; use the same ids in both")
    for k in ks:
        if not 1 <= k <= lists.shape[1]:
            raise ValueError(f"k {k} is not between 1 and the {lists.shape[1]} recommended ids per row")
    query = np.arange(len(wanted))
    if queries is not None:
        names = np.asarray(queries)
        if names.shape != wanted.shape:
            raise ValueError(f"queries has shape {names.shape} and held_back {wanted.shape}; pass [rows] of both")
        _, first, query = np.unique(names, return_index=True, return_inverse=True)
        lists = lists[first]

    hits, relevant = _hits(lists, query, wanted)
    gain = 1 / np.log2(np.arange(2, lists.shape[1] + 2))
    found = hits.cumsum(axis=1)
    rank = np.arange(1, lists.shape[1] + 1)
    result: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        most = np.minimum(relevant, k)
        is_hit = found[:, k - 1] > 0
        result[f"recall_at_{k}"] = found[:, k - 1] / relevant
        result[f"ndcg_at_{k}"] = hits[:, :k] @ gain[:k] / gain.cumsum()[most - 1]
        result[f"mrr_at_{k}"] = np.where(is_hit, 1 / (hits[:, :k].argmax(axis=1) + 1), 0.0)
        if queries is not None:
            result[f"hit_rate_at_{k}"] = is_hit.astype(np.float64)
            result[f"map_at_{k}"] = (hits * found / rank)[:, :k].sum(axis=1) / most
    return result


def _hits(
    lists: NDArray[Any], query: NDArray[np.int64], wanted: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return where the list of each query names a relevant item for the first time, and their number by query."""
    # Numbers for ids make (query, id) one integer.
    names, number = np.unique(np.concatenate([lists.ravel(), wanted]), return_inverse=True)
    relevant = np.unique(query * len(names) + number[lists.size :])
    listed = np.repeat(np.arange(len(lists)), lists.shape[1]) * len(names) + number[: lists.size]
    is_first = np.zeros(lists.size, bool)
    is_first[np.unique(listed, return_index=True)[1]] = True
    hits = np.isin(listed, relevant) & is_first
    return hits.reshape(lists.shape), np.bincount(relevant // len(names), minlength=len(lists))


def catalogue_metrics(recommended: ArrayLike, counts: ArrayLike) -> dict[str, float]:
    """Return how much of the catalogue is recommended, and how popular it is.

    Args:
        recommended: positions of candidates in ``counts``, ``[rows, k]``; negative where a list has no candidate.
        counts: number of training interactions of each candidate, ``[candidates]``.

    Returns:
        ``coverage``, the share of the candidates that are in any list; ``mean_popularity``, the average recommendation
        popularity: the mean over lists of the mean count of their candidates (Yin et al. 2012); and ``novelty``, the
        same mean of the self-information, -log2 of a candidate's share of the interactions (Zhou et al. 2010, who take
        its share of the users). Empty lists do not count.
    """
    positions, interactions = np.asarray(recommended, np.int64), np.asarray(counts, np.float64)
    is_listed = positions >= 0
    length = is_listed.sum(axis=1)
    # A candidate without any interaction is as novel as one that has a single one: its logarithm is infinite.
    information = -np.log2(np.maximum(interactions, 1) / max(interactions.sum(), 1))

    def mean(values: NDArray[np.float64]) -> float:
        sums = np.where(is_listed, values[positions], 0.0).sum(axis=1)
        return float((sums[length > 0] / length[length > 0]).mean()) if length.any() else 0.0

    return {
        "coverage": float(np.unique(positions[is_listed]).size / interactions.size),
        "mean_popularity": mean(interactions),
        "novelty": mean(information),
    }


def is_better(metric: str, value: float, other: float) -> bool:
    """Return whether the value of a metric is better than another one; some have no better value."""
    name = metric.removeprefix("val_")
    if name in _WITHOUT_VERDICT:
        return False
    if name == _BIAS:
        return abs(value) < abs(other)
    return value < other if name.startswith(_ERRORS) else value > other


def _is_text(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "USOT"


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
