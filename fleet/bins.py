"""The bins of a fleet's scores, and statistics of counts in them: quantiles, and the drift from an earlier run."""

from dataclasses import dataclass

import numpy as np

from mirrorspark.data_pipelines.quality import stability_index

# A float32 without its last 20 bits has its sign, its exponent and three bits of its fraction.
BITS_DROPPED = 20
SIDE = 8 * (20 + 16)
"""Bins of the positive scores, and of the negative ones."""

BINS = 2 * SIDE + 1
FIRST = ((127 - 16) << 3) - 1
"""The number before the exponent and fraction of the first bin, 2^-16."""

_GROUPS = 10


def bin_edges() -> np.ndarray:
    """Return float64 ``[BINS + 1]``: the edges of the bins of scores; the outermost bins also count scores beyond."""
    bits = np.arange(FIRST + 1, FIRST + SIDE + 2, dtype=np.int32) << BITS_DROPPED
    positive = bits.view(np.float32).astype(np.float64)
    return np.concatenate([-positive[::-1], positive])


@dataclass(frozen=True)
class Distribution:
    """The outputs of a model in some rows.

    Attributes:
        output: Which one is counted: ``score``, ``Rank`` or ``binary``.
        rows: Number of rows.
        counts: int64 ``[BINS]``: rows by bin; the others have no output.
    """

    output: str
    rows: int
    counts: np.ndarray

    @property
    def nulls(self) -> int:
        """Rows without an output."""
        return self.rows - int(self.counts.sum())

    def quantile(self, share: float) -> float | None:
        """Return a quantile; of scores, the middle of its bin; None if no row has an output.

        From 2^-16 to 2^20, and of their negatives, it is off by a sixteenth at most.
        """
        total = int(self.counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, np.ceil(share * total))))
        if self.output != "score":
            return float(place)
        edges = bin_edges()
        return 0.0 if place == SIDE else float(edges[place] + edges[place + 1]) / 2

    def drift_from(self, former: "Distribution") -> tuple[float, float] | None:
        """Return the population stability index, and its bound by chance alone; None if the outputs differ in kind.

        The bins are about ten, with a tenth of the former run's rows each, and one of the rows without an output.
        """
        if self.output != former.output:
            return None
        now, last = grouped(self, former)
        return stability_index(tuple(now), tuple(last))


def grouped(now: Distribution, former: Distribution) -> tuple[list[int], list[int]]:
    """Return the rows of two runs in about ten bins of the former one's, and those without an output as the last."""
    total = max(1, int(former.counts.sum()))
    middles = (np.cumsum(former.counts) - former.counts / 2) / total
    groups = np.minimum((middles * _GROUPS).astype(np.int64), _GROUPS - 1)
    both = [
        [*np.bincount(groups, of.counts, minlength=_GROUPS).astype(np.int64).tolist(), of.nulls] for of in (now, former)
    ]
    return both[0], both[1]
