"""The held-back items of a retrieval split by query and user, and metrics of segments: new items, light users."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import FeatureSpec, kinds
from mirrorspark.data_pipelines.reading import Dataset, held_back_candidates, query_digests
from mirrorspark.evaluation import SEGMENTS, bootstrap
from mirrorspark.models.retrieval import catalogue_metrics, ranking_metrics

# Share of a split's rows whose users count as light; those with as many interactions as the last of them do, too.
LIGHT_SHARE = 0.25


@dataclass(frozen=True)
class HeldBackItems:
    """Facts of each held-back item of a split, in the stored order of the rows, of which each has one or several.

    Attributes:
        rows: int64 ``[items]``, the item's row.
        queries: uint64 ``[items]``, equal for rows that ask for the same list.
        users: int64 ``[items]``: the ids of :attr:`data_pipelines.features.FittedFeatures.user`. A user that the
            vocabulary lacks has a negative number of its own, as has every row of a dataset without users.
        unit: The objects that ``users`` number, in words.
        candidates: int64 ``[items]``: the item's id (:func:`data_pipelines.reading.held_back_candidates`).
        is_new: bool ``[items]``: the item has no training row.
        is_light: bool ``[items]``: the user is among the quarter with the fewest known interactions; False in all rows
            of a dataset without users.
    """

    rows: NDArray[np.int64]
    queries: NDArray[np.uint64]
    users: NDArray[np.int64]
    unit: str
    candidates: NDArray[np.int64]
    is_new: NDArray[np.bool_]
    is_light: NDArray[np.bool_]


def held_back_items(dataset: Dataset, split: str) -> HeldBackItems:
    """Read the facts of the held-back items of ``split``.

    A user's known interactions are those that the row excludes, else those of its longest history, else the user's
    training rows.
    """
    spec, candidate = dataset.spec, dataset.spec.candidate
    blocks = list(dataset.blocks(split, keys=True))
    first_rows = accumulate((block.rows for block in blocks), initial=0)
    name = dataset.features.user
    users = -1 - np.arange(sum(block.rows for block in blocks))
    if name is not None:
        ids = np.concatenate([block.features[name] for block in blocks])
        # Users that the vocabulary lacks are as their rows, for all we know.
        users = np.where(ids < kinds.FIRST_VOCABULARY_ID, users, ids)
    is_light = np.zeros(len(users), np.bool_) if name is None else _is_light(dataset, blocks, name, users)
    held_back = [held_back_candidates(block, spec) for block in blocks]
    candidates = np.concatenate([of.values for of in held_back])
    row = np.repeat(np.arange(len(users)), np.concatenate([of.row_lengths for of in held_back]))
    counts = np.concatenate(
        [np.zeros(kinds.FIRST_VOCABULARY_ID), dataset.features.vocabulary(candidate).counts.to_numpy()]
    )
    return HeldBackItems(
        row,
        np.concatenate([query_digests(*part) for part in zip(blocks, repeat(spec), first_rows)])[row],
        users[row],
        bootstrap.TEST_ROWS if name is None else f"values of {name}",
        candidates,
        counts[np.maximum(candidates, kinds.OUT_OF_VOCABULARY_ID)] == 0,
        is_light[row],
    )


def segment_metrics(
    lists: NDArray[Any],
    held_back: NDArray[Any],
    items: HeldBackItems,
    k: int,
    positions: NDArray[Any],
    counts: ArrayLike,
) -> dict[str, float]:
    """Return the metrics of the lists of each segment, and its number of rows.

    Args:
        lists: ids, best first, ``[rows, k]``.
        held_back: the held-back items, ``[items]``.
        items: their facts.
        k: length of the lists.
        positions: positions of the candidates of the lists in ``counts``, ``[rows, k]``, negative for an empty place.
        counts: number of training interactions of each candidate, ``[candidates]``.

    Returns:
        ``new_items_recall_at_K`` and all others of :func:`ranking_metrics`, of which the new items alone are relevant;
        ``new_items_coverage`` and all others of :func:`catalogue_metrics`; ``new_items_rows``; and the same with
        ``light_users``. A segment without rows, or of all of them, is left out.
    """
    result: dict[str, float] = {}
    for segment, is_in in zip(SEGMENTS, (items.is_new, items.is_light), strict=True):
        if not is_in.any() or is_in.all():
            continue
        queries, of_items = items.queries[is_in], items.rows[is_in]
        found = ranking_metrics(lists, held_back[is_in], (k,), queries=queries, rows=of_items)
        rows = np.unique(of_items)
        found |= catalogue_metrics(positions[rows], counts) | {"rows": float(len(rows))}
        result |= {f"{segment}_{metric}": value for metric, value in found.items()}
    return result


def _is_light(
    dataset: Dataset, blocks: Sequence[block_format.Block], user: str, users: NDArray[np.int64]
) -> NDArray[np.bool_]:
    spec = dataset.spec
    if spec.exclude is not None or spec.histories:
        interactions = np.concatenate([_known_interactions(block, spec) for block in blocks])
    else:
        interactions = _rows_of(dataset, user, users)
    return np.asarray(interactions <= np.quantile(interactions, LIGHT_SHARE, method="lower"))


def _known_interactions(block: block_format.Block, spec: FeatureSpec) -> NDArray[np.int64]:
    """Return the number of its user's interactions that each row names, ``[rows]``."""
    lists = [block.features[name] for name in spec.histories] if block.excluded is None else [block.excluded]
    return np.max([np.count_nonzero(ids != kinds.MISSING_ID, axis=1) for ids in lists], axis=0)


def _rows_of(dataset: Dataset, user: str, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the training rows of the user of each row, ``[rows]``."""
    train = np.concatenate([block.features[user] for block in dataset.blocks("train")])
    counts = np.bincount(train, minlength=max(int(users.max()) + 1, 1))
    return np.where(users < 0, 0, counts[np.maximum(users, 0)])
