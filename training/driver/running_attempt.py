"""A running attempt on the driver: receives the ranks' events, renews their leases, and stops or aborts them."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mirrorspark.training.driver.watchdog import Watch, Watchdog
from mirrorspark.training.protocol import PhaseLimits
from mirrorspark.training.protocol.messages import Event, StopSignal
from mirrorspark.training.protocol.outcomes import RankError, Stop, known_errors, timing
from mirrorspark.training.protocol.ring import AddressBook

# The ranks' own events about a failure may arrive after Spark's report of it.
_LATE_EVENTS_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Commands(Protocol):
    """A sender of commands, such as :class:`training.protocol.messages.EventServer`."""

    def command(self, command: dict[str, Any]) -> None:
        """Send ``command`` to all ranks, or to their tasks."""


class RunningAttempt:
    """The state of an attempt from its launch to its end.

    Events arrive in threads of the event server, periodic calls in those of
    :func:`training.protocol.outcomes.every`. A lock guards the state; it is never held while an event is handled or a
    command is sent, since both may take long.

    Attributes:
        number: Counts from 1.
        stop: The reason for which the ranks were asked to stop, if they were.
        cancelled: The Spark job is being cancelled from here.
    """

    def __init__(
        self,
        number: int,
        workers: int,
        *,
        ranks: int | None = None,
        dispensable: frozenset[int] = frozenset(),
        limits: PhaseLimits,
        signal: StopSignal,
        on_event: Callable[[Event], None],
        cancel: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """Begin to watch, before anything is launched.

        Args:
            number: Counts from 1.
            workers: Number of ranks that compute gradients.
            ranks: Number of all ranks; by default all are workers.
            dispensable: Ranks that the training can lose once it is under way.
            limits: Time limits by which a rank counts as hung.
            signal: Request that the run stop.
            on_event: Gets every event; does not raise.
            cancel: Cancels the Spark job.
            clock: Returns seconds; monotonic.
        """
        self.number = number
        self.stop: Stop | None = None
        self.cancelled = False
        self._workers = workers
        self._dispensable = dispensable
        self._is_under_way = False
        self._done_without: set[int] = set()
        self._preempted: set[int] = set()
        self._limits = limits
        self._signal = signal
        self._on_event = on_event
        self._cancel = cancel
        self._clock = clock
        self._lock = threading.Lock()
        self._has_been_explained = threading.Event()
        self._errors: list[RankError] = []
        self._server: Commands | None = None
        self._is_over = False
        self._tasks: set[int] = set()
        self._addresses = AddressBook(ranks or workers)
        self._sending_addresses = threading.Lock()
        self._has_taken_note = False
        self._stop_since: float | None = None
        self._error_since: float | None = None
        self._aborted_since: float | None = None
        self._has_aborted_at_once = False
        self._watch = Watch(ranks or workers, limits, clock())
        self._watchdog = Watchdog(self._watch, clock())
        self._hung: RankError | None = None

    def begin(self, server: Commands) -> None:
        """Set the sender of commands."""
        self._server = server

    def on_event(self, event: Event) -> None:
        """Process an event of a rank or a task, and pass it on."""
        # A rank of an earlier attempt that dies late must not count against this one.
        if event.get("attempt") != self.number:
            return
        try:
            self._process(event)
        finally:
            # Also after an event that makes no sense: the driver must not seem to handle it for ever.
            with self._lock:
                self._watchdog.handling_since(None)

    def _process(self, event: Event) -> None:
        with self._lock:
            if self._is_over:
                return
            now = self._clock()
            self._watchdog.on_event(event, now)
            if event.get("from") == "task":
                self._tasks.add(event["rank"])
            if event["event"] == "train_begin" and event["rank"] == 0:
                self._is_under_way = True
            if event["event"] == "error":
                if self._is_under_way and event["rank"] in self._dispensable:
                    self._watch.forget(event["rank"])
                    self._done_without.add(event["rank"])
                else:
                    self._note(RankError.from_event(event), now)
            if event["event"] == "preemption":
                self._preempted.add(event["rank"])
            self._watchdog.handling_since(now)
            if event["event"] == "listening":
                self._addresses.add(event["rank"], event["address"])
        if event["event"] == "listening":  # Handled before anything slow, since the ranks wait for it.
            self._send_addresses(has_to_be_complete=True)
        self._on_event(event)

    def renew_leases(self) -> None:
        """Renew the leases of all tasks; a task whose lease ends stops its rank."""
        self._command({"command": "lease"})

    def tick(self) -> None:
        """Do all that is due: pass on a stop, end the ranks after an error, look for a rank that hangs.

        It sends events and may wait for their receivers, so urgent work runs in other threads.
        """
        now = self._clock()
        with self._lock:
            if self._is_over:
                return
            # The first error of a rank explains why the others stand still.
            move = self._watchdog.tick(now) if self._error_since is None else None
            hung = self._note_hang(now) if move == "report" else None
            abort = self._reason_to_abort(now) if self._aborted_since is None else None
            if abort is not None:
                self._aborted_since = now
        if move == "ask_for_stacks":
            self._command({"command": "stacks"})
        if abort is not None:
            self._command({"command": "abort", "reason": abort})
        if hung is not None:
            self._on_event({**hung, "attempt": self.number})
        # Waiting ranks learn which ranks they wait for. To send every new address would take a message per pair of
        # ranks.
        self._send_addresses(has_to_be_complete=False)
        self._pass_on_stop(now)

    def grow(self, to: Callable[[int], int | None]) -> None:
        """Ask the ranks to stop at a checkpoint if more workers could resume from it.

        Args:
            to: Returns the larger number of workers that could replace this many, or None; may take long.
        """
        with self._lock:
            is_busy = self._is_over or self.stop is not None or self._error_since is not None
            if is_busy or not self._watch.is_training():
                return
        if to(self._workers) is not None:
            with self._lock:
                self.stop = self.stop or "grow"

    def wait_for_reason(self) -> None:
        """Wait for a bounded time for the event of the rank that failed first, after Spark has reported a failure."""
        self._has_been_explained.wait(_LATE_EVENTS_SECONDS)

    def end(self) -> None:
        """End the attempt; later events are ignored."""
        with self._lock:
            self._is_over = True

    def errors(self, outcomes: Sequence[Mapping[str, Any]], failure: RankError | None) -> tuple[RankError, ...]:
        """Return the failures of an attempt that has ended; none only if it was asked to stop.

        Args:
            outcomes: The launcher's result; empty if it raised.
            failure: Spark's account of the error that it raised.
        """
        with self._lock:
            known = known_errors(self._errors, outcomes, time.time(), self._tasks)
            # The attempt went on without these ranks, so something else ended it.
            errors = tuple(error for error in known if error.rank not in self._done_without)
            # The job was cancelled from here, so the reason for that counts.
            is_ours = failure is not None and failure.cause == "cancelled" and self.cancelled
            if failure is not None and not (is_ours and errors):
                # The outcomes are lost with the job, and with them the ranks' reports of preemption.
                taken_away = () if is_ours else sorted(self._preempted)
                errors = (*errors, *(RankError.preempted(rank, time.time()) for rank in taken_away), failure)
            if not errors and self.stop is None:
                said = sorted({str(outcome["outcome"]) for outcome in outcomes})
                message = f"the ranks ended before the training did and do not say why ({', '.join(said) or 'no word'})"
                errors = (RankError("spark", None, "NoReason", message, time.time()),)
            return errors

    def _send_addresses(self, *, has_to_be_complete: bool) -> None:
        """Send the ranks' listening addresses to all ranks, if there are new ones."""
        # One at a time: the last of these commands is retained for clients that connect later.
        with self._sending_addresses:
            with self._lock:
                is_due = self._addresses.has_news and (self._addresses.is_complete() or not has_to_be_complete)
                command = self._addresses.command() if is_due else None
            if command is not None:
                self._command(command)

    def _note(self, error: RankError, now: float) -> None:
        self._errors.append(error)
        if self._error_since is None:
            self._error_since = now
        if error.cause not in ("peer", "spark"):
            self._has_been_explained.set()

    def _note_hang(self, now: float) -> Event:
        hang = self._watchdog.hang
        assert hang is not None  # noqa: S101 - there is something to report
        if hang.has_no_event:  # No rank has started, so none hangs; fewer workers may find slots.
            self._hung = RankError("start", None, "NoEvent", hang.why, time.time())
        else:
            self._hung = RankError("hung", hang.ranks[0], "Hung", hang.why, time.time(), step=hang.step)
        self._note(self._hung, now)
        return self._watchdog.report(hang)

    def _reason_to_abort(self, now: float) -> str | None:
        if self._hung is not None:
            return self._hung.message
        if self._error_since is not None and now - self._error_since >= timing.GRACE_SECONDS:
            first = self._errors[0]
            return f"rank {first.rank}: {first.type}: {first.message}"
        limit = self._limits.checkpoint_seconds
        # Scaling up never aborts an attempt: its ranks stop when they next agree on it.
        if self.stop == "requested" and self._stop_since is not None and now - self._stop_since > limit:
            return f"the ranks did not stop within {limit:g} s of being asked to"
        return None

    def _pass_on_stop(self, now: float) -> None:
        """Ask the ranks once to stop; the event server passes the command to tasks that connect later."""
        with self._lock:
            is_requested = self._signal.reason is not None and not self._has_taken_note
            if is_requested:
                self.stop, self._has_taken_note = "requested", True
            has_to_ask = self.stop is not None and self._stop_since is None
            if has_to_ask or is_requested:
                self._stop_since = now
        if has_to_ask:
            self._command({"command": "stop", "reason": "driver"})
        if is_requested:
            self._on_event({"event": "stopping", "attempt": self.number, "reason": self._signal.reason})

    def cancel_when_due(self) -> None:
        """Cancel the Spark job and abort the ranks at a second signal, or when the ranks do not end in time.

        It sends no event, so it never waits for a receiver.
        """
        # Read once: a signal may come between two looks.
        now, is_urgent = self._clock(), self._signal.is_urgent
        with self._lock:
            if is_urgent:  # A tick may not have seen it yet.
                self.stop = "requested"
            has_nothing_to_save = self.stop == "requested" and not self._tasks
            is_stuck = self._aborted_since is not None and now - self._aborted_since >= timing.ABORT_SECONDS
            has_no_event = self._aborted_since is not None and not self._tasks
            is_due = is_urgent or has_nothing_to_save or is_stuck or has_no_event
            if self._is_over or not is_due:
                return
            is_first, self.cancelled = not self.cancelled, True
            # Once, though the job may have been cancelled before: a rank in local mode belongs to none.
            has_to_abort = is_urgent and not self._has_aborted_at_once
            self._has_aborted_at_once = is_urgent
        if has_to_abort:
            self._command({"command": "abort", "reason": f"stopped at once: {self._signal.reason}"})
        # The call comes from this thread and not from a signal handler, since the main thread is itself within a call
        # to the JVM. It is repeated: the last time there may have been no job to cancel, or Spark did not answer.
        try:
            self._cancel()
        except Exception as error:
            if is_first:
                logger.warning("the Spark job cannot be cancelled, which is tried again every second: %s", error)

    def _command(self, command: Mapping[str, Any]) -> None:
        if self._server is not None:
            self._server.command(dict(command))
