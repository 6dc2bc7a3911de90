"""Metrics of ranked lists: their quality, and the share of the catalogue that they show. NumPy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RANKING_KS = (1, 5, 10, 20)


def ranking_metrics(
    recommended_ids: ArrayLike,
    held_back: ArrayLike,
    ks: Sequence[int] = RANKING_KS,
    *,
    queries: ArrayLike | None = None,
    rows: ArrayLike | None = None,
) -> dict[str, float]:
    """Return recall, NDCG, MRR, hit rate and MAP at each k: means over rows, or over queries that have several rows.

    Of a query with the relevant items R, recall@k is the number of them among the first k, divided by |R| (the protocol
    of NGCF and LightGCN: Wang et al. 2019, He et al. 2020). NDCG@k is the sum of 1 / log2(1 + rank) over the relevant
    items listed, divided by its largest possible value (Järvelin and Kekäläinen, 2002). MRR@k is 1 / rank of the first
    one, or 0. Hit rate@k is the share of queries with any relevant item listed. MAP@k is the sum of the precision at
    the rank of each relevant item listed, divided by min(|R|, k). For one relevant item hit rate equals recall, and MAP
    equals MRR. An id that a list repeats counts once.

    Args:
        recommended_ids: ids, best first, ``[rows, k]``; fill short lists with an id that no item has, for example -1.
        held_back: the item that each row's user took next, ``[rows]``; or with ``rows`` all items that they took.
        ks: list lengths to report.
        queries: the group of each held-back item, such as its user; the items of a group are all relevant, and the list
            of its first row is measured. By default each row is its own query.
        rows: the row of each held-back item, from 0; by default row after row has one.

    Returns:
        ``recall_at_K``, ``ndcg_at_K``, ``mrr_at_K``, ``hit_rate_at_K`` and ``map_at_K`` for each K (MLflow refuses
        ``@`` in a metric's name).

    Raises:
        ValueError: no rows, shapes or types that do not match, or a k longer than the lists.
    """
    values = ranking_values(recommended_ids, held_back, ks, queries=queries, rows=rows)
    return {name: float(of.mean()) for name, of in values.items()}


def ranking_values(
    recommended_ids: ArrayLike,
    held_back: ArrayLike,
    ks: Sequence[int] = RANKING_KS,
    *,
    queries: ArrayLike | None = None,
    rows: ArrayLike | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of each query, whose means :func:`ranking_metrics` returns: ``[queries]`` by name.

    The queries are in the order of their names (``np.unique``), without names in that of the rows that hold an item
    back.
    """
    lists, wanted = np.asarray(recommended_ids), np.asarray(held_back)
    row = np.arange(len(lists)) if rows is None else np.asarray(rows)
    if lists.ndim != 2 or wanted.shape != row.shape:
        raise ValueError(
            f"recommended_ids has shape {lists.shape} and held_back {wanted.shape}; pass [rows, k] and [rows], or the "
            f"row of each held-back item as rows"
        )
    if not wanted.size:
        raise ValueError("held_back has no rows; hold back at least one interaction")
    if _is_text(lists) != _is_text(wanted):
        raise ValueError(f"recommended_ids is {lists.dtype} but held_back is {wanted.dtype}; use the same ids in both")
    for k in ks:
        if not 1 <= k <= lists.shape[1]:
            raise ValueError(f"k {k} is not between 1 and the {lists.shape[1]} recommended ids per row")
    names = row if queries is None else np.asarray(queries)
    if names.shape != wanted.shape:
        raise ValueError(f"queries has shape {names.shape} and held_back {wanted.shape}; pass [rows] of both")
    _, first, query = np.unique(names, return_index=True, return_inverse=True)
    return list_values(lists[row[first]], query, wanted, ks)


def list_values(
    lists: NDArray[Any], query: NDArray[np.int64], relevant: NDArray[Any], ks: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    """Return the metrics of one list per query: ``[queries]`` by name.

    Args:
        lists: ids, best first, ``[queries, k]``.
        query: number of the query of each relevant item, ``[items]``; every query has one at least.
        relevant: ids of the relevant items, ``[items]``.
        ks: list lengths, each from 1 to k.
    """
    hits, count = _hits(lists, query, relevant)
    gain = 1 / np.log2(np.arange(2, lists.shape[1] + 2))
    found = hits.cumsum(axis=1)
    rank = np.arange(1, lists.shape[1] + 1)
    result: dict[str, NDArray[np.float64]] = {}
    for k in ks:
        most = np.minimum(count, k)
        is_hit = found[:, k - 1] > 0
        result[f"recall_at_{k}"] = found[:, k - 1] / count
        result[f"ndcg_at_{k}"] = hits[:, :k] @ gain[:k] / gain.cumsum()[most - 1]
        result[f"mrr_at_{k}"] = np.where(is_hit, 1 / (hits[:, :k].argmax(axis=1) + 1), 0.0)
        result[f"hit_rate_at_{k}"] = is_hit.astype(np.float64)
        result[f"map_at_{k}"] = (hits * found / rank)[:, :k].sum(axis=1) / most
    return result


def _hits(
    lists: NDArray[Any], query: NDArray[np.int64], wanted: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return the first places of the relevant items in each query's list, and their number by query."""
    # Numbers for ids make (query, id) one integer.
    names, number = np.unique(np.concatenate([lists.ravel(), wanted]), return_inverse=True)
    relevant = np.unique(query * len(names) + number[lists.size :])
    listed = np.repeat(np.arange(len(lists)), lists.shape[1]) * len(names) + number[: lists.size]
    is_first = np.zeros(lists.size, bool)
    is_first[np.unique(listed, return_index=True)[1]] = True
    hits = np.isin(listed, relevant) & is_first
    return hits.reshape(lists.shape), np.bincount(relevant // len(names), minlength=len(lists))


def catalogue_metrics(recommended: ArrayLike, counts: ArrayLike) -> dict[str, float]:
    """Return the recommended share of the catalogue, and its popularity.

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
    # A candidate without any interaction is as one that has a single one: its logarithm is infinite.
    information = -np.log2(np.maximum(interactions, 1) / max(interactions.sum(), 1))

    def mean(values: NDArray[np.float64]) -> float:
        sums = np.where(is_listed, values[positions], 0.0).sum(axis=1)
        return float((sums[length > 0] / length[length > 0]).mean()) if length.any() else 0.0

    return {
        "coverage": float(np.unique(positions[is_listed]).size / interactions.size),
        "mean_popularity": mean(interactions),
        "novelty": mean(information),
    }


def _is_text(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "USOT"
