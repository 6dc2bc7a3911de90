"""One attempt while it runs: hears its ranks, renews their leases, and asks or makes them end when it is time."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from training.channel.events import Event
from training.supervision.failure_policy import RankError, Stop, known_errors
from training.supervision.timing import ABORT_SECONDS, GRACE_SECONDS
from training.supervision.watchdog import Limits, Watch, Watchdog

# What ranks say of a failure may still be on its way when Spark reports it.
_LATE_EVENTS_SECONDS = 5.0

# How soon a stop is noticed between two attempts.
_NAP_SECONDS = 0.2

logger = logging.getLogger(__name__)


class Commands(Protocol):
    """Where commands go; :class:`training.channel.events.EventServer` is one."""

    def command(self, command: dict[str, Any], rank: int | None = None) -> None:
        """Send ``command`` to ``rank`` or its task, or to all."""


class StopSignal:
    """Whether the run is to stop. Any thread and any signal handler may set it, again and again.

    A handler interrupts the main thread anywhere, also where that holds a lock: so there is none in here, only plain
    attributes. ``Event.set`` could wait for ever for the ``Event.wait`` it interrupts. A signal that comes right
    before a long sleep is handled after it: so sleeps are short.

    Attributes:
        reason: Why to stop after a checkpoint; None while nobody has asked.
        is_urgent: Whether to stop without one.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_urgent = False

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason counts."""
        self.reason = self.reason or reason

    def request_now(self, reason: str) -> None:
        """Ask for a stop at once, without a checkpoint."""
        self.is_urgent = True
        self.request(reason)

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or soon after somebody has asked for a stop."""
        end = time.monotonic() + seconds
        while self.reason is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))


