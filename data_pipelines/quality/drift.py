"""Drift: the change of a column's distribution, measured in the bins of its profile."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mirrorspark.data_pipelines.dataset import TRAIN_SPLIT
from mirrorspark.data_pipelines.quality.profile import DatasetProfile

# A standard normal variable stays below this with a probability of 99.9%.
NOISE_DEVIATIONS = 3.09


@dataclass(frozen=True)
class Drift:
    """The drift of a column.

    Attributes:
        split: The split that is compared.
        against: The other side: ``reference`` (the training rows of the former dataset) or ``train`` (this one's).
        index: Population stability index: the sum of (p - q) ln(p / q) over bins.
        noise: The bound of the index in 999 of 1,000 samples of this size without drift.
    """

    column: str
    split: str
    against: str
    index: float
    noise: float

    @property
    def excess(self) -> float:
        """The part of the index that chance does not explain."""
        return max(0.0, self.index - self.noise)


def measure_drift(profile: DatasetProfile, reference: DatasetProfile | None = None) -> Iterator[Drift]:
    """Yield the stability index per column: training rows against the reference, and other splits against them."""
    for column in profile.columns:
        train = column.splits[TRAIN_SPLIT]
        former = reference.column(column.name) if reference else None
        if former is not None and train.reference_bins:
            yield _drift(column.name, TRAIN_SPLIT, "reference", train.reference_bins, former.splits[TRAIN_SPLIT].bins)
        for split, part in column.splits.items():
            if split != TRAIN_SPLIT and part.bins:
                yield _drift(column.name, split, TRAIN_SPLIT, part.bins, train.bins)


def stability_index(counts: tuple[int, ...], expected: tuple[int, ...]) -> tuple[float, float]:
    """Return the population stability index of two counts of the same bins, and its bound by chance alone.

    Half a row is added to every bin, so that an empty one does not make the index infinite. Without drift the index
    is distributed as chi-squared with (bins - 1) degrees of freedom times (1 / n + 1 / m): Yurdakul and Naranjo,
    "Statistical properties of the population stability index" (2020). Its 99.9% quantile is Wilson and Hilferty's.
    """
    rows, expected_rows = sum(counts), sum(expected)
    bins = [(count, other) for count, other in zip(counts, expected, strict=True) if count or other]
    if not rows or not expected_rows or len(bins) < 2:
        return 0.0, 0.0
    smoothed, smoothed_expected = rows + len(bins) / 2, expected_rows + len(bins) / 2
    index = 0.0
    for count, other in bins:
        share, expected_share = (count + 0.5) / smoothed, (other + 0.5) / smoothed_expected
        index += (share - expected_share) * math.log(share / expected_share)
    freedom = len(bins) - 1
    spread = 2 / (9 * freedom)
    chi_squared = freedom * (1 - spread + NOISE_DEVIATIONS * math.sqrt(spread)) ** 3
    return index, chi_squared * (1 / rows + 1 / expected_rows)


def _drift(column: str, split: str, against: str, counts: tuple[int, ...], expected: tuple[int, ...]) -> Drift:
    return Drift(column, split, against, *stability_index(counts, expected))
