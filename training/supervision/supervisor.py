"""Owns the attempts of a run: launches, watches the ranks' events, restarts from the last commit, or gives up."""

import contextlib
import dataclasses
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from callbacks import commit
from callbacks.checkpoint_store import STORE_ERRORS
from callbacks.credentials import without_credentials
from callbacks.fence import FENCE, fence, read_fence
from training.channel.events import Event, EventAddress, EventServer
from training.ranks.launcher import BarrierJobError
from training.ranks.plan import TrainingPlan
from training.supervision.elastic import Elastic
from training.supervision.failure_policy import (
    SESSION_LOST,
    Attempt,
    Budgets,
    RankError,
    decide,
    growth_pause_seconds,
    usable_slots,
)
from training.supervision.running_attempt import Commands, Every, RunningAttempt, StopSignal, every
from training.supervision.store_reads import Beat, StoppedReading, StoreReader
from training.supervision.timing import LEASE_RENEWAL_SECONDS, TICK_SECONDS
from training.supervision.watchdog import Limits

# Between two looks at the slots of a cluster that has too few.
_SLOTS_POLL_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Launcher(Protocol):
    """Runs one attempt."""

    def __call__(self, plan: TrainingPlan) -> tuple[dict[str, Any], ...]:
        """Return how every rank ended, in rank order; raise ``BarrierJobError`` when the Spark job itself failed."""

    def cancel(self) -> None:
        """End the running job, from another thread."""


class Server(Commands, contextlib.AbstractContextManager["Server"], Protocol):
    """What an attempt needs of :class:`training.channel.events.EventServer`."""

    address: EventAddress


OpenServer = Callable[[str, Callable[[Event], None], str], Server]


class TrainingFailedError(RuntimeError):
    """Training gave up; ``attempts`` holds every attempt with its errors, the message the last one's first error."""

    def __init__(self, attempts: tuple[Attempt, ...], reason: str = "") -> None:
        """Keep the attempts, and why there is no further one."""
        self.attempts = attempts
        self.reason = reason
        first = attempts[-1].first_error
        tries = f" after {len(attempts)} attempts" if len(attempts) > 1 else ""
        # Of their own errors and of a cancelled job, people need not be told why they are not tried again.
        why = f"; {reason}" if reason and first.cause not in ("user", "cancelled") else ""
        super().__init__(f"training failed{tries}: {first.in_words}{why}")
        if first.cause == "user" and first.traceback:
            # It happened in another process: without this nobody would see where in his own code.
            where = "the driver" if first.rank is None else f"rank {first.rank}"
            self.add_note(without_credentials(f"in {where}:\n{first.traceback}"))

    def __reduce__(self) -> tuple[type, tuple[tuple[Attempt, ...], str]]:
        """Pickle by the attempts, not by the message."""
        return type(self), (self.attempts, self.reason)


