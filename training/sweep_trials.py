"""Runs the trials of a sweep, side by side as far as slots allow; what a trial tells decides whether it goes on."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from callbacks.credentials import without_credentials
from training.config import RunConfig
from training.elastic import parse_workers
from training.events import Event
from training.supervisor import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from training.sweep_schedule import Step, SweepLimits, SweepProgress, next_step, share_of, slots_needed
from training.sweep_space import SearchSpace
from training.sweep_study import SweepStudy, TrialRecord
from training.tracking import TrackingError

PRUNED = "pruned"

# Between two looks at the slots of the cluster and at the clock.
_POLL_SECONDS = 2.0


class SweepFailedError(RuntimeError):
    """No trial has been trained, or too many failed one after the other; the message holds the last one's error."""


class TrialControl:
    """Ties a trial under way to the sweep.

    Signal handlers ask for stops, so there is no lock in here: plain attributes, and calls that may be repeated.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        slots: Callable[[], int],
        say: Callable[[str], None],
        note: Callable[[str | None, str], None],
    ) -> None:
        """Take what the trial may use.

        Args:
            on_event: Hears every event of the trial's ranks and of its supervisor, from any thread.
            slots: Returns how many barrier tasks the trial may count on.
            say: Shows a line about the trial.
            note: Keeps the trial's MLflow run, where that is known, and its run folder.
        """
        self.on_event = on_event
        self.slots = slots
        self.say = say
        self.note = note
        self.reason: str | None = None
        self._is_urgent = False
        self._request_stop: Callable[[str], None] = _nothing
        self._stop_now: Callable[[str], None] = _nothing

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
class TrialOrder:
    """A trial to train.

    Attributes:
        number: Its number in the study.
        config: How.
    """

    number: int
    config: RunConfig


class TrainTrial(Protocol):
    """Trains one trial, from its checkpoint if it has one."""

    def __call__(self, order: TrialOrder, control: TrialControl) -> None:
        """Return at the training's end.

        Raises:
            TrainingFailedError: It gave up.
            TrainingStoppedError: ``control`` asked it to stop.
        """


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        state: ``running`` if the next command goes on with it.
        error: Why it failed, in one line.
        fault: What keeps every other trial from training, too.
    """

    state: Literal["complete", "pruned", "failed", "running"]
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
    if isinstance(error, NotEnoughSlotsError | TrackingError):
        return TrialEnd("running", fault=error)
    if reason is not None and reason != PRUNED and not isinstance(error, TrainingFailedError):
        # A second Ctrl-C tears things down in any order, and what falls over then is no fault of the trial.
        return TrialEnd("running")
    return TrialEnd("failed", without_credentials(" ".join(str(error).split())) or type(error).__name__)


@dataclass
class _Running:
    """A trial under way."""

    control: TrialControl
    slots: int
    begin: float


