"""The best candidates of every row by NumPy alone: what the lists of an exported model are compared with."""

import numpy as np
import numpy.typing as npt

from data_pipelines.feature_kinds import FIRST_VOCABULARY_ID

# Scores that are in memory at a time, unless one row has more: 64 MB.
TILE_SCORES = 1 << 24


def best_candidates(
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.float32],
    excluded: npt.NDArray[np.int64] | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the ``k`` candidates with the highest dot products, best first; of equal ones the lower id is the better.

    A sort of all scores would begin with the same ones. Here they are made and looked through for so many rows at a
    time that they take 64 MB.

    Args:
        queries: float32 ``[rows, dim]``.
        candidates: float32 ``[ids, dim]``, those of a missing and of an unknown one first, which are no candidates.
        excluded: int64 ``[rows, any]``, ids that are none for the row; None where every row may have all.
        k: How many; no more than there are ids.

    Returns:
        Ids, int64 ``[rows, k]``, and their scores, float32 ``[rows, k]``: minus infinity where a row has fewer than
        ``k`` candidates, whose id means nothing.
    """
    ids = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float32)
    tile_rows = max(1, TILE_SCORES // len(candidates))
    for start in range(0, len(queries), tile_rows):
        rows = slice(start, start + tile_rows)
        tile = queries[rows] @ candidates.T
        tile[:, :FIRST_VOCABULARY_ID] = -np.inf
        if excluded is not None:
            np.put_along_axis(tile, excluded[rows], -np.inf, axis=1)
        for row, row_scores in enumerate(tile, start):
            ids[row] = _best(row_scores, k)
            scores[row] = row_scores[ids[row]]
    return ids, scores


def _best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the places of the ``k`` highest scores, the highest first and of equal ones the first."""
    cost = -scores
    # Those that are as good as the last one in are sorted, too: which of them are in is a matter of their places.
    possible = np.flatnonzero(~(cost > np.partition(cost, k - 1)[k - 1]))
    return possible[np.argsort(cost[possible], kind="stable")[:k]]
