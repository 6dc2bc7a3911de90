"""What supervision costs, from one run in half of whose epochs it rested."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

# The chief's, beside its checkpoints: when each epoch ended, as a list of seconds.
EPOCHS_FILE = "epochs.json"
# Epochs that are compared with each other.
GROUP = 4


def is_supervised(epoch: int) -> bool:
    """Return whether supervision is at work in an epoch, from 0.

    Behind the first one, which does not count: with, without, without, with, and again, so that no trend counts either.
    """
    return epoch % GROUP in (0, 1)


@dataclass(frozen=True)
class Halves:
    """What one run was like whose supervision rested in half of its epochs.

    Attributes:
        supervised: Seconds of two epochs with supervision, of every group of four.
        resting: Those of the two without it.
        beside: Share of all cores that went to what ran beside the ranks.
    """

    supervised: tuple[float, ...]
    resting: tuple[float, ...]
    beside: float

    @property
    def slow_down(self) -> float:
        """By what share supervision makes an epoch longer, in the median of the groups."""
        return float(np.median(self._slow_downs))

    @property
    def lost(self) -> float:
        """The share of the throughput that is lost to the ranks' part and to what runs beside them; 0 where none is."""
        return max(0.0, 1 - (1 - self.beside) / (1 + self.slow_down))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the median of the slow-downs lies with a probability of 95 %, by bootstrapping."""
        found = stats.bootstrap((self._slow_downs,), np.median, method="percentile", rng=1)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    @property
    def _slow_downs(self) -> np.ndarray:
        return np.array(self.supervised) / np.array(self.resting) - 1


def halves_of(ended: Sequence[float], beside: float) -> Halves:
    """Return the halves of a run by the times at which its epochs ended, a first one that does not count included."""
    lengths = np.diff(ended).reshape(-1, GROUP)
    at_work = np.array([is_supervised(epoch) for epoch in range(1, GROUP + 1)])
    return Halves(tuple(lengths[:, at_work].sum(axis=1)), tuple(lengths[:, ~at_work].sum(axis=1)), beside)
