"""Changes of order between two scorings: rows sorted by score, and the best labels of each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mirrorspark.scoring.parity.differences import absolute_difference


@dataclass(frozen=True)
class OrderChanges:
    """Changes of the order of rows or labels.

    Attributes:
        rows: Rows whose order changes by more than rounding.
        identical_share: Share of the rows whose order is the same to the last bit.
    """

    rows: int
    identical_share: float


def rank_changes(expected: NDArray[np.float64], actual: NDArray[np.float64], tolerance: float) -> OrderChanges:
    """Count the rows that change places when rows are sorted by score.

    A row changes its order if it passes another row whose reference score is more than ``tolerance`` away; nearer
    scores tie, because only rounding decides between them. Its order is identical if its rank is the same; equal scores
    are ranked in the order of the rows. Rows with NaN have no rank.

    Args:
        expected: The reference's scores ``[rows]``.
        actual: The candidate's scores.
        tolerance: Largest difference of scores that tie.
    """
    has_place = ~(np.isnan(expected) | np.isnan(actual))
    order = np.argsort(expected[has_place], kind="stable")
    same_place = order == np.argsort(actual[has_place], kind="stable")
    before, after = expected[has_place][order], actual[has_place][order]
    # The highest candidate score of the clearly lower rows, and the lowest of the clearly higher ones.
    highest = np.concatenate([[-np.inf], np.maximum.accumulate(after)])
    lowest = np.concatenate([np.minimum.accumulate(after[::-1])[::-1], [np.inf]])
    is_overtaken = highest[np.searchsorted(before, before - tolerance, side="left")] > after
    overtakes = lowest[np.searchsorted(before, before + tolerance, side="right")] < after
    return OrderChanges(int((is_overtaken | overtakes).sum()), float(same_place.sum() / len(expected)))


def label_changes(
    expected: NDArray[np.float64], actual: NDArray[np.float64], top_k: int, tolerance: float
) -> OrderChanges:
    """Count the rows whose ``top_k`` best labels change.

    The reference's scores of both sides' best labels are sorted and compared rank by rank. A row changes if the
    candidate's labels are worse by more than ``tolerance`` at some rank, so labels that tie can replace each other. The
    order is identical if the same labels come in the same order.

    Args:
        expected: The reference's scores ``[rows, labels]``.
        actual: The candidate's scores.
        top_k: Number of best labels; all if there are fewer.
        tolerance: Largest difference of scores that tie.
    """
    best, chosen = (np.argsort(-scores, axis=1, kind="stable")[:, :top_k] for scores in (expected, actual))
    of_best = np.take_along_axis(expected, best, axis=1)
    of_chosen = -np.sort(-np.take_along_axis(expected, chosen, axis=1), axis=1)
    changed = (absolute_difference(of_best, of_chosen) > tolerance).any(axis=1)
    return OrderChanges(int(changed.sum()), float((best == chosen).all(axis=1).mean()))
