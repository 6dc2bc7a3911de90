"""What one barrier task does: start the rank's own process, speak for it to the driver, and post how it ended.

TensorFlow lives in a process of its own (:mod:`training.ranks.rank`), never in Spark's reused Python worker: a lost
peer can abort the process from C++, and a hung one cannot be asked anything. The task sees it from outside, obeys the
driver (stacks, stop, abort), and ends the rank when the driver has been silent for too long.

A task does not fail because its rank did. All tasks exchange the outcomes and end well, so that Spark keeps the Python
workers, which hold what makes the next attempt start at once.

An exchange between the tasks of a stage takes a second: Spark's BarrierTaskContext sleeps that long before it looks for
an answer. MirroredStrategyRunner makes one before it calls us, to deal out addresses. A rank that needs nothing of what
the runner sets begins before that (:class:`EarlyProgram`), and meets the others through the driver.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol

import psutil
from pyspark import BarrierTaskContext, TaskContext

from callbacks.credentials import clean, without_credentials
from training.channel.events import EventAddress, EventClient
from training.channel.handshake import split_address
from training.ranks import child_process, rank_process
from training.ranks.rank import MESSAGE_LENGTH, PREEMPTION_SIGNALS, CleanEventClient, RankOrders
from training.ranks.rank_control import Outcome
from training.ranks.rank_process import RankProcess, RankStartError
from training.supervision.failure_policy import Cause
from training.supervision.timing import LEASE_SECONDS, SYSTEM_SECONDS

_TICK_SECONDS = 0.5
# An answer is given before the process ends, so it is in the pipe by then.
_LAST_WORDS_SECONDS = 1.0

State = Literal["running", "sleeping", "stopped", "zombie"]

_STATES: dict[str, State] = {
    psutil.STATUS_RUNNING: "running",
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "stopped",
    psutil.STATUS_ZOMBIE: "zombie",
    psutil.STATUS_DEAD: "zombie",
}


class AttemptPlan(Protocol):
    """What a task needs of a plan; :class:`training.ranks.plan.TrainingPlan` is one. Its class has a ``from_json``."""

    @property
    def events(self) -> EventAddress:
        """Where the driver listens."""

    @property
    def attempt(self) -> int:
        """Counts from 1."""

    @property
    def threads(self) -> int | None:
        """TensorFlow threads of a rank; None for what its Spark task has."""

    @property
    def verbose(self) -> bool:
        """Whether all that ranks print and log is shown, TensorFlow's own log included."""

    def to_json(self) -> str:
        """Return the plan as one line."""


