"""One trial: what it trains, how the sweep hears of it and stops it, and what its end means."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mirrorspark.storage.credentials import one_line
from mirrorspark.training.config import RunConfig
from mirrorspark.training.driver.errors import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from mirrorspark.training.protocol.cause import SESSION_LOST
from mirrorspark.training.protocol.events import Event
from mirrorspark.training.records.run_state import RunUnderWayError
from mirrorspark.training.records.tracking import TrackingError
from mirrorspark.training.sweep.study import State

PRUNED = "pruned"

# The trial can do nothing about them, and most others would meet them, too: the cluster is too small, the MLflow store
# says no, or the driver of a sweep that was taken over still gives signs of life for the trial.
_FAULTS = (NotEnoughSlotsError, TrackingError, RunUnderWayError)


@dataclass(frozen=True)
class TrialOrder:
    """A trial to train: its number in the study, and its configuration."""

    number: int
    config: RunConfig


@dataclass
class TrialControl:
    """Ties a trial under way to the sweep.

    Signal handlers ask for stops, so there is no lock in here: plain attributes, and calls that may be repeated.

    Attributes:
        on_event: Hears every event of the trial's ranks and of its supervisor, from any thread.
        slots: Returns how many barrier tasks the trial may count on.
        say: Shows a line about the trial.
        note: Keeps a field of the trial's record: name, value.
        reason: Why it was asked to stop; None when it was not.
    """

    on_event: Callable[[Event], None]
    slots: Callable[[], int]
    say: Callable[[str], None]
    note: Callable[[str, str], None]
    reason: str | None = None
    _is_urgent: bool = field(default=False, init=False)
    _request_stop: Callable[[str], None] = field(default_factory=lambda: _nothing, init=False)
    _stop_now: Callable[[str], None] = field(default_factory=lambda: _nothing, init=False)

    def connect(self, request_stop: Callable[[str], None], stop_now: Callable[[str], None]) -> None:
        """Let a training that has begun be stopped; one that was asked to before hears it now."""
        self._request_stop, self._stop_now = request_stop, stop_now
        if self.reason is not None:
            (stop_now if self._is_urgent else request_stop)(self.reason)

    def request_stop(self, reason: str) -> None:
        """Let the trial save a checkpoint and stop; the first reason counts."""
        self.reason = self.reason or reason
        self._request_stop(self.reason)

    def stop_now(self, reason: str) -> None:
        """Let the trial stop without another checkpoint."""
        self._is_urgent = True
        self.reason = self.reason or reason
        self._stop_now(self.reason)


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        state: ``running`` if the next command goes on with it.
        error: Why it failed, in one line.
        fault: What keeps every other trial from training, too.
    """

    state: State
    error: str | None = None
    fault: Exception | None = None


def how_it_ended(error: BaseException | None, reason: str | None) -> TrialEnd:
    """Return what the end of a training means for its trial.

    Args:
        error: What it raised; None when it came to its end.
        reason: Why it was asked to stop; None when it was not.
    """
    if error is None:
        return TrialEnd("complete")
    if isinstance(error, TrainingStoppedError):
        return TrialEnd("pruned" if reason == PRUNED else "running")
    if isinstance(error, _FAULTS) or (isinstance(error, TrainingFailedError) and _has_lost_its_session(error)):
        return TrialEnd("running", fault=error)
    if reason is not None and reason != PRUNED and not isinstance(error, TrainingFailedError):
        # A second Ctrl-C tears things down in any order, and what falls over then is no fault of the trial.
        return TrialEnd("running")
    return TrialEnd("failed", one_line(error))


def _has_lost_its_session(error: TrainingFailedError) -> bool:
    return error.attempts[-1].first_error.type == SESSION_LOST


def _nothing(_: str) -> None:
    pass
