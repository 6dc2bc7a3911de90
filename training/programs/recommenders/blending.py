"""Scores of a network and of classical recommenders together, in NumPy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mirrorspark.training.programs.recommenders.lists import RowScores

Numbers = npt.NDArray[np.float32]


def scaled(scores: Numbers) -> Numbers:
    """Return the scores with a mean of 0 and a highest one of 1 in each row; 0 where all of a row are equal.

    Scores of different models have no common unit. All items count, so that a scaled score depends neither on those
    that a row excludes nor on those that are unavailable.

    Args:
        scores: float32 ``[rows, items]``.
    """
    above = scores - scores.mean(axis=1, keepdims=True)
    highest = above.max(axis=1, keepdims=True)
    is_positive = highest > 0
    np.divide(above, highest, out=above, where=is_positive)
    above[~is_positive[:, 0]] = 0
    return above


def blended(network: Numbers, others: Sequence[Numbers], share: float) -> Numbers:
    """Return the sum of scaled scores, in which ``share`` is the network's, and the others divide the rest equally.

    Args:
        network: The network's scaled scores.
        others: Those of each classical recommender, at least one.
        share: Between 0 and 1.
    """
    total, part = np.float32(share) * network, np.empty_like(network)
    for one in others:
        total += np.multiply(one, np.float32((1 - share) / len(others)), out=part)
    return np.asarray(total)


def blended_rows(network: RowScores, others: Sequence[RowScores], share: float) -> RowScores:
    """Return the scores of a blend of models that score the rows of the same block."""
    return lambda part: blended(scaled(network(part)), [scaled(one(part)) for one in others], share)