@dataclass(frozen=True)
class RankTask:
    """The training function that MirroredStrategyRunner calls on every barrier task.

    Attributes:
        plan: What to train.
        entry: ``module:function`` that trains, as :class:`training.ranks.rank.RankOrders` says.
        payload: Bytes for it.
        lease_seconds: How long the driver may be silent before the rank is ended.
        preload: Module that is imported before the first rank is forked.
        begins_early: Whether the rank needs neither ``TF_CONFIG`` nor GPUs, and so has not to wait for the runner: it
            meets the other ranks through the driver.
    """

    plan: AttemptPlan
    entry: str = "training.fitting.fit:train"
    payload: bytes | None = field(default=None, repr=False)
    lease_seconds: float = LEASE_SECONDS
    preload: str = rank_process.PRELOAD
    begins_early: bool = False

    def __call__(self) -> list[Outcome]:
        """Run the rank to its end and return the outcomes of all ranks, in their order."""
        with self.begun() as follow:
            return follow()

    @contextlib.contextmanager
    def begun(self) -> Iterator[Callable[[], list[Outcome]]]:
        """Let the rank begin, and yield what waits for all ranks' ends and returns their outcomes, in their order.

        Whatever the block does, the driver is obeyed meanwhile. Leaving it ends the rank.
        """
        context = TaskContext.get()
        rank = context.partitionId() if context else 0
        threads = self.plan.threads or (context.cpus() if context else 1)
        environment = child_process.tensorflow_environment(threads, verbose=self.plan.verbose)
        if self.begins_early:
            # What the runner will set; what stands there is of an earlier attempt.
            environment = {name: value for name, value in environment.items() if name != "TF_CONFIG"}
            environment["CUDA_VISIBLE_DEVICES"] = ""
        news: SimpleQueue[News] = SimpleQueue()
        events = CleanEventClient(self.plan.events, rank, self.plan.attempt, on_command=news.put, sender="task")
        with contextlib.ExitStack() as ending:
            ending.callback(events.close)
            ending.enter_context(_preemption_told_to(news.put))
            followed: Future[Outcome] = Future()
            try:
                process = ending.enter_context(rank_process.start(environment, self.preload))
            except (RankStartError, OSError) as error:
                followed.set_result(_told(events, "start", type(error).__name__, str(error)))
            else:
                tail = self._tail(process, events, rank)
                ending.callback(tail.close)
                ending.callback(process.kill)
                process.tell(self._orders(rank, _host(context) if self.begins_early else None).to_bytes())
                follower = _Follower(process, events, news, tail, self.lease_seconds)
                # In a thread of its own, which has the process to itself: this one waits for the runner meanwhile.
                pool = ending.enter_context(ThreadPoolExecutor(1, "follower"))
                ending.callback(news.put, {"command": "abort", "reason": "the task has ended"})
                followed = pool.submit(self._followed, follower, process, tail)

            def follow() -> list[Outcome]:
                outcome = followed.result()
                events.close()
                # The ranks that finished are still there: the others would take the end of their connections for a
                # death.
                return _exchanged(context, outcome)

            yield follow

    def _followed(self, follower: "_Follower", process: RankProcess, tail: child_process.Tail) -> Outcome:
        """Follow the rank to its end, and return how it ended."""
        outcome = follower.follow()
        if outcome["outcome"] not in ("finished", "stopped"):
            process.kill()  # the sooner its connections end, the sooner the other ranks know
            outcome = clean(outcome)
        if self.plan.verbose:
            tail.close()  # the last lines are told too
        return outcome

    def _tail(self, process: RankProcess, events: EventClient, rank: int) -> child_process.Tail:
        if not self.plan.verbose:
            return child_process.Tail(process.errors, echo=False)
        budget = child_process.LineBudget()

        def tell(line: str) -> None:
            if (text := budget.admit(line)) is not None:
                events.send({"event": "log", "level": "INFO", "message": text[: child_process.LOG_CHARACTERS]})

        return child_process.Tail(process.errors, echo=True, prefix=f"rank {rank}: ", tell=tell)

    def _orders(self, rank: int, host: str | None) -> RankOrders:
        plan_class = type(self.plan)
        return RankOrders(
            rank=rank,
            attempt=self.plan.attempt,
            events=self.plan.events,
            entry=self.entry,
            plan_class=f"{plan_class.__module__}:{plan_class.__qualname__}",
            plan=self.plan.to_json(),
            payload=self.payload,
            verbose=self.plan.verbose,
            host=host,
        )


@dataclass
class EarlyTask:
    """What the runner calls in place of a task whose rank has begun already.

    Attributes:
        task: Of this rank.
        follow: Waits for the ranks' ends; None before this rank has begun.
    """

    task: RankTask
    follow: Callable[[], list[Outcome]] | None = None

    def __call__(self) -> list[Outcome]:
        """Return the outcomes of all ranks, in their order."""
        assert self.follow is not None  # noqa: S101 - EarlyProgram has seen to it
        return self.follow()


@dataclass(frozen=True)
class EarlyProgram:
    """The runner's program on a barrier task, before whose exchange the rank begins.

    Attributes:
        program: The runner's own, which calls ``task``.
        task: The same one: they travel together.
    """

    program: Callable[[Any], list[Any]]
    task: EarlyTask

    def __call__(self, partition: Any) -> list[Any]:
        """Let the rank begin, then do what the runner does."""
        with self.task.task.begun() as self.task.follow:
            return self.program(partition)


# A command of the driver, {"answer": ...} with a line of the rank, or {"answer": None} at its end.
News = dict[str, Any]