class TrainingStoppedError(RuntimeError):
    """Training was stopped as somebody asked; ``step`` is the checkpoint's it can go on from, 0 when there is none."""

    def __init__(self, attempts: tuple[Attempt, ...], step: int, reason: str) -> None:
        """Keep where it stopped and why."""
        self.attempts = attempts
        self.step = step
        self.reason = reason
        if step:
            where, goes_on = f"at step {step:,}", "goes on"
        elif any(attempt.workers for attempt in attempts):
            where, goes_on = "before the first checkpoint", "starts anew"
        else:  # what the store holds may never have been read
            where, goes_on = "before the first launch", "tries again"
        super().__init__(f"stopped {where} ({reason}); the same command {goes_on}")

    def __reduce__(self) -> tuple[type, tuple[tuple[Attempt, ...], int, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.attempts, self.step, self.reason)


class NotEnoughSlotsError(RuntimeError):
    """The cluster has had too few slots for the fewest workers for too long."""


@dataclasses.dataclass(frozen=True)
class Supervisor:
    """Everything that supervision needs.

    Attributes:
        launch: Runs one attempt.
        host: Interface of this machine to listen on.
        advertised: Address under which the ranks reach it.
        elastic: How many workers, and what they train with.
        slots: Returns how many workers the cluster has room for, those of this run included.
        on_event: Gets every event of the attempt's ranks, and the supervisor's own (``attempt``, ``restart``, ``hung``,
            ``stopping``, ``waiting`` for slots or the store); one at a time, from several threads.
        budgets: How often it restarts, and how long it waits before.
        limits: When a rank counts as hung, and when a store does.
        has_checkpoints: Whether an earlier driver of this run has used its store of checkpoints, and so left a fence in
            it. A store without one is then one whose disk is not mounted, and never a place to start afresh.
        may_grow: Whether ranks that are asked to stop leave a checkpoint, from which more workers can go on.
        clock: Returns seconds; monotonic.
        open_server: Opens the event channel of an attempt.
        every: Calls something again and again while an attempt runs.
        stop: Whether the run is to stop.
    """

    launch: Launcher
    host: str
    advertised: str
    elastic: Elastic
    slots: Callable[[], int]
    on_event: Callable[[Event], None]
    budgets: Budgets = dataclasses.field(default_factory=Budgets)
    limits: Limits = dataclasses.field(default_factory=Limits)
    has_checkpoints: bool = False
    may_grow: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.monotonic
    open_server: OpenServer = EventServer
    every: Every = every
    stop: StopSignal = dataclasses.field(default_factory=StopSignal)
    _telling: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False)

    @functools.cached_property
    def _store(self) -> StoreReader:
        return StoreReader(self.limits.checkpoint_seconds, self.stop, self._tell, self.clock)

    def request_stop(self, reason: str) -> None:
        """Let the ranks save a checkpoint, then end the run. For signal handlers and other threads; may be repeated."""
        self.stop.request(reason)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """End the run without another checkpoint. For signal handlers and other threads; may be repeated."""
        self.stop.request_now(reason)

    def supervise(self, plan: TrainingPlan) -> tuple[Attempt, ...]:
        """Return the attempts of a finished training.

        Args:
            plan: What to train; what one attempt differs in from the next is filled in here.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: Somebody asked for a stop.
            NotEnoughSlotsError: The cluster has had too few slots for too long.
        """
        attempts: tuple[Attempt, ...] = ()
        while True:
            workers = self._wait_for_slots(plan, attempts)
            attempts = (*attempts, self._attempt(plan, attempts, workers))
            decision = decide(attempts, self.budgets, self._slots_after(attempts[-1]), self.elastic)
            if decision.kind == "finish":
                return attempts
            if decision.kind == "raise":
                raise TrainingFailedError(attempts, decision.reason)
            if decision.kind == "stopped":
                raise self._stopped(attempts)
            self._tell_restart(attempts[-1], decision.reason, decision.delay_seconds, decision.workers)
            self.stop.wait(decision.delay_seconds)

    def _wait_for_slots(self, plan: TrainingPlan, attempts: tuple[Attempt, ...]) -> int:
        """Return how many workers go on. Spark itself would wait for slots in silence."""
        deadline = self.clock() + self.budgets.slots_wait_seconds
        needed = self.elastic.workers.fewest
        is_waiting = False
        while True:
            if self.stop.reason is not None:
                raise self._stopped(attempts, None if attempts else self._newest(plan))
            slots = self._slots(attempts)
            workers = self.elastic.next_workers(usable_slots(attempts, slots, self.elastic))
            if workers is not None:
                return workers
            if self.clock() >= deadline:
                raise NotEnoughSlotsError(
                    f"the cluster has {slots} slots, the training needs {needed}; it has waited "
                    f"{self.budgets.slots_wait_seconds:g} s for them. Add executors, or use fewer workers"
                )
            if not is_waiting:
                is_waiting = True
                self._tell(
                    {
                        "event": "waiting",
                        "attempt": len(attempts) + 1,
                        "slots": slots,
                        "needed": needed,
                        "limit_seconds": self.budgets.slots_wait_seconds,
                    }
                )
            self.stop.wait(_SLOTS_POLL_SECONDS)

    def _slots(self, attempts: tuple[Attempt, ...]) -> int:
        """Return how many slots there are now.

        Raises:
            TrainingFailedError: The session is gone, and nothing can be launched any more.
        """
        try:
            return self.slots()
        except Exception as error:
            message = f"it does not say how many slots it has ({type(error).__name__}: {error}); start a new session"
            fault = RankError("spark", None, SESSION_LOST, message, time.time())
            raise TrainingFailedError((*attempts, _not_launched(attempts, fault))) from error

    def _slots_after(self, attempt: Attempt) -> int:
        """Return how many slots there are now, for people to read; a dead session must not hide why it died."""
        try:
            return self.slots()
        except Exception as error:
            # Who stops a whole group of processes stops the JVM as well, and has no use for this.
            is_stopping = self.stop.reason is not None
            logger.log(
                logging.DEBUG if is_stopping else logging.WARNING, "the slots of the cluster are not known: %s", error
            )
            return attempt.workers

    def _attempt(self, plan: TrainingPlan, earlier: Sequence[Attempt], workers: int) -> Attempt:
        """Launch once, and return how that ended."""
        number = len(earlier) + 1
        read = functools.partial(_resume_point, plan, earlier, has_checkpoints=self.has_checkpoints)
        try:
            resume = self._store.read(plan.checkpoints, read)
        except StoppedReading:
            raise self._stopped(earlier) from None
        except STORE_ERRORS as error:
            fault = RankError("store", None, type(error).__name__, str(error), time.time())
            return _not_launched(earlier, fault)
        checkpoint = resume.checkpoint
        if self.stop.reason is not None:
            raise self._stopped(earlier, checkpoint)
        batch = self.elastic.batch(workers)
        plan = dataclasses.replace(
            plan,
            attempt=number,
            resume_from=str(checkpoint.path) if checkpoint else None,
            workers=workers,
            global_batch_size=batch.global_batch_size,
            learning_rate_scale=batch.learning_rate_scale,
            fence=resume.fence,
            # A rank of an earlier attempt that still lives must not be let into this one's ring.
            token=secrets.token_hex(32),
        )
        running = RunningAttempt(
            number,
            workers,
            ranks=plan.ranks,
            dispensable=plan.dispensable_ranks,
            limits=self.limits,
            signal=self.stop,
            tell=self._tell,
            cancel=self.launch.cancel,
            clock=self.clock,
        )
        resumed_from = checkpoint.step if checkpoint else 0
        self._tell(
            {
                "event": "attempt",
                "attempt": number,
                "workers": workers,
                "resumed_from": resumed_from,
                "learning_rate_scale": batch.learning_rate_scale,
            }
        )
        outcomes, failure = self._run(plan, running, growth_pause_seconds(earlier))
        newest = self._newest(plan)
        # Not the newest there is: one that was passed over as damaged is no progress.
        reached = newest if newest is not None and newest.step > resume.newest_step else checkpoint
        epochs = _epochs(outcomes, plan.dispensable_ranks)
        return Attempt(
            number,
            epochs,
            () if epochs is not None else running.errors(outcomes, failure),
            resumed_from,
            reached.step if reached else 0,
            workers,
            running.stop,
            reached.epoch if reached else 0,
        )

    def _newest(self, plan: TrainingPlan) -> commit.CommittedCheckpoint | None:
        """Return the newest checkpoint by its marker alone; None when there is none to read."""
        try:
            return self._store.read(plan.checkpoints, lambda _: commit.latest_committed(plan.checkpoints, verify=False))
        except (*STORE_ERRORS, StoppedReading):
            return None

    def _run(
        self, plan: TrainingPlan, running: RunningAttempt, growth_pause_seconds: float
    ) -> tuple[tuple[dict[str, Any], ...], RankError | None]:
        """Return the outcomes of all ranks, or what Spark knows of a job that failed."""
        outcomes: tuple[dict[str, Any], ...] = ()
        failure: RankError | None = None
        with self.open_server(self.host, running.hear, self.advertised) as server:
            running.begin(server)
            with self._rounds(running, plan.workers, growth_pause_seconds):
                try:
                    outcomes = self.launch(dataclasses.replace(plan, events=server.address))
                except BarrierJobError as error:
                    failure = error.error
            if failure is not None and failure.cause not in ("cancelled", "user"):
                running.wait_for_reason()
        # Only now, with the server closed, has every rank been heard to its end.
        running.end()
        return outcomes, failure

    @contextlib.contextmanager
    def _rounds(self, running: RunningAttempt, workers: int, growth_pause_seconds: float) -> Iterator[None]:
        """Look after the attempt while the block runs. Slots are asked for in a thread of their own: that may take."""
        with contextlib.ExitStack() as rounds:
            rounds.enter_context(self.every(LEASE_RENEWAL_SECONDS, running.renew_leases))
            rounds.enter_context(self.every(TICK_SECONDS, running.tick))
            # Beside the other, which may wait for whoever is told.
            rounds.enter_context(self.every(TICK_SECONDS, running.cancel_when_due))
            if workers < self.elastic.workers.most:
                rounds.enter_context(self.every(growth_pause_seconds, lambda: running.grow(self._larger)))
            yield

    def _larger(self, workers: int) -> int | None:
        larger = self.elastic.larger(workers, self.slots())
        return larger if larger is not None and self.may_grow() else None

    def _stopped(
        self, attempts: Sequence[Attempt], newest: commit.CommittedCheckpoint | None = None
    ) -> TrainingStoppedError:
        """Return what to raise after ``attempts``; before any, ``newest`` is what earlier drivers left."""
        found = newest.step if newest else 0
        step = attempts[-1].committed if attempts else found
        return TrainingStoppedError(tuple(attempts), step, self.stop.reason or "as asked")

    def _tell_restart(self, last: Attempt, reason: str, delay_seconds: float, workers: int) -> None:
        self._tell(
            {
                "event": "restart",
                "attempt": last.number,
                "error": vars(last.first_error) if last.errors else None,
                "decision": reason,
                "delay_seconds": delay_seconds,
                "workers": workers,
            }
        )

    def _tell(self, event: Event) -> None:
        """Pass on an event, from whichever thread."""
        try:
            with self._telling:
                self.on_event({"time": time.time(), **event})
        except Exception:
            # Whatever a receiver stumbles over (a full disk, say), the training goes on.
            logger.exception("an event of kind %s could not be handled", event.get("event"))


