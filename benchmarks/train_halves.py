"""What supervision costs, from one run in half of whose epochs it rested."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

# `Times`, beside the chief's checkpoints.
TIMES_FILE = "times.json"
# Epochs that are compared with each other.
GROUP = 4


def is_supervised(epoch: int) -> bool:
    """Return whether supervision is at work in an epoch, from 0.

    Behind the first one, which does not count: with, without, without, with, and again, so that no trend counts either.
    """
    return epoch % GROUP in (0, 1)


@dataclass(frozen=True)
class Times:
    """What the chief of such a run writes down.

    Attributes:
        ended: When each epoch ended, a first one that does not count included, in seconds of a clock.
        within: Seconds of each of these epochs that went by in the callbacks of supervision.
        threads: CPU seconds that the rank's other threads took in each.
    """

    ended: tuple[float, ...]
    within: tuple[float, ...]
    threads: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> "Times":
        """Read what was written."""
        of = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(of["ended"]), tuple(of["within"]), tuple(of["threads"]))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Halves:
    """What one run was like whose supervision rested in half of its epochs.

    Attributes:
        supervised: Seconds of two epochs with supervision, of every group of four.
        resting: Those of the two without it.
        within: Share of the supervised epochs that went by in the callbacks of supervision.
        threads: Share of a rank's core that its threads took then that are not the training's.
        beside: Share of all cores that went to what ran beside the ranks.
    """

    supervised: tuple[float, ...]
    resting: tuple[float, ...]
    within: float
    threads: float
    beside: float

    @property
    def slow_down(self) -> float:
        """By what share supervision makes an epoch longer, in the median of the groups."""
        return float(np.median(self._slow_downs))

    @property
    def compared(self) -> float:
        """Share of the throughput that is lost, by comparing epochs, and to what runs beside; 0 where none is."""
        return max(0.0, 1 - (1 - self.beside) / (1 + self.slow_down))

    @property
    def accounted(self) -> float:
        """The same by adding up: what goes by in callbacks, in threads of the ranks, and beside the ranks."""
        return 1 - (1 - self.beside) * (1 - self.within) * (1 - self.threads)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the median of the slow-downs lies with a probability of 95 %, by bootstrapping."""
        found = stats.bootstrap((self._slow_downs,), np.median, method="percentile", rng=1)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    @property
    def _slow_downs(self) -> np.ndarray:
        return np.array(self.supervised) / np.array(self.resting) - 1


def halves_of(times: Times, beside: float) -> Halves:
    """Return the halves of a run."""
    lengths = np.diff(times.ended).reshape(-1, GROUP)
    at_work = np.array([is_supervised(epoch) for epoch in range(1, GROUP + 1)])
    supervised = lengths[:, at_work].sum(axis=1)
    within, threads = (
        np.array(of_epochs[1:]).reshape(-1, GROUP)[:, at_work].sum() / supervised.sum()
        for of_epochs in (times.within, times.threads)
    )
    return Halves(tuple(supervised), tuple(lengths[:, ~at_work].sum(axis=1)), within, threads, beside)
