"""Sums of a slice's metrics, which can be merged, so that one pass over the rows measures all slices.

Rows fall into buckets by a hash of their key, and every sum is kept by bucket. Intervals come from weights of the
buckets, drawn from a Poisson distribution (Chamandy et al., 2012, "Estimating Uncertainty for Massive Data Streams"):
a row costs the same for any number of draws, and any partitioning of the rows gives the same intervals.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirrorspark.lifecycle.gate.score_counts import ScoreCounts, score_codes

BUCKETS = 100
"""Buckets of keys. A standard error from 100 independent buckets is itself right within about 7 percent."""

FINE_CELLS = 8192
COARSE_CELLS = 64
LEAST_CELLS = 256

NEGATIVES, POSITIVES, SCORES = range(3)
"""Columns of the counts by score: weight of the negatives, of the positives, and the weighted sum of the scores."""

_COLUMNS = 3


@dataclass(frozen=True)
class Pairs:
    """Pairs of a score and a label of 0 or 1: one for each row, or for each row and label.

    Attributes:
        row: The row of each pair, ``[pairs]``.
        score: Scores, ``[pairs]``.
        is_positive: Labels, ``[pairs]``.
        weight: Weights, ``[pairs]``.
    """

    row: NDArray[np.int64]
    score: NDArray[np.float64]
    is_positive: NDArray[np.bool_]
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class AdditiveValues:
    """The additive values of a model's scores of some rows: ``[columns, rows]``, and pairs whose order counts."""

    values: NDArray[np.float64]
    pairs: tuple[Pairs, ...] = ()


@dataclass(frozen=True)
class MetricSums:
    """The sums of a model's scores of a slice.

    Attributes:
        sums: By bucket, ``[BUCKETS, columns]``.
        fine: For each kind of pairs the counts by score, ``[cells, 3]``.
        coarse: The same in few cells by bucket, ``[cells, 3 * BUCKETS]``.
    """

    sums: NDArray[np.float64]
    fine: tuple[ScoreCounts, ...] = ()
    coarse: tuple[ScoreCounts, ...] = ()

    @classmethod
    def merged(cls, parts: Sequence[MetricSums]) -> MetricSums:
        """Return the sums of several parts of one slice."""
        if len(parts) == 1:
            return parts[0]
        kinds = range(len(parts[0].fine))
        most = fine_cells(len(kinds))
        return cls(
            np.sum([part.sums for part in parts], axis=0),
            tuple(ScoreCounts.merged([part.fine[kind] for part in parts], most) for kind in kinds),
            tuple(ScoreCounts.merged([part.coarse[kind] for part in parts], COARSE_CELLS) for kind in kinds),
        )

    def to_bytes(self) -> bytes:
        """Return the sums in NumPy's format, compressed."""
        arrays: dict[str, Any] = {"sums": self.sums}
        for name, counts in (("fine", self.fine), ("coarse", self.coarse)):
            for kind, one in enumerate(counts):
                arrays |= {f"{name}{kind}_codes": one.codes, f"{name}{kind}_counts": one.counts}
                arrays[f"{name}{kind}_shift"] = np.array(one.shift)
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> MetricSums:
        """Return the sums that :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            kinds = sum(name.startswith("fine") and name.endswith("_codes") for name in arrays.files)

            def counts(name: str) -> tuple[ScoreCounts, ...]:
                return tuple(
                    ScoreCounts(
                        arrays[f"{name}{kind}_codes"],
                        int(arrays[f"{name}{kind}_shift"]),
                        arrays[f"{name}{kind}_counts"],
                    )
                    for kind in range(kinds)
                )

            return cls(arrays["sums"], counts("fine"), counts("coarse"))


def fine_cells(kinds: int) -> int:
    """Return the most cells of each kind of pairs; all kinds share the memory of one."""
    return max(LEAST_CELLS, FINE_CELLS // max(kinds, 1))


def sums_of_slices(
    rows: AdditiveValues, slicings: Sequence[tuple[NDArray[np.int64], int]], bucket: NDArray[np.int64]
) -> list[list[MetricSums]]:
    """Return for each slicing the sums of each of its slices.

    Args:
        rows: Values of the rows.
        slicings: For each slicing the slice of each row, ``[rows]``, below 0 for none; and the number of slices.
        bucket: Bucket of each row, ``[rows]``.
    """
    most = fine_cells(len(rows.pairs))
    # The order of the scores is that of all slices, so it is found once.
    ordered = [np.argsort(score_codes(pairs.score), kind="stable") for pairs in rows.pairs]
    return [
        [
            MetricSums(sums, tuple(fine), tuple(coarse))
            for sums, (fine, coarse) in zip(
                _sums(rows.values, number, slices, bucket),
                _counts(rows.pairs, ordered, number, slices, bucket, most),
                strict=True,
            )
        ]
        for number, slices in slicings
    ]


def _sums(
    values: NDArray[np.float64], number: NDArray[np.int64], slices: int, bucket: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the sums ``[slices, BUCKETS, columns]``."""
    used = number >= 0
    place = number[used] * BUCKETS + bucket[used]
    sums = [np.bincount(place, column[used], minlength=slices * BUCKETS) for column in values]
    return np.stack(sums, axis=-1).astype(np.float64).reshape(slices, BUCKETS, len(values))


def _counts(
    kinds: Sequence[Pairs],
    ordered: Sequence[NDArray[np.int64]],
    number: NDArray[np.int64],
    slices: int,
    bucket: NDArray[np.int64],
    most: int,
) -> list[tuple[list[ScoreCounts], list[ScoreCounts]]]:
    """Return for each slice the fine and the coarse counts of each kind of pairs."""
    found: list[tuple[list[ScoreCounts], list[ScoreCounts]]] = [([], []) for _ in range(slices)]
    for pairs, order in zip(kinds, ordered, strict=True):
        of_slice = number[pairs.row[order]]
        # A stable sort keeps the order of the scores within each slice.
        order = order[np.argsort(of_slice, kind="stable")]
        ends = np.searchsorted(np.sort(of_slice), np.arange(slices + 1))
        for place, (fine, coarse) in enumerate(found):
            own = order[ends[place] : ends[place + 1]]
            codes, weight = score_codes(pairs.score[own]), pairs.weight[own]
            column = np.stack([pairs.is_positive[own].astype(np.int64), np.full(len(own), SCORES)])
            values = np.stack([weight, weight * pairs.score[own]])
            fine.append(ScoreCounts.of_sorted(codes, column, values, _COLUMNS, most))
            column = column + _COLUMNS * bucket[pairs.row[own]]
            coarse.append(ScoreCounts.of_sorted(codes, column, values, _COLUMNS * BUCKETS, COARSE_CELLS))
    return found


def weighted_counts(counts: ScoreCounts, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return counts by score, ``[cells, 3, draws]``: fine ones as one draw, coarse ones by weights of the buckets.

    Args:
        counts: Fine counts without ``weights``, else coarse ones.
        weights: Weights of the buckets, ``[draws, BUCKETS]``.
    """
    if weights is None:
        return counts.counts[:, :, None]
    by_bucket = counts.counts.reshape(-1, BUCKETS, _COLUMNS)
    return np.einsum("cbk,rb->ckr", by_bucket, weights, optimize=True)