def _not_launched(earlier: Sequence[Attempt], fault: RankError) -> Attempt:
    """Return an attempt that ended before its launch, and left everything as it was."""
    step, epochs = (earlier[-1].committed, earlier[-1].committed_epochs) if earlier else (0, 0)
    return Attempt(len(earlier) + 1, None, (fault,), step, step, workers=0, committed_epochs=epochs)


@dataclasses.dataclass(frozen=True)
class _ResumePoint:
    """Where an attempt begins.

    Attributes:
        fence: Id by which its chief knows that it may publish.
        checkpoint: To go on from; None to start afresh.
        newest_step: Of the newest checkpoint, damaged or not.
    """

    fence: str
    checkpoint: commit.CommittedCheckpoint | None
    newest_step: int


def _resume_point(plan: TrainingPlan, earlier: Sequence[Attempt], beat: Beat, *, has_checkpoints: bool) -> _ResumePoint:
    """Return where to go on; from now on no earlier attempt may add to the checkpoints.

    Args:
        plan: Names the store.
        earlier: Attempts before.
        beat: Called whenever something has come from the store: to check a large checkpoint takes long.
        has_checkpoints: Whether an earlier driver of this run has used the store.

    Raises:
        OSError: The store cannot be used, or has lost what it held: starting afresh would throw that away.
        StorageError: This machine cannot open the store.
    """
    is_first = not any(attempt.workers for attempt in earlier)
    if is_first and has_checkpoints and read_fence(plan.checkpoints) is None:
        raise FileNotFoundError(
            f"{plan.checkpoints} has no {FENCE}, though this run has put one there: is the disk mounted? Make "
            f"it available again, or start another run with resume=False (--no-resume)"
        )
    mine = fence(plan.checkpoints, 1 if is_first else len(earlier) + 1)
    beat()
    found = commit.committed(plan.checkpoints)
    beat()
    checkpoint = next((one for one in found if commit.is_whole(one, beat)), None)
    known_step = earlier[-1].committed if earlier else 0
    if checkpoint is None and known_step:
        raise FileNotFoundError(
            f"no whole checkpoint is left in {plan.checkpoints}, which held step {known_step:,}; make the store "
            f"available again, or start another run with resume=False (--no-resume)"
        )
    if checkpoint is None and has_checkpoints:
        logger.warning("there is no whole checkpoint in %s; the training starts afresh", plan.checkpoints)
    return _ResumePoint(mine.id, checkpoint, found[0].step if found else 0)


def _epochs(outcomes: Sequence[Mapping[str, Any]], dispensable: frozenset[int]) -> int | None:
    """Return how many epochs a training took that all its ranks have finished, but for those it can do without."""
    needed = [outcome for rank, outcome in enumerate(outcomes) if rank not in dispensable]
    if needed and all(outcome["outcome"] == "finished" for outcome in needed):
        return int(needed[0]["epochs"])
    return None
