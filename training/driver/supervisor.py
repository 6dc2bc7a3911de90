"""The supervisor of a run: launches attempts, watches the ranks, restarts from the last checkpoint, or gives up."""

import contextlib
import dataclasses
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from mirrorspark.callbacks.checkpoints import checkpoint_store, commit
from mirrorspark.training.driver.errors import NotEnoughSlotsError, TrainingFailedError, TrainingStoppedError
from mirrorspark.training.driver.failure_policy import decide, growth_pause_seconds, usable_slots
from mirrorspark.training.driver.launcher import BarrierJobError
from mirrorspark.training.driver.resume import FencedStart, fence_and_find_start
from mirrorspark.training.driver.running_attempt import Commands, RunningAttempt
from mirrorspark.training.driver.store_reads import StoppedReading, StoreReader
from mirrorspark.training.protocol import AttemptPlan, Budgets, Elastic, PhaseLimits
from mirrorspark.training.protocol.messages import Event, EventAddress, EventServer, StopSignal
from mirrorspark.training.protocol.outcomes import SESSION_LOST, Attempt, Every, RankError, every, timing

# Time between two looks at the slots of a cluster that has too few.
_SLOTS_POLL_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Launcher(Protocol):
    """A launcher of one attempt at a time."""

    def __call__(self, plan: AttemptPlan) -> tuple[dict[str, Any], ...]:
        """Return the outcome of every rank, in rank order; raise ``BarrierJobError`` if the Spark job itself failed."""

    def cancel(self) -> None:
        """End the running job, from another thread."""


class Server(Commands, contextlib.AbstractContextManager["Server"], Protocol):
    """The part of :class:`training.protocol.messages.EventServer` that an attempt uses."""

    address: EventAddress


OpenServer = Callable[[str, Callable[[Event], None], str], Server]


