"""Allocation of buckets to variants by weights, and by new weights with the fewest moves."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

BUCKETS = 10_000
"""Units are hashed to this number of buckets, so weights are kept to 0.01 %."""

Ranges = tuple[tuple[int, int], ...]
"""Buckets from a first one up to, but not including, a last one; rising and disjoint."""


def bucket_counts(weights: Mapping[str, float], buckets: int = BUCKETS) -> dict[str, int]:
    """Return the number of buckets of each variant: its share, rounded by largest remainder, so that all are dealt.

    Args:
        weights: Weight of each variant, of any sum above 0.
        buckets: Number of buckets.
    """
    total = sum(weights.values())
    exact = {name: buckets * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])  # stable: the earlier variant of a tie
    for name in by_remainder[: buckets - sum(counts.values())]:
        counts[name] += 1
    return counts


def allocated(weights: Mapping[str, float]) -> dict[str, Ranges]:
    """Return the buckets of each variant, in the order of the variants."""
    return reallocated({}, weights)


def reallocated(allocation: Mapping[str, Ranges], weights: Mapping[str, float]) -> dict[str, Ranges]:
    """Return the buckets of each variant by new weights, with the smallest possible number of buckets that move.

    A variant that shrinks gives up its last buckets; those that grow take them. Variants that are not in ``weights``
    give up all of theirs.

    Args:
        allocation: The present buckets of each variant.
        weights: The new weight of each variant.
    """
    owner = np.full(BUCKETS, -1)
    counts = bucket_counts(weights)
    for number, (name, count) in enumerate(counts.items()):
        owned = buckets_of(allocation.get(name, ()))
        owner[owned[:count]] = number
    free = np.flatnonzero(owner < 0)
    missing = [count - int((owner == number).sum()) for number, count in enumerate(counts.values())]
    owner[free] = np.repeat(np.arange(len(missing)), missing)
    return {name: _ranges(np.flatnonzero(owner == number)) for number, name in enumerate(counts)}


def buckets_of(ranges: Ranges) -> NDArray[np.int64]:
    """Return the numbers of the buckets, int64 ``[buckets]``."""
    return np.concatenate([np.empty(0, np.int64), *(np.arange(first, last) for first, last in ranges)])


def _ranges(buckets: NDArray[np.int64]) -> Ranges:
    if not buckets.size:
        return ()
    breaks = np.flatnonzero(np.diff(buckets) > 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(buckets, breaks))