class _Follower:
    """Follows a rank to its end."""

    def __init__(
        self,
        process: RankProcess,
        events: EventClient,
        news: "SimpleQueue[News]",
        tail: child_process.Tail,
        lease_seconds: float,
    ) -> None:
        self._process = process
        self._events = events
        self._news = news
        self._tail = tail
        self._lease_seconds = lease_seconds
        self._has_taken_over = False
        self._has_said_all = False
        self._observed: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has ended already has its status
            self._observed = psutil.Process(process.pid)
        self._host = socket.gethostname()
        threading.Thread(target=self._read, name="answers", daemon=True).start()

    def follow(self) -> Outcome:
        """Return how the rank ended, or that it was made to end."""
        next_system = time.monotonic()
        while True:
            if time.monotonic() >= next_system:
                next_system += SYSTEM_SECONDS
                self._tell_system()
            if self._events.silent_seconds > self._lease_seconds:
                return _aborted(f"no word from the driver for {self._lease_seconds:g} s") | {"cause": "driver"}
            if (outcome := self._take_in_next(_TICK_SECONDS)) is not None:
                return outcome
            # Not the end of its answers: a process that the training has started may hold their pipe.
            status = self._process.wait(_TICK_SECONDS if self._has_said_all else 0)
            if status is not None:
                return self._last_words() or self._end_without_a_word(status)

    def _take_in_next(self, timeout_seconds: float) -> Outcome | None:
        try:
            return self._take_in(self._news.get(timeout=timeout_seconds))
        except Empty:
            return None

    def _last_words(self) -> Outcome | None:
        """Return the outcome that an ended rank has left in its pipe, None when there is none."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while not self._has_said_all and (seconds := deadline - time.monotonic()) > 0:
            if (outcome := self._take_in_next(seconds)) is not None:
                return outcome
        return None

    def _take_in(self, news: News) -> Outcome | None:
        match news:
            case {"answer": None}:
                self._has_said_all = True
            case {"answer": {"outcome": _} as outcome}:
                return dict(outcome)
            case {"answer": {"ready": _}}:
                self._has_taken_over = True
            case {"command": "abort"}:
                return _aborted(str(news.get("reason") or "the driver said so"))
            case {"command": "stop"}:
                if news.get("signal") == signal.SIGTERM:
                    # Said at once: if the executor's JVM goes as well, no outcome arrives. SIGHUP comes also where that
                    # has crashed.
                    self._events.send({"event": "preemption"})
                self._process.tell(json.dumps({"stop": news.get("reason") or "driver"}).encode() + b"\n")
            case {"command": "stacks"}:
                # Before it has taken over, the signal would end it.
                text = self._process.stacks() if self._has_taken_over else ""
                self._events.send({"event": "stacks", "text": text, "state": self._state()})
        return None

    def _end_without_a_word(self, status: int) -> Outcome:
        if status < 0:
            number = -status
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            # TensorFlow's coordination service, which only trainings on GPUs have, aborts those whose peer is gone.
            has_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1")
            is_consequence = number == signal.SIGABRT and has_gpus
            return _told(self._events, "peer" if is_consequence else "lost", "killed", f"killed by signal {name}")
        cause: Cause = "lost" if self._has_taken_over else "start"
        message = f"left with status {status} and said nothing\n{self._tail.text()}"
        return _told(self._events, cause, "exited", message)

    def _tell_system(self) -> None:
        if self._observed is None:
            return
        with contextlib.suppress(psutil.Error), self._observed.oneshot():
            self._events.send(
                {
                    "event": "system",
                    "cpu_percent": self._observed.cpu_percent(),
                    "memory_bytes": self._observed.memory_info().rss,
                    "threads": self._observed.num_threads(),
                    "state": self._state(),
                    "host": self._host,
                    "process": self._process.pid,
                }
            )

    def _state(self) -> State:
        if self._observed is None:
            return "zombie"
        try:
            return _STATES.get(self._observed.status(), "sleeping")
        except psutil.NoSuchProcess:
            return "zombie"

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # closed by the task's end
            for line in self._process.answers:
                self._news.put({"answer": json.loads(line)})
        self._news.put({"answer": None})


def _told(events: EventClient, cause: Cause, type_: str, message: str) -> Outcome:
    """Return the outcome of a rank that could not speak for itself, and tell the driver at once."""
    # Cleaned before it is cut: half a secret is not found any more.
    failure = {"cause": cause, "type": type_, "message": without_credentials(message)[-MESSAGE_LENGTH:], "step": None}
    events.send({"event": "error"} | failure)
    return {"outcome": "failed"} | failure


def _aborted(reason: str) -> Outcome:
    return {"outcome": "aborted", "reason": reason}


def _host(context: TaskContext | None) -> str:
    """Return where the other ranks reach this one: there Spark reaches this executor."""
    if isinstance(context, BarrierTaskContext):
        return split_address(context.getTaskInfos()[context.partitionId()].address)[0]
    return "127.0.0.1"


def _exchanged(context: TaskContext | None, outcome: Outcome) -> list[Outcome]:
    """Return every rank's outcome, when all have one."""
    # It takes a second. Through the driver it would take none, but an outcome is what is never lost: also that of a
    # task which the driver cannot hear arrives, at the others too, which would wait for it in vain. And what a training
    # function returned may be of any size, which no command is.
    if isinstance(context, BarrierTaskContext):
        return [json.loads(text) for text in context.allGather(json.dumps(outcome, default=str))]
    return [outcome]


@contextlib.contextmanager
def _preemption_told_to(put: Callable[[News], None]) -> Iterator[None]:
    """While the block runs, let a SIGTERM or SIGHUP to this process ask the rank to save and stop.

    Where a machine is taken away, all its processes get a SIGTERM; Spark's daemon passes it on to its workers as a
    SIGHUP, and sends that one also when its JVM ends. A Python worker would die of either and take the rank along.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # SimpleQueue.put may interrupt itself.
    def notice(number: int, _: object) -> None:
        put({"command": "stop", "reason": "preempted", "signal": number})

    before = {number: signal.signal(number, notice) or signal.SIG_DFL for number in PREEMPTION_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
