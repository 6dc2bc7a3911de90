"""Runs the trials of a sweep, side by side as far as slots allow; what a trial tells decides whether it goes on."""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from callbacks.credentials import one_line
from training.channel.events import Event
from training.config import RunConfig
from training.supervision.elastic import parse_workers
from training.sweeping.schedule import Step, SweepLimits, SweepProgress, next_step, share_of, slots_needed
from training.sweeping.space import SearchSpace, in_words
from training.sweeping.study import SweepStudy, TrialRecord
from training.sweeping.trial import PRUNED, TrainTrial, TrialControl, TrialEnd, TrialOrder, how_it_ended

# Between two looks at the slots of the cluster and at the clock.
_POLL_SECONDS = 2.0


class SweepFailedError(RuntimeError):
    """No trial has been trained, or too many failed one after the other; the message holds the last one's error."""


class SessionLostError(RuntimeError):
    """The Spark session is gone; the trials that it took along go on with the next command."""


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
        slots: Returns how many barrier tasks the cluster has room for, those under way included; raises anything once
            the session is gone.
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
            SessionLostError: The Spark session is gone.
            Exception: What keeps every trial from training, such as too few slots.
        """
        began = self.clock()
        with ThreadPoolExecutor(max_workers=self.limits.trials, thread_name_prefix="trial") as pool:
            try:
                while True:
                    slots = self._slots_now()
                    step = self._next_step(began, slots)
                    if step == "end":
                        break
                    if step == "wait":
                        self._wait()
                    elif self._chosen is None:
                        # How many slots it takes shows only now, so the question is put once more.
                        self._choose()
                    else:
                        self._start(pool, self._chosen, slots)
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

    def stop_now(self, reason: str = "stopped at once") -> None:
        """Let those under way stop without another checkpoint. For signal handlers and other threads, too."""
        self.stop_reason = self.stop_reason or reason
        self._is_urgent = True
        for running in list(self._running.values()):
            running.control.stop_now(self.stop_reason)

    def _slots_now(self) -> int:
        """Return how many slots there are; none in a session that is gone, which ends the sweep."""
        try:
            return self.slots()
        except Exception as error:
            if self.stop_reason is None:  # the session of a sweep that is stopped may be ended beside it
                lost = SessionLostError(
                    f"the Spark session does not say how many slots it has ({type(error).__name__}: "
                    f"{one_line(error)}); start a new one: the same command goes on"
                )
                lost.__cause__ = error
                self._fault = self._fault or lost
                self.request_stop("the Spark session is gone")
            return 0

    def _next_step(self, began: float, slots: int) -> Step:
        progress = SweepProgress(
            ended=self.study.over,
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

    def _start(self, pool: ThreadPoolExecutor, order: TrialOrder, slots: int) -> None:
        number = order.number
        control = TrialControl(
            on_event=lambda event: self._on_event(number, control, event),
            slots=lambda: share_of(number, self._taken(), self.slots()),
            say=lambda text: self.say(number, text),
            note=lambda run_id, run_folder: self.study.note(number, run_id=run_id, run_folder=run_folder),
        )
        self._running[number] = _Running(control, _slots_of(order, slots), self.clock())
        if self.stop_reason is not None:  # a signal came before the trial could be found by it
            (control.stop_now if self._is_urgent else control.request_stop)(self.stop_reason)
        self._chosen = None
        self.say(number, "begins: " + in_words(self.study.record(number).values))
        self._waiting[pool.submit(self.train, order, control)] = number

    def _wait(self) -> None:
        """Wait for a trial's end, but no longer than slots and the clock may be left unseen."""
        ended, _ = wait(self._waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        if ended:
            # Trials fall over in many ways with their session. If it is gone, this asks them to stop before they are
            # judged, and none of them has failed.
            self._slots_now()
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