@dataclass
class Trials:
    """The trials of one command.

    Attributes:
        study: Chooses them, and remembers.
        space: What is searched.
        base: The configuration that all share.
        train: Trains one.
        slots: Returns how many barrier tasks the cluster has room for, those under way included.
        limits: How far the sweep goes.
        say: Shows a line about a trial: its number and the text. From any thread.
        on_end: Hears of every trial that is over, in the thread that called :meth:`run`.
        clock: Returns seconds; monotonic.
        stop_reason: Why the command stops; None while nobody has asked.
    """

    study: SweepStudy
    space: SearchSpace
    base: RunConfig
    train: TrainTrial
    slots: Callable[[], int]
    limits: SweepLimits
    say: Callable[[int, str], None]
    on_end: Callable[[TrialRecord], None]
    clock: Callable[[], float] = time.monotonic
    stop_reason: str | None = field(default=None, init=False)
    _is_urgent: bool = field(default=False, init=False)
    _running: dict[int, _Running] = field(default_factory=dict, init=False)
    _waiting: dict[Future[None], int] = field(default_factory=dict, init=False)
    # Chosen, and still without its slots.
    _chosen: TrialOrder | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _last_error: str | None = field(default=None, init=False)
    _fault: Exception | None = field(default=None, init=False)

    def run(self) -> None:
        """Run trials until there are enough, a limit is reached, or somebody asks for a stop.

        Raises:
            SweepFailedError: No trial of the sweep came to its end, or too many failed one after the other.
            Exception: What keeps every trial from training, such as too few slots.
        """
        began = self.clock()
        with ThreadPoolExecutor(max_workers=self.limits.trials, thread_name_prefix="trial") as pool:
            try:
                while (step := self._next_step(began)) != "end":
                    if step == "wait":
                        self._wait()
                    elif self._chosen is None:
                        # How many slots it takes shows only now, so the question is put once more.
                        self._choose()
                    else:
                        self._start(pool, self._chosen)
            except BaseException:
                # The pool waits for its threads; trials that nobody listens to must not go on.
                self.stop_now()
                raise
        if self._fault is not None:
            raise self._fault
        if self.stop_reason is None:
            self._require_success()

    def request_stop(self, reason: str) -> None:
        """Start no further trial, and let those under way save a checkpoint and stop. For signal handlers, too."""
        self.stop_reason = self.stop_reason or reason
        for running in list(self._running.values()):
            running.control.request_stop(self.stop_reason)

    def stop_now(self) -> None:
        """Let those under way stop without another checkpoint. For signal handlers, too."""
        self.stop_reason = self.stop_reason or "stopped at once"
        self._is_urgent = True
        for running in list(self._running.values()):
            running.control.stop_now(self.stop_reason)

    def _next_step(self, began: float) -> Step:
        slots = self.slots()
        progress = SweepProgress(
            ended=sum(1 for record in self.study.records() if record.state != "running"),
            running=self._taken(),
            failures=self._failures,
            seconds=self.clock() - began,
            is_stopping=self.stop_reason is not None or self._fault is not None,
        )
        return next_step(self.limits, progress, slots, self._needed(slots))

    def _taken(self) -> dict[int, int]:
        return {number: running.slots for number, running in list(self._running.items())}

    def _needed(self, slots: int) -> int:
        """Return the slots of the next trial; before it is chosen, the fewest that any may take."""
        if self._chosen is not None:
            return _slots_of(self._chosen, slots)
        searched = self.space.domains.get("workers")
        choices = searched.ends if searched else (self.base.workers,)
        return min(parse_workers(workers).fewest for workers in choices) + self.base.ranks_beside_workers

    def _choose(self) -> None:
        """Take the next trial; one whose values contradict each other fails without a training."""
        record = self.study.begin()
        try:
            self._chosen = TrialOrder(record.number, self.space.configure(self.base, record.values))
        except ValueError as error:
            self._keep_end(record.number, TrialEnd("failed", str(error)), 0.0)

    def _start(self, pool: ThreadPoolExecutor, order: TrialOrder) -> None:
        number = order.number
        control = TrialControl(
            on_event=lambda event: self._on_event(number, control, event),
            slots=lambda: share_of(number, self._taken(), self.slots()),
            say=lambda text: self.say(number, text),
            note=lambda run_id, run_folder: self.study.note(number, run_id=run_id, run_folder=run_folder),
        )
        self._running[number] = _Running(control, _slots_of(order, self.slots()), self.clock())
        if self.stop_reason is not None:  # a signal came before the trial could be found by it
            control.request_stop(self.stop_reason)
        self._chosen = None
        self.say(number, "begins: " + in_words(self.study.record(number).values))
        self._waiting[pool.submit(self.train, order, control)] = number

    def _wait(self) -> None:
        """Wait for a trial's end, but no longer than slots and the clock may be left unseen."""
        ended, _ = wait(self._waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in ended:
            number = self._waiting.pop(future)
            running = self._running[number]
            end = how_it_ended(future.exception(), running.control.reason)
            # Until it is kept, its slots are taken: the study must know the value before it chooses again.
            self._keep_end(number, end, self.clock() - running.begin)
            del self._running[number]

    def _keep_end(self, number: int, end: TrialEnd, seconds: float) -> None:
        record = self.study.end(number, end.state, seconds=seconds, error=end.error)
        self._fault = self._fault or end.fault
        if record.state == "failed":
            self._failures += 1
            self._last_error = record.error
        elif record.state != "running":
            self._failures = 0
        best = "" if record.best is None else f", {self.base.monitor} {record.best:.4f}"
        why = f": {record.error}" if record.error else ""
        state = "stops, to go on later" if record.state == "running" else record.state
        self.say(number, f"{state} after {record.epochs} epochs{best}{why}")
        if record.state != "running":
            self.on_end(record)

    def _on_event(self, number: int, control: TrialControl, event: Event) -> None:
        """Hear an event of a trial; the end of an epoch may be the end of the trial."""
        if event["event"] != "epoch_end" or event.get("rank") != 0:
            return
        value = event["logs"].get(self.base.monitor)
        if value is None or not self.study.report(number, event["epoch"], float(value)):
            return
        if control.reason is None:
            self.say(number, f"is pruned at epoch {event['epoch']}, {self.base.monitor} {value:.4f}")
            control.request_stop(PRUNED)

    def _require_success(self) -> None:
        if self._failures >= self.limits.failures:
            raise SweepFailedError(
                f"{self._failures} trials failed one after the other, the last with: {self._last_error}. Mend that, or "
                f"search other values; the same command goes on with further trials"
            )
        if self.study.best() is None:
            last = f"; the last error: {self._last_error}" if self._last_error else ""
            raise SweepFailedError(f"no trial was trained to its end{last}")


def _slots_of(order: TrialOrder, slots: int) -> int:
    return slots_needed(order.config.elastic, slots, order.config.ranks_beside_workers)


def in_words(values: Mapping[str, Any]) -> str:
    """Return searched values as text: ``learning_rate=0.0031, model.hidden_units=[64]``."""
    return ", ".join(f"{knob}={_short(value)}" for knob, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _nothing(_: str) -> None:
    pass
