"""What a sweep does next, decided from what it has done and the slots there are. Pure: values in, value out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from training.supervision.elastic import Elastic

Step = Literal["start", "wait", "end"]


@dataclass(frozen=True)
class SweepLimits:
    """How far a sweep goes.

    Attributes:
        trials: How many trials there are in all, those of earlier commands included.
        timeout_seconds: After so long no trial starts any more; None for no such limit.
        parallel: How many train side by side at the most; None for as many as have slots.
        failures: So many failed trials in a row end the sweep.
    """

    trials: int = 20
    timeout_seconds: float | None = None
    parallel: int | None = None
    failures: int = 5

    def __post_init__(self) -> None:
        for name, flag in (("trials", "trials"), ("parallel", "parallel"), ("failures", "max-failures")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{flag} is {value}; use 1 or more")
        if self.timeout_seconds is not None and not self.timeout_seconds > 0:
            raise ValueError(f"--timeout is {self.timeout_seconds:g}; use seconds above 0")


@dataclass(frozen=True)
class SweepProgress:
    """What a sweep has done.

    Attributes:
        ended: Trials that are over, those of earlier commands included.
        running: Trial number -> slots, of those under way.
        failures: How many of the last ones failed, one after the other.
        seconds: Since this command began.
        is_stopping: Whether somebody has asked it to stop.
    """

    ended: int = 0
    running: Mapping[int, int] = field(default_factory=dict)
    failures: int = 0
    seconds: float = 0.0
    is_stopping: bool = False


def next_step(limits: SweepLimits, progress: SweepProgress, slots: int, needed: int) -> Step:
    """Return whether to ``start`` a trial, to ``wait`` for one that runs, or to ``end``.

    Args:
        limits: How far it goes.
        progress: What it has done.
        slots: Barrier tasks that the cluster has room for, those under way included.
        needed: How many of them the next trial takes.
    """
    is_over = (
        progress.is_stopping
        or progress.failures >= limits.failures
        or progress.ended + len(progress.running) >= limits.trials
        or (limits.timeout_seconds is not None and progress.seconds >= limits.timeout_seconds)
    )
    if not progress.running:
        # With too few slots for even one trial its supervisor waits for them, and says so.
        return "end" if is_over else "start"
    if is_over or (limits.parallel is not None and len(progress.running) >= limits.parallel):
        return "wait"
    return "start" if needed <= slots - sum(progress.running.values()) else "wait"


def slots_needed(elastic: Elastic, slots: int, beside_workers: int = 0) -> int:
    """Return how many slots a trial takes: those of its most workers, or of as many as the cluster can ever have.

    Args:
        elastic: How many workers it may have.
        slots: Barrier tasks that the cluster has room for.
        beside_workers: Ranks that it has besides, such as parameter servers.
    """
    return (elastic.next_workers(slots - beside_workers) or elastic.workers.fewest) + beside_workers


def share_of(number: int, running: Mapping[int, int], slots: int) -> int:
    """Return how many slots a trial under way may count on: all that the others leave."""
    return max(0, slots - sum(taken for other, taken in running.items() if other != number))
