"""A snapshot of a run for display. Plain values, which screens draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mirrorspark.data_pipelines.spark import Tasks
from mirrorspark.training.run_records.live.state import TrainingState


@dataclass(frozen=True)
class Details:
    """The result of a stage at length: as lines, and as markup for a notebook."""

    lines: tuple[str, ...]
    markup: str


@dataclass(frozen=True)
class FinishedStage:
    """A stage that is over.

    Attributes:
        note: Its result in words.
        has_failed: It ended with an exception, as a training that was stopped does.
        markup: Its result at length, as markup; empty without one.
    """

    name: str
    seconds: float
    note: str = ""
    has_failed: bool = False
    markup: str = ""


@dataclass(frozen=True)
class RunningStage:
    """The stage that runs now.

    Attributes:
        tasks: Its work, if that can be counted.
        doing: Its current work in words; empty if unknown.
    """

    name: str
    seconds: float
    is_training: bool = False
    tasks: Tasks | None = None
    doing: str = ""


@dataclass(frozen=True)
class EpochResult:
    """An epoch that has ended; ``logs`` has all metrics by name."""

    epoch: int
    logs: Mapping[str, float]
    examples_per_second: float | None = None


@dataclass(frozen=True)
class Monitored:
    """The metric that decides which epoch is the best."""

    name: str
    mode: Literal["min", "max"]


@dataclass(frozen=True)
class Picture:
    """A run at one moment.

    Attributes:
        now: Monotonic seconds.
        finished: The stages that are over.
        running: The stage that runs now; None between stages and at the end.
        epochs: The epochs that have ended, in their order.
        monitored: None where it is not known, as in a training function.
    """

    now: float
    finished: tuple[FinishedStage, ...]
    running: RunningStage | None
    training: TrainingState
    epochs: tuple[EpochResult, ...] = ()
    monitored: Monitored | None = None
