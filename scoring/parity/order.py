"""Changes of order between two scorings: of the rows by their score, and of each row's best labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.parity.differences import absolute_difference


@dataclass(frozen=True)
class OrderChanges:
    """What becomes of the order of rows or labels.

    Attributes:
        rows: Rows whose order changes by more than rounding.
        identical_share: Share of the rows whose order is the same to the last bit.
    """

    rows: int
    identical_share: float


def rank_changes(expected: NDArray[np.float64], actual: NDArray[np.float64], tolerance: float) -> OrderChanges:
    """Tell how many rows trade places when they are ordered by their score.

    A row changes its order where it stands on the other side of some other row than before, and the reference's scores
    of the two lie more than ``tolerance`` apart: nearer ones tie, and rounding alone decides between them. Its order is
    identical where as many rows stand before it as before; equal scores stand in the order of the rows. Rows with NaN
    have no place.

    Args:
        expected: Scores ``[rows]``.
        actual: The other side's.
        tolerance: What ties.
    """
    has_place = ~(np.isnan(expected) | np.isnan(actual))
    order = np.argsort(expected[has_place], kind="stable")
    same_place = order == np.argsort(actual[has_place], kind="stable")
    before, after = expected[has_place][order], actual[has_place][order]
    # Of the rows that were clearly lower, the highest score now; of those that were clearly higher, the lowest.
    highest = np.concatenate([[-np.inf], np.maximum.accumulate(after)])
    lowest = np.concatenate([np.minimum.accumulate(after[::-1])[::-1], [np.inf]])
    is_overtaken = highest[np.searchsorted(before, before - tolerance, side="left")] > after
    overtakes = lowest[np.searchsorted(before, before + tolerance, side="right")] < after
    return OrderChanges(int((is_overtaken | overtakes).sum()), float(same_place.sum() / len(expected)))


def label_changes(
    expected: NDArray[np.float64], actual: NDArray[np.float64], top_k: int, tolerance: float
) -> OrderChanges:
    """Tell how many rows get other labels as their ``top_k`` best ones.

    A row changes where, by the reference's own scores, the labels that the other side prefers are worse by more than
    ``tolerance`` than the reference's best: at equal ranks, both sides' choice ordered by those scores. So labels that
    tie may stand for each other. Its order is identical where the same labels come in the same order.

    Args:
        expected: Scores ``[rows, labels]``.
        actual: The other side's.
        top_k: How many labels are the best; all where there are fewer.
        tolerance: What ties.
    """
    best, chosen = (np.argsort(-scores, axis=1, kind="stable")[:, :top_k] for scores in (expected, actual))
    of_best = np.take_along_axis(expected, best, axis=1)
    of_chosen = -np.sort(-np.take_along_axis(expected, chosen, axis=1), axis=1)
    changed = (absolute_difference(of_best, of_chosen) > tolerance).any(axis=1)
    return OrderChanges(int(changed.sum()), float((best == chosen).all(axis=1).mean()))
