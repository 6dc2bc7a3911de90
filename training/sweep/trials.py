"""Runs the trials of a sweep in ``Study.optimize``, in parallel as there are slots."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import optuna
from optuna.trial import FrozenTrial, Trial

from mirrorspark.storage import one_line
from mirrorspark.training.protocol import Event
from mirrorspark.training.sweep.options import SweepOptions
from mirrorspark.training.sweep.space import in_words
from mirrorspark.training.sweep.study import TrialRecord, best_record, count_ended, record_of, requeue
from mirrorspark.training.sweep.trial import PRUNED, TrialControl, TrialEnd, TrialPlan, classify_end


class SweepFailedError(RuntimeError):
    """No trial is complete, or too many failed consecutively; the message has the last error."""


class SessionLostError(RuntimeError):
    """The Spark session is lost; the next command resumes its trials."""


@dataclass
class Trials:
    """The trials of one command.

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
    _ends: dict[int, TrialEnd] = field(default_factory=dict, init=False)
    _ended: int = field(default=0, init=False)
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
        self._ended = count_ended(self.study)
        left = self.options.trials - self._ended
        if left > 0:
            # Not in the main thread, in which a training would install its own signal handlers.
            with ThreadPoolExecutor(1, thread_name_prefix="sweep") as pool:
                try:
                    pool.submit(self._optimize, left).result()
                except BaseException:
                    # The pool waits for its thread.
                    self.stop_now()
                    raise
        if self._fault is not None:
            raise self._fault
        if self.stop_reason is None:
            self._require_success()

    def _optimize(self, left: int) -> None:
        options = self.options
        room = max(1, self.slots() // options.slots_per_trial)
        self.study.optimize(
            self._train,
            n_trials=left,
            n_jobs=min(left, room, options.parallel or room),
            timeout=options.timeout_seconds,
            catch=Exception,
            callbacks=[self._on_trial_end],
        )

    def request_stop(self, reason: str) -> None:
        """Start no further trial; let running ones save a checkpoint and stop. For signal handlers, too."""
        self.stop_reason = self.stop_reason or reason
        for control, _ in list(self._running.values()):
            control.request_stop(self.stop_reason)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """Let running trials stop without another checkpoint. For signal handlers and other threads, too."""
        self.stop_reason = self.stop_reason or reason
        self._is_urgent = True
        for control, _ in list(self._running.values()):
            control.stop_now(self.stop_reason)

    def _train(self, trial: Trial) -> float:
        """Train a trial and return its best value, as Optuna's objective."""
        options = self.options
        values = options.space.suggest(trial)
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
            # The summary file is the sweep's.
            plan = TrialPlan(number, options.space.configure(replace(options.config, summary=None), values))
            self._running[number] = control, plan.config.slots
            if self.stop_reason is not None:  # A signal came before the trial was registered.
                (control.stop_now if self._is_urgent else control.request_stop)(self.stop_reason)
            self.say(number, "begins: " + in_words(values))
            self.train(plan, control)
            if not history:
                raise ValueError("it ended without a value of the monitored metric")  # noqa: TRY301
        except Exception as caught:
            error = caught
        finally:
            self._running.pop(number, None)
            trial.set_user_attr("seconds", before.seconds + time.monotonic() - began)
        end = self._ends[trial.number] = self._classify(error, control)
        if end.error is not None:
            trial.set_user_attr("error", end.error)
        if end.state == "pruned":
            raise optuna.TrialPruned
        if error is not None:
            raise error
        return (max if options.config.mode == "max" else min)(history.values())

    def _classify(self, error: Exception | None, control: TrialControl) -> TrialEnd:
        end = classify_end(error, control.reason)
        if end.error or end.fault:
            # A lost session makes trials fail with many errors, none of which is the trial's.
            try:
                self.slots()
            except Exception as gone:
                return TrialEnd("running", fault=None if self.stop_reason else _lost_session(gone))
        return end

    def _on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record the end of a trial, as Optuna's callback."""
        end, record = self._ends[trial.number], record_of(study, trial)
        with self._lock:
            try:
                self._count(end)
                if self._fault or self.stop_reason or self._failures >= self.options.max_failures:
                    study.stop()
                best = "" if record.best is None else f", {self.options.config.monitor} {record.best:.4f}"
                why = f": {end.error}" if end.error else ""
                state = "stops, to be resumed" if end.state == "running" else end.state
                self.say(record.number, f"{state} after {record.epochs} epochs{best}{why}")
                if end.state == "running":
                    requeue(study, trial)
                else:
                    self._ended += 1
                    self.on_end(record, self._ended)
            except Exception as error:
                # Optuna waits for running trials, and drops errors of callbacks once all trials have begun.
                self._fault = self._fault or error
                self.stop_now()
                study.stop()

    def _count(self, end: TrialEnd) -> None:
        self._fault = self._fault or end.fault
        if isinstance(end.fault, SessionLostError):
            self.request_stop("the Spark session is lost")
        if end.state == "failed":
            self._failures += 1
            self._last_error = end.error
        elif end.state != "running":
            self._failures = 0

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
            control.request_stop(PRUNED)

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
