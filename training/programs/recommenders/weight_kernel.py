"""Kernel that scores items by sparse weights. It has its own file because compiling it imports Numba."""

import numpy as np

from mirrorspark.data_pipelines import compile_kernel


@compile_kernel(
    "void(int64[::1], int32[::1], int64[::1], int32[::1], Array(float32, 1, 'C', readonly=True), float32[:, ::1])"
)
def add_weights(
    history_ends: np.ndarray,
    history_items: np.ndarray,
    ends: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Write the sums of the weights of each history's items to ``scores``, ``[rows, items]``.

    In double precision sums do not depend on their order, so that equal scores are equal everywhere. The sparse product
    of SciPy, which has the same bits, and its conversion to a dense array took four times as long.

    Args:
        history_ends: ``[rows + 1]``, the places in ``history_items``, from 0.
        history_items: The items of all histories.
        ends: ``[items + 1]``, the places of an item's weights, from 0.
        columns: The items that the weights score.
        values: The weights.
        scores: The result.
    """
    sums = np.zeros(scores.shape[1])
    for row in range(len(scores)):
        sums[:] = 0
        for place in range(history_ends[row], history_ends[row + 1]):
            item = history_items[place]
            for weight in range(ends[item], ends[item + 1]):
                sums[columns[weight]] += values[weight]
        scores[row] = sums
