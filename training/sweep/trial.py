"""One trial: its configuration, its connection to the sweep, and its end."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mirrorspark.storage import one_line
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.driver import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from mirrorspark.training.protocol import SESSION_LOST, Event
from mirrorspark.training.run_records import TrackingError, run_state
from mirrorspark.training.sweep.study import State

PRUNED = "pruned"

# Errors that concern all trials: the cluster is too small, the MLflow store refuses, or the driver of a sweep that was
# taken over still sends the trial's heartbeat.
_FAULTS = (NotEnoughSlotsError, TrackingError, run_state.RunUnderWayError)


@dataclass(frozen=True)
class TrialPlan:
    """A trial to train: its number in the study, and its configuration."""

    number: int
    config: RunConfig


@dataclass
class TrialControl:
    """Connects a running trial to the sweep.

    Signal handlers request stops, so it has no lock: plain attributes, and idempotent calls.

    Attributes:
        on_event: Gets every event of the trial's ranks and of its supervisor, from any thread.
        slots: Returns the number of barrier tasks for the trial.
        say: Shows a line about the trial.
        set_attribute: Stores a field of the trial's record: name, value.
        reason: Why it was asked to stop; None if it was not.
    """

    on_event: Callable[[Event], None]
    slots: Callable[[], int]
    say: Callable[[str], None]
    set_attribute: Callable[[str, str], None]
    reason: str | None = None
    _is_urgent: bool = field(default=False, init=False)
    _request_stop: Callable[[str], None] = field(default_factory=lambda: _ignore, init=False)
    _stop_now: Callable[[str], None] = field(default_factory=lambda: _ignore, init=False)

    def connect(self, request_stop: Callable[[str], None], stop_now: Callable[[str], None]) -> None:
        """Connect a training that has begun; an earlier stop request reaches it now."""
        self._request_stop, self._stop_now = request_stop, stop_now
        if self.reason is not None:
            (stop_now if self._is_urgent else request_stop)(self.reason)

    def request_stop(self, reason: str) -> None:
        """Ask the trial to save a checkpoint and stop; the first reason counts."""
        self.reason = self.reason or reason
        self._request_stop(self.reason)

    def stop_now(self, reason: str) -> None:
        """Ask the trial to stop without another checkpoint."""
        self._is_urgent = True
        self.reason = self.reason or reason
        self._stop_now(self.reason)


@dataclass(frozen=True)
class TrialEnd:
    """End of a trial.

    Attributes:
        state: ``running`` if the next command resumes it.
        error: Why it failed, in one line.
        fault: An error that concerns all trials.
    """

    state: State
    error: str | None = None
    fault: Exception | None = None


def classify_end(error: BaseException | None, reason: str | None) -> TrialEnd:
    """Return the end of a trial from its training's ``error`` and the ``reason`` of its stop request, if any."""
    if error is None:
        return TrialEnd("complete")
    if isinstance(error, TrainingStoppedError):
        return TrialEnd("pruned" if reason == PRUNED else "running")
    if isinstance(error, _FAULTS) or (isinstance(error, TrainingFailedError) and _has_lost_its_session(error)):
        return TrialEnd("running", fault=error)
    if reason is not None and reason != PRUNED and not isinstance(error, TrainingFailedError):
        # A second Ctrl-C ends everything in any order, and the errors that follow are not the trial's.
        return TrialEnd("running")
    return TrialEnd("failed", one_line(error))


def _has_lost_its_session(error: TrainingFailedError) -> bool:
    return error.attempts[-1].first_error.type == SESSION_LOST


def _ignore(_: str) -> None:
    pass
