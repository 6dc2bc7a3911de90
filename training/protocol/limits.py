"""The defaults of the time limits and the restart budgets of a training; they are set only here."""

from collections.abc import Mapping
from dataclasses import dataclass

# The limit of each phase.
_LIMITS: Mapping[str, str] = {
    "starting": "start_seconds",
    "connecting": "start_seconds",
    "building": "build_seconds",
    "restoring": "start_seconds",
    "first_step": "first_step_seconds",
    "training": "step_seconds",
    "validation": "step_seconds",
    "checkpoint": "checkpoint_seconds",
    "ending": "end_seconds",
}


@dataclass(frozen=True)
class PhaseLimits:
    """The longest time that a rank may stand still before it counts as hung.

    Attributes:
        start_seconds: Until its first event, and in each of the phases connecting and restoring.
        build_seconds: While the user's code builds; None for as long as ``start_seconds``.
        first_step_seconds: For the first step, in which graphs are compiled and data is read for the first time.
        step_seconds: Between two steps, in training and in validation.
        checkpoint_seconds: For a checkpoint, and for a stop after the request.
        end_seconds: To leave, once the last rank has reached the end.
    """

    start_seconds: float = 300.0
    build_seconds: float | None = None
    first_step_seconds: float = 600.0
    step_seconds: float = 120.0
    checkpoint_seconds: float = 600.0
    end_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; use a number of seconds above 0")

    def of(self, phase: str) -> float:
        """Return the limit of ``phase``; an unknown phase has the limit of a step."""
        seconds: float | None = getattr(self, _LIMITS.get(phase, "step_seconds"))
        return self.start_seconds if seconds is None else seconds


@dataclass(frozen=True)
class Budgets:
    """The numbers of failures that a run survives before it gives up; each kind has its own budget.

    A budget is for an epoch: it is full again as a checkpoint of a later epoch is committed. So a long training
    survives any number of losses, and one without progress ends. A driver that was out of reach costs nothing.

    Attributes:
        max_restarts: Restarts after lost and hung workers, failures of a machine, and jobs of Spark that just fail.
        max_preemptions: Restarts after workers whose machine was taken away.
        max_start_failures: Restarts after workers that did not begin to train.
        max_store_faults: Restarts after checkpoints that could be neither written nor read.
        first_delay_seconds: Wait before the second restart in a row without a newer checkpoint. The first restart does
            not wait; the wait doubles with each further one.
        longest_delay_seconds: Limit of that wait.
        slots_wait_seconds: Longest wait for the slots of the fewest workers.
    """

    max_restarts: int = 3
    max_preemptions: int = 100
    max_start_failures: int = 3
    max_store_faults: int = 10
    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    slots_wait_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:  # NaN neither
                raise ValueError(f"{name} is {value}; use 0 or more")

    def delay_seconds(self, failures: int) -> float:
        """Return the wait after ``failures`` in a row without progress, at least 1."""
        if failures <= 1:
            return 0.0
        # The cap avoids a number beyond floats: the longest delay is reached long before.
        return min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** min(failures - 2, 1000))
