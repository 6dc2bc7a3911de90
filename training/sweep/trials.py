"""Runs the trials that a study asks for, in parallel as there are slots, and stores their ends in it."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

import optuna
from optuna.trial import Trial, TrialState

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import one_line
from mirrorspark.training.configuration import RunConfig
from mirrorspark.training.driver import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import SESSION_LOST
from mirrorspark.training.run_records import TrackingError, run_state
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.space import in_words
from mirrorspark.training.sweep.study import (
    State,
    TrialRecord,
    best_record,
    count_ended,
    record_of,
    requeue_interrupted,
)

PRUNED = "pruned"
_STORED = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class SweepFailedError(ClearError, RuntimeError):
    """No trial is complete, or too many failed consecutively; the message has the last error."""


class SessionLostError(ClearError, RuntimeError):
    """The Spark session is lost; the next command resumes its trials."""


# Errors that concern all trials: the cluster is too small, the MLflow store refuses, or the driver of a sweep that was
# taken over still sends the trial's heartbeat.
_FAULTS = (NotEnoughSlotsError, TrackingError, run_state.RunUnderWayError, SessionLostError)


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
    _stops: tuple[Callable[[str], None], Callable[[str], None]] | None = field(default=None, init=False)

    def connect(self, request_stop: Callable[[str], None], stop_now: Callable[[str], None]) -> None:
        """Connect a training that has begun; an earlier stop request reaches it now."""
        self._stops = request_stop, stop_now
        if self.reason is not None:
            self.stop(self.reason)

    def stop(self, reason: str, *, now: bool = False) -> None:
        """Ask the trial to save a checkpoint and stop, or to stop without; the first reason counts."""
        self.reason = self.reason or reason
        self._is_urgent = self._is_urgent or now
        if self._stops is not None:
            self._stops[self._is_urgent](self.reason)


def end_of_trial(error: Exception | None, reason: str | None) -> State:
    """Return the state of a trial after its training's ``error`` and the ``reason`` of its stop request, if any.

    It is ``running`` if the next command resumes the trial.
    """
    if error is None:
        return "complete"
    if isinstance(error, TrainingStoppedError):
        return "pruned" if reason == PRUNED else "running"
    # A second Ctrl-C ends everything in any order, and the errors that follow are not the trial's.
    is_torn_down = reason not in (None, PRUNED) and not isinstance(error, TrainingFailedError)
    return "running" if is_torn_down or _is_fault(error) else "failed"


def _is_fault(error: Exception | None) -> bool:
    """Return True for an error that concerns all trials."""
    if isinstance(error, TrainingFailedError) and error.attempts[-1].first_error.type == SESSION_LOST:
        return True
    return isinstance(error, _FAULTS)


@dataclass
class Trials:
    """The trials of one command.

    ``Study.optimize`` would run them, too, but it seeds the sampler at random for every parallel trial, and it drops
    the errors of callbacks. Asked one at a time, trials get their values from the sweep's seed.

    Attributes:
        study: Chooses the values, and stores the results.
        options: The settings of the sweep.
        train: Trains a trial, from its checkpoint if it has one, until its end or a stop request.
        slots: Returns the cluster's number of barrier tasks, including running ones; raises once the session is lost.
        say: Shows a line about a trial, from its number and the text, from any thread.
        on_end: Gets every ended trial and the number of ended trials; one at a time, from any thread.
        stop_reason: Why the command stops; None if it was not asked to.
    """

    study: optuna.Study
    options: SweepOptions
    train: Callable[[TrialPlan, TrialControl], None]
    slots: Callable[[], int]
    say: Callable[[int, str], None]
    on_end: Callable[[TrialRecord, int], None]
    stop_reason: str | None = field(default=None, init=False)
    _is_urgent: bool = field(default=False, init=False)
    # Running trials: number -> control and slots.
    _running: dict[int, tuple[TrialControl, int]] = field(default_factory=dict, init=False)
    _failures: int = field(default=0, init=False)
    _last_error: str | None = field(default=None, init=False)
    _fault: Exception | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def run(self) -> None:
        """Run trials until their number or a limit is reached, or a stop is requested.

        Raises:
            SweepFailedError: No trial is complete, or too many failed consecutively.
            SessionLostError: The Spark session is lost.
            Exception: An error that concerns all trials, such as too few slots.
        """
        options = self.options
        requeue_interrupted(self.study)
        left = options.trials - count_ended(self.study)
        if left > 0:
            room = max(1, self.slots() // options.slots_per_trial)
            deadline = time.monotonic() + (options.timeout_seconds or math.inf)
            # A training in the main thread would install its own signal handlers.
            with ThreadPoolExecutor(min(left, room, options.parallel or room), thread_name_prefix="sweep") as pool:
                try:
                    for ended in as_completed([pool.submit(self._run_next, deadline) for _ in range(left)]):
                        ended.result()
                except BaseException:
                    # The pool waits for its threads.
                    self.stop_now()
                    raise
        if self._fault is not None:
            raise self._fault
        if self.stop_reason is None:
            self._require_success()

    def request_stop(self, reason: str, *, now: bool = False) -> None:
        """Start no further trial; let running ones save a checkpoint and stop. For signal handlers, too."""
        self.stop_reason = self.stop_reason or reason
        self._is_urgent = self._is_urgent or now
        for control, _ in list(self._running.values()):
            control.stop(self.stop_reason, now=now)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """Let running trials stop without another checkpoint. For signal handlers and other threads, too."""
        self.request_stop(reason, now=True)

    def _run_next(self, deadline: float) -> None:
        """Train the trial that Optuna chooses, unless the sweep is to end, and store its end."""
        with self._lock:
            is_over = self._fault or self.stop_reason or self._failures >= self.options.max_failures
            if is_over or time.monotonic() >= deadline:
                return
            trial = self.study.ask(dict(self.options.space.distributions))
            before = record_of(self.study, self.study.get_trials(deepcopy=False)[trial.number])
        number, history = before.number, dict(before.history)
        control = TrialControl(
            on_event=lambda event: self._on_event(trial, control, history, event),
            slots=lambda: self._available_slots(number),
            say=lambda text: self.say(number, text),
            set_attribute=trial.set_user_attr,
        )
        began, error = time.monotonic(), None
        try:
            plan = TrialPlan(number, self.options.space.configure(self.options.config, before.values))
            self._running[number] = control, plan.config.slots
            if self.stop_reason is not None:  # A signal came before the trial was registered.
                control.stop(self.stop_reason, now=self._is_urgent)
            control.say("begins: " + in_words(before.values))
            self.train(plan, control)
            if not history:
                raise ValueError("it ended without a value of the monitored metric")  # noqa: TRY301
        except Exception as caught:
            error = caught
        finally:
            self._running.pop(number, None)
        state = end_of_trial(error, control.reason)
        if state == "failed" or _is_fault(error):
            # A lost session makes trials fail with many errors, none of which is the trial's.
            try:
                self.slots()
            except Exception as gone:
                state, error = "running", None if self.stop_reason else _lost_session(gone)
        trial.set_user_attr("seconds", before.seconds + time.monotonic() - began)
        if state == "failed" and error is not None:
            trial.set_user_attr("error", one_line(error))
        with self._lock:
            try:
                self._store(trial, state, history)
                self._fault = self._fault or (error if _is_fault(error) else None)
            except Exception as failure:
                self._fault = self._fault or failure  # No further trial starts.
                raise
        if isinstance(error, SessionLostError):
            self.request_stop("the Spark session is lost")

    def _store(self, trial: Trial, state: State, history: dict[int, float]) -> None:
        """Store the end of a trial in the study, and show it. An interrupted one stays, for the next command."""
        best = (max if self.options.config.mode == "max" else min)(history.values()) if state == "complete" else None
        if state != "running":
            self.study.tell(trial, best, _STORED[state])
        record = record_of(self.study, self.study.get_trials(deepcopy=False)[trial.number])
        value = "" if record.best is None else f", {self.options.config.monitor} {record.best:.4f}"
        why = f": {record.error}" if record.error else ""
        ended = "stops, to be resumed" if state == "running" else state
        self.say(record.number, f"{ended} after {record.epochs} epochs{value}{why}")
        if state == "running":
            return
        self._failures = self._failures + 1 if state == "failed" else 0
        self._last_error = record.error or self._last_error
        self.on_end(record, count_ended(self.study))

    def _on_event(self, trial: Trial, control: TrialControl, history: dict[int, float], event: Event) -> None:
        """Report the end of an epoch to the study, which may prune the trial."""
        if event["event"] != "epoch_end" or event.get("rank") != 0:
            return
        monitor, epoch = self.options.config.monitor, event["epoch"]
        value = event["logs"].get(monitor)
        # Attempts repeat epochs, and a pruner cannot compare NaN.
        if value is None or epoch in history or not math.isfinite(value):
            return
        history[epoch] = float(value)
        trial.report(value, epoch)
        if trial.should_prune() and control.reason is None:
            control.say(f"is pruned at epoch {epoch}, {monitor} {value:.4f}")
            control.stop(PRUNED)

    def _available_slots(self, number: int) -> int:
        """Return the slots for a trial: all that the others do not use."""
        taken = sum(slots for other, (_, slots) in list(self._running.items()) if other != number)
        return max(0, self.slots() - taken)

    def _require_success(self) -> None:
        if self._failures >= self.options.max_failures:
            raise SweepFailedError(
                f"{self._failures} trials failed one after the other, the last with: {self._last_error}. Correct that, "
                f"or search other values; the same command continues with further trials"
            )
        if best_record(self.study) is None:
            last = f"; the last error: {self._last_error}" if self._last_error else ""
            raise SweepFailedError(f"no trial was trained to its end{last}")


def _lost_session(error: Exception) -> SessionLostError:
    lost = SessionLostError(
        f"the Spark session does not answer ({type(error).__name__}: {one_line(error)}); start a new one: the same "
        f"command goes on"
    )
    lost.__cause__ = error
    return lost
