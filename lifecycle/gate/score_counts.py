"""Counts of rows by score that can be merged: exact for few distinct scores, else a histogram that fits the scores.

A cell holds the scores whose float32 representations agree but for some low bits. The number of these bits is the
smallest that leaves at most a given number of cells. It depends on the set of all scores alone, so any partitioning of
the rows, merged in any order, gives the same cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SIGN = np.uint32(1 << 31)


def score_codes(scores: ArrayLike) -> NDArray[np.uint32]:
    """Return integers ``[rows]`` in the order of the scores, equal where the scores are equal as float32."""
    # Adding 0 makes -0.0 the same as 0.0.
    bits = (np.asarray(scores, np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


@dataclass(frozen=True)
class ScoreCounts:
    """Sums of columns by cell of scores.

    Attributes:
        codes: uint32 ``[cells]``, ascending: the score codes of the cells without their low bits.
        shift: Number of these bits; 0 if every cell is one score.
        counts: float64 ``[cells, columns]``.
    """

    codes: NDArray[np.uint32]
    shift: int
    counts: NDArray[np.float64]

    @classmethod
    def of_sorted(
        cls, codes: NDArray[np.uint32], column: NDArray[np.int64], values: NDArray[np.float64], columns: int, most: int
    ) -> ScoreCounts:
        """Return the sums of rows in the order of their codes.

        Args:
            codes: Score codes, ascending, ``[rows]``.
            column: The column that each value is added to, ``[entries, rows]``.
            values: The values, ``[entries, rows]``.
            columns: Number of columns.
            most: The most cells.
        """
        shift = _shift(codes, most)
        cut = codes >> np.uint32(shift)
        is_first = np.append(True, cut[1:] != cut[:-1]) if len(cut) else np.zeros(0, bool)
        cell = np.cumsum(is_first) - 1
        cells = int(is_first.sum())
        places = (cell * columns + column).ravel()
        counts = np.bincount(places, values.ravel(), minlength=cells * columns).astype(np.float64)
        return cls(cut[is_first], shift, counts.reshape(cells, columns))

    @classmethod
    def merged(cls, parts: Sequence[ScoreCounts], most: int) -> ScoreCounts:
        """Return the sums of several parts with the same columns."""
        shift = max(part.shift for part in parts)
        codes = np.concatenate([part.codes >> np.uint32(shift - part.shift) for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        order = np.argsort(codes, kind="stable")
        return cls(codes[order], shift, counts[order])._fitted(most)

    def _fitted(self, most: int) -> ScoreCounts:
        """Return the counts with equal codes joined, in at most ``most`` cells."""
        more = _shift(self.codes, most)
        codes = self.codes >> np.uint32(more)
        if not len(codes):
            return self
        starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
        return ScoreCounts(codes[starts], self.shift + more, np.add.reduceat(self.counts, starts, axis=0))


def _shift(codes: NDArray[np.uint32], most: int) -> int:
    """Return the fewest low bits without which at most ``most`` of the ascending codes differ."""
    # Neighbours fall together once all bits up to the highest one in which they differ are dropped.
    _, bits = np.frexp((codes[1:] ^ codes[:-1]).astype(np.float64))
    pairs = np.bincount(bits, minlength=33)
    # Of a drop of s bits, those pairs stay apart whose highest difference is above bit s.
    apart = len(bits) - np.cumsum(pairs)
    return int(np.argmax(apart + 1 <= most))