@dataclasses.dataclass(frozen=True)
class Supervisor:
    """The supervisor of a run.

    Attributes:
        launch: Runs one attempt.
        host: Interface of this machine to listen on.
        advertised: Address at which the ranks reach it.
        elastic: The allowed numbers of workers, with their batch and learning rate.
        slots: Returns the number of workers that fit on the cluster, including those of this run.
        on_event: Gets every event of the attempt's ranks, and the supervisor's own (``attempt``, ``restart``, ``hung``,
            ``stopping``, ``waiting`` for slots or the store); one at a time, from several threads.
        budgets: Numbers of restarts, and the delays before them.
        limits: Time limits by which a rank or a store counts as hung.
        has_begun: An earlier driver of this run has used its store of checkpoints and left a fence there. A store
            without a fence is then an unmounted disk, and the training must not start afresh on it.
        may_grow: Ranks that are asked to stop leave a checkpoint, from which more workers can resume.
        clock: Returns seconds; monotonic.
        open_server: Opens the event channel of an attempt.
        every: Calls a function periodically while an attempt runs.
        stop: Request that the run stop.
    """

    launch: Launcher
    host: str
    advertised: str
    elastic: Elastic
    slots: Callable[[], int]
    on_event: Callable[[Event], None]
    budgets: Budgets = dataclasses.field(default_factory=Budgets)
    limits: PhaseLimits = dataclasses.field(default_factory=PhaseLimits)
    has_begun: bool = False
    may_grow: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.monotonic
    open_server: OpenServer = EventServer
    every: Every = every
    stop: StopSignal = dataclasses.field(default_factory=StopSignal)
    _reporting: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False)

    @functools.cached_property
    def _store(self) -> StoreReader:
        return StoreReader(self.limits.checkpoint_seconds, self.stop, self._report, self.clock)

    def request_stop(self, reason: str) -> None:
        """Ask the ranks to save a checkpoint, and end the run. For signal handlers and other threads; repeatable."""
        self.stop.request(reason)

    def stop_now(self, reason: str = "stopped at once") -> None:
        """End the run without another checkpoint. For signal handlers and other threads; repeatable."""
        self.stop.request_now(reason)

    def supervise(self, plan: AttemptPlan) -> tuple[Attempt, ...]:
        """Train to the end and return the attempts.

        Args:
            plan: The training; the fields that differ between attempts are filled in here.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: The run was asked to stop.
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
            self._report_restart(attempts[-1], decision.reason, decision.delay_seconds, decision.workers)
            self.stop.wait(decision.delay_seconds)

    def _wait_for_slots(self, plan: AttemptPlan, attempts: tuple[Attempt, ...]) -> int:
        """Wait for slots and return the number of workers to launch. Spark itself would wait silently."""
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
                self._report(
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
        """Return the number of slots now.

        Raises:
            TrainingFailedError: The session was lost, and no attempt can be launched any more.
        """
        try:
            return self.slots()
        except Exception as error:
            message = f"it does not say how many slots it has ({type(error).__name__}: {error}); start a new session"
            fault = RankError("spark", None, SESSION_LOST, message, time.time())
            raise TrainingFailedError((*attempts, _not_launched(attempts, fault))) from error

    def _slots_after(self, attempt: Attempt) -> int:
        """Return the number of slots after an attempt; a dead session must not hide the reason of its death."""
        try:
            return self.slots()
        except Exception as error:
            # A signal to the whole process group stops the JVM as well, which deserves no warning.
            is_stopping = self.stop.reason is not None
            logger.log(
                logging.DEBUG if is_stopping else logging.WARNING, "the slots of the cluster are not known: %s", error
            )
            return attempt.workers

    def _attempt(self, plan: AttemptPlan, earlier: Sequence[Attempt], workers: int) -> Attempt:
        """Find the checkpoint to begin with, launch one attempt, and return it when it has ended."""
        read = functools.partial(fence_and_find_start, plan, earlier, has_begun=self.has_begun)
        try:
            resume = self._store.read(plan.checkpoints, read)
        except StoppedReading:
            raise self._stopped(earlier) from None
        except checkpoint_store.STORE_ERRORS as error:
            fault = RankError("store", None, type(error).__name__, str(error), time.time())
            return _not_launched(earlier, fault)
        if self.stop.reason is not None:
            raise self._stopped(earlier, resume.checkpoint)
        batch = self.elastic.batch(workers)
        plan = dataclasses.replace(
            plan,
            attempt=len(earlier) + 1,
            resume_from=str(resume.checkpoint.path) if resume.checkpoint else None,
            workers=workers,
            global_batch_size=batch.global_batch_size,
            learning_rate_scale=batch.learning_rate_scale,
            fence=resume.fence,
            # A rank of an earlier attempt that is still alive must not enter this attempt's ring.
            token=secrets.token_hex(32),
        )
        return self._launched(plan, resume, growth_pause_seconds(earlier))

    def _launched(self, plan: AttemptPlan, resume: FencedStart, growth_pause: float) -> Attempt:
        """Launch an attempt by its whole plan, and return it when it has ended."""
        checkpoint = resume.checkpoint
        running = RunningAttempt(
            plan.attempt,
            plan.workers,
            ranks=plan.ranks,
            dispensable=plan.dispensable_ranks,
            limits=self.limits,
            signal=self.stop,
            on_event=self._report,
            cancel=self.launch.cancel,
            clock=self.clock,
        )
        resumed_from = checkpoint.step if checkpoint else 0
        self._report(
            {
                "event": "attempt",
                "attempt": plan.attempt,
                "workers": plan.workers,
                "resumed_from": resumed_from,
                "learning_rate_scale": plan.learning_rate_scale,
            }
        )
        outcomes, failure = self._run(plan, running, growth_pause)
        newest = self._newest(plan)
        # A checkpoint that was skipped as damaged does not count as progress, even if it is the newest.
        reached = newest if newest is not None and newest.step > resume.newest_step else checkpoint
        epochs = _epochs(outcomes, plan.dispensable_ranks)
        return Attempt(
            number=plan.attempt,
            epochs=epochs,
            errors=() if epochs is not None else running.errors(outcomes, failure),
            resumed_from=resumed_from,
            committed=reached.step if reached else 0,
            workers=plan.workers,
            stop=running.stop,
            committed_epochs=reached.epoch if reached else 0,
        )

    def _newest(self, plan: AttemptPlan) -> commit.CommittedCheckpoint | None:
        """Return the newest checkpoint by its marker alone; None if none can be read."""
        try:
            return self._store.read(plan.checkpoints, lambda _: commit.latest_committed(plan.checkpoints, verify=False))
        except (*checkpoint_store.STORE_ERRORS, StoppedReading):
            return None

    def _run(
        self, plan: AttemptPlan, running: RunningAttempt, growth_pause_seconds: float
    ) -> tuple[tuple[dict[str, Any], ...], RankError | None]:
        """Return the outcomes of all ranks, and Spark's account of a failed job."""
        outcomes: tuple[dict[str, Any], ...] = ()
        failure: RankError | None = None
        with self.open_server(self.host, running.on_event, self.advertised) as server:
            running.begin(server)
            with self._rounds(running, plan.workers, growth_pause_seconds):
                try:
                    outcomes = self.launch(dataclasses.replace(plan, events=server.address))
                except BarrierJobError as error:
                    failure = error.error
            # Spark reports only that a task has failed; the event of the rank with the reason may still be on its way.
            if failure is not None and failure.cause not in ("cancelled", "user"):
                running.wait_for_reason()
        # The last events of every rank have arrived only now, with the server closed.
        running.end()
        return outcomes, failure

    @contextlib.contextmanager
    def _rounds(self, running: RunningAttempt, workers: int, growth_pause_seconds: float) -> Iterator[None]:
        """Supervise the attempt while the block runs. Slots are queried in their own thread, since that may be slow."""
        with contextlib.ExitStack() as rounds:
            rounds.enter_context(self.every(timing.LEASE_RENEWAL_SECONDS, running.renew_leases))
            rounds.enter_context(self.every(timing.TICK_SECONDS, running.tick))
            # In a separate thread, since `tick` may wait for the receivers of its events.
            rounds.enter_context(self.every(timing.TICK_SECONDS, running.cancel_when_due))
            if workers < self.elastic.workers.most:
                rounds.enter_context(self.every(growth_pause_seconds, lambda: running.grow(self._larger)))
            yield

    def _larger(self, workers: int) -> int | None:
        larger = self.elastic.larger(workers, self.slots())
        return larger if larger is not None and self.may_grow() else None

    def _stopped(
        self, attempts: Sequence[Attempt], newest: commit.CommittedCheckpoint | None = None
    ) -> TrainingStoppedError:
        """Return the error to raise after ``attempts``; before any, ``newest`` is an earlier driver's checkpoint."""
        found = newest.step if newest else 0
        step = attempts[-1].committed if attempts else found
        return TrainingStoppedError(tuple(attempts), step, self.stop.reason or "as asked")

    def _report_restart(self, last: Attempt, reason: str, delay_seconds: float, workers: int) -> None:
        self._report(
            {
                "event": "restart",
                "attempt": last.number,
                "error": vars(last.first_error) if last.errors else None,
                "decision": reason,
                "delay_seconds": delay_seconds,
                "workers": workers,
            }
        )

    def _report(self, event: Event) -> None:
        """Pass on an event, from any thread."""
        try:
            with self._reporting:
                self.on_event({"time": time.time(), **event})
        except Exception:
            # The training goes on when a receiver fails, on a full disk for example.
            logger.exception("an event of kind %s could not be handled", event.get("event"))


def _not_launched(earlier: Sequence[Attempt], fault: RankError) -> Attempt:
    """Return an attempt that ended before its launch and changed nothing."""
    step, epochs = (earlier[-1].committed, earlier[-1].committed_epochs) if earlier else (0, 0)
    return Attempt(len(earlier) + 1, None, (fault,), step, step, workers=0, committed_epochs=epochs)


def _epochs(outcomes: Sequence[Mapping[str, Any]], dispensable: frozenset[int]) -> int | None:
    """Return the number of epochs of a training that all its indispensable ranks have finished; None otherwise."""
    needed = [outcome for rank, outcome in enumerate(outcomes) if rank not in dispensable]
    if needed and all(outcome["outcome"] == "finished" for outcome in needed):
        return int(needed[0]["epochs"])
    return None