Every = Callable[[float, Callable[[], None]], AbstractContextManager[None]]


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` every ``seconds`` from a thread of its own while the block runs."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            try:
                action()
            except Exception:
                # Whatever one round stumbles over, the ranks need the next one: without leases they would end.
                logger.exception("a round of supervision failed")

    thread = threading.Thread(target=work, name=f"supervision-{action.__name__}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


class _Meeting:
    """Who has told where it listens.

    Attributes:
        has_news: Whether somebody has told since the last :meth:`command`.
    """

    def __init__(self, ranks: int) -> None:
        self.has_news = False
        self._addresses: list[str | None] = [None] * ranks

    def add(self, rank: int, address: str) -> None:
        self._addresses[rank] = address
        self.has_news = True

    def is_complete(self) -> bool:
        return all(self._addresses)

    def command(self) -> dict[str, Any]:
        """Return what tells the ranks all that is known; null stands for who is still to come."""
        self.has_news = False
        return {"command": "peers", "addresses": list(self._addresses)}


class RunningAttempt:
    """What is known of an attempt, from its launch to its end.

    Events come from the threads of the event server, rounds from those of :func:`every`. A lock guards the state; it is
    never held while an event is handled or a command is sent, since both may take their time.

    Attributes:
        number: Counts from 1.
        stop: Why the ranks were asked to stop, if they were.
        cancelled: Whether the Spark job is being cancelled from here.
    """

    def __init__(
        self,
        number: int,
        workers: int,
        *,
        ranks: int | None = None,
        dispensable: frozenset[int] = frozenset(),
        limits: Limits,
        signal: StopSignal,
        tell: Callable[[Event], None],
        cancel: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """Begin to watch; nothing has been launched yet.

        Args:
            number: Counts from 1.
            workers: How many of its ranks compute gradients.
            ranks: Number of all ranks; by default all are workers.
            dispensable: Ranks without which it goes on once it is under way.
            limits: When a rank counts as hung.
            signal: Whether the run is to stop.
            tell: Gets every event; does not raise.
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
        self._tell = tell
        self._cancel = cancel
        self._clock = clock
        self._lock = threading.Lock()
        self._has_been_explained = threading.Event()
        self._errors: list[RankError] = []
        self._server: Commands | None = None
        self._is_over = False
        self._tasks: set[int] = set()
        self._meeting = _Meeting(ranks or workers)
        self._telling_peers = threading.Lock()
        self._has_taken_note = False
        self._stop_since: float | None = None
        self._error_since: float | None = None
        self._aborted_since: float | None = None
        self._watch = Watch(ranks or workers, limits, clock())
        self._watchdog = Watchdog(self._watch, clock())
        self._hung: RankError | None = None

    def begin(self, server: Commands) -> None:
        """Take note of where commands go."""
        self._server = server

    def hear(self, event: Event) -> None:
        """Take in an event of a rank or a task, and pass it on."""
        # A rank of an earlier attempt that dies late must not count against this one.
        if event.get("attempt") != self.number:
            return
        with self._lock:
            if self._is_over:
                return
            now = self._clock()
            self._watchdog.hear(event, now)
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
                self._meeting.add(event["rank"], event["address"])
        if event["event"] == "listening":  # before anything that may take its time: the ranks wait for it
            self._tell_peers(has_to_be_complete=True)
        self._tell(event)
        with self._lock:
            self._watchdog.handling_since(None)

    def renew_leases(self) -> None:
        """Tell all tasks that the driver lives; one that does not hear it ends its rank."""
        self._command({"command": "lease"})

    def tick(self) -> None:
        """Do what is due: pass on a stop, end the ranks after an error, look for one that hangs.

        It tells of that, and so may wait for whoever listens: what must not wait has rounds of its own.
        """
        now = self._clock()
        with self._lock:
            if self._is_over:
                return
            # Once a rank has said what is wrong, it is clear why the others stand still.
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
            self._tell({**hung, "attempt": self.number})
        # Who waits for others is to know for whom. Not at every address, which would be a message from each to each.
        self._tell_peers(has_to_be_complete=False)
        self._pass_on_stop(now)

    def grow(self, to: Callable[[int], int | None]) -> None:
        """Ask the ranks to stop at a checkpoint when more workers could go on from it.

        Args:
            to: Returns the number of workers that could replace this many, or None; may take its time.
        """
        with self._lock:
            is_busy = self._is_over or self.stop is not None or self._error_since is not None
            if is_busy or not self._watch.is_training():
                return
        if to(self._workers) is not None:
            with self._lock:
                self.stop = self.stop or "grow"

    def wait_for_reason(self) -> None:
        """Give the rank that failed first a bounded time to be heard; for when Spark has reported a failure."""
        self._has_been_explained.wait(_LATE_EVENTS_SECONDS)

    def end(self) -> None:
        """Close the books; what comes later does not count."""
        with self._lock:
            self._is_over = True

    def errors(self, outcomes: Sequence[Mapping[str, Any]], failure: RankError | None) -> tuple[RankError, ...]:
        """Return the failures of an attempt that has ended; none only when it was asked to stop.

        Args:
            outcomes: What the launcher returned; empty when it raised.
            failure: What it raised, as far as Spark knows.
        """
        with self._lock:
            known = known_errors(self._errors, outcomes, time.time(), self._tasks)
            # The attempt went on without them, so what ended it is something else.
            errors = tuple(error for error in known if error.rank not in self._done_without)
            # The cancelling was ours: the reason for it is what counts.
            is_ours = failure is not None and failure.cause == "cancelled" and self.cancelled
            if failure is not None and not (is_ours and errors):
                # With the job the outcomes are lost, by which a rank tells that its machine is taken away.
                taken_away = () if is_ours else sorted(self._preempted)
                errors = (*errors, *(RankError.preempted(rank, time.time()) for rank in taken_away), failure)
            if not errors and self.stop is None:
                said = sorted({str(outcome["outcome"]) for outcome in outcomes})
                message = f"the ranks ended before the training did and do not say why ({', '.join(said) or 'no word'})"
                errors = (RankError("spark", None, "NoReason", message, time.time()),)
            return errors

    def _tell_peers(self, *, has_to_be_complete: bool) -> None:
        """Pass on what ranks have told of where they listen, if that is new."""
        # In turn: of these commands the last one stands for who connects later.
        with self._telling_peers:
            with self._lock:
                is_due = self._meeting.has_news and (self._meeting.is_complete() or not has_to_be_complete)
                command = self._meeting.command() if is_due else None
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
        if hang.is_unheard:  # no rank hangs where none runs; fewer of them may find room
            self._hung = RankError("start", None, "NotHeard", hang.why, time.time())
        else:
            self._hung = RankError("hung", hang.ranks[0], "Hung", hang.why, time.time(), step=hang.step)
        self._note(self._hung, now)
        return self._watchdog.report(hang)

    def _reason_to_abort(self, now: float) -> str | None:
        if self._hung is not None:
            return self._hung.message
        if self._error_since is not None and now - self._error_since >= GRACE_SECONDS:
            first = self._errors[0]
            return f"rank {first.rank}: {first.type}: {first.message}"
        limit = self._limits.checkpoint_seconds
        # To grow is not worth an attempt: its ranks stop when they next ask each other, be it in an hour.
        if self.stop == "requested" and self._stop_since is not None and now - self._stop_since > limit:
            return f"the ranks did not stop within {limit:g} s of being asked to"
        return None

    def _pass_on_stop(self, now: float) -> None:
        """Ask the ranks once to stop; the event server tells tasks that connect later."""
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
            self._tell({"event": "stopping", "attempt": self.number, "reason": self._signal.reason})

    def cancel_when_due(self) -> None:
        """Cancel the Spark job where the ranks cannot be waited for: at a second signal, or when they do not end.

        It tells nobody, and so waits for none.
        """
        now = self._clock()
        with self._lock:
            if self._signal.is_urgent:  # which a tick may not have come to
                self.stop = "requested"
            has_nothing_to_save = self.stop == "requested" and not self._tasks
            is_stuck = self._aborted_since is not None and now - self._aborted_since >= ABORT_SECONDS
            is_unheard = self._aborted_since is not None and not self._tasks
            is_due = self._signal.is_urgent or has_nothing_to_save or is_stuck or is_unheard
            if self._is_over or not is_due:
                return
            is_first, self.cancelled = not self.cancelled, True
        # From this thread and not from a signal handler: the main one is within a call of its own to the JVM. At every
        # tick: there may have been no job to cancel the last time, or Spark was not listening.
        try:
            self._cancel()
        except Exception as error:
            if is_first:
                logger.warning("the Spark job cannot be cancelled, which is tried again every second: %s", error)

    def _command(self, command: Mapping[str, Any], rank: int | None = None) -> None:
        if self._server is not None:
            self._server.command(dict(command), rank)
