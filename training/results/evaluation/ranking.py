"""The best candidates of every row, found with NumPy alone, as a reference for an exported model's lists."""

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.features import kinds

# Most scores in memory at a time, unless one row has more: 64 MB.
TILE_SCORES = 1 << 24


def best_candidates(
    queries: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.float32],
    excluded: npt.NDArray[np.int64] | None,
    k: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the ``k`` candidates with the highest dot products, best first; ties are broken by the lower id.

    The result equals the beginning of a sort of all scores. The rows are processed in parts whose scores take 64 MB.

    Args:
        queries: float32 ``[rows, dim]``.
        candidates: float32 ``[ids, dim]``; the first two, for missing and unknown ids, are not candidates.
        excluded: int64 ``[rows, any]``, ids that are not candidates for the row; None to exclude none.
        k: Length of the lists, at most the number of ids.

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
        tile[:, : kinds.FIRST_VOCABULARY_ID] = -np.inf
        if excluded is not None:
            np.put_along_axis(tile, excluded[rows], -np.inf, axis=1)
        for row, row_scores in enumerate(tile, start):
            ids[row] = _best(row_scores, k)
            scores[row] = row_scores[ids[row]]
    return ids, scores


def _best(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the positions of the ``k`` highest scores, the highest first, ties by position."""
    cost = -scores
    # Scores equal to the k-th one are sorted, too, since their positions decide which of them are included.
    possible = np.flatnonzero(~(cost > np.partition(cost, k - 1)[k - 1]))
    return possible[np.argsort(cost[possible], kind="stable")[:k]]
