"""A barrier task: starts its worker, reports on it to the driver, and exchanges the outcomes.

TensorFlow runs in a separate process, the worker (:mod:`training.executor.worker`), never in Spark's reused Python
worker: a lost peer can abort the process from C++, and a hung process cannot answer. The task watches it from outside,
obeys the driver (stacks, stop, abort), and ends the worker when the driver has been silent for too long
(:mod:`training.executor.rank_monitor`).

A task does not fail when its worker does. All tasks exchange the outcomes and succeed, so that Spark keeps its Python
workers, whose fork servers make the next attempt start at once.

The order of an attempt in a task:

1. The launcher's barrier job calls :func:`run_program` with the runner's program and the :class:`WorkerTask`.
2. A worker that needs none of the runner's settings, since it meets the others through the driver
   (``meets_through_driver`` of its plan), starts now, ahead of the next step.
3. The runner's program exchanges the tasks' addresses. That takes a second: Spark's BarrierTaskContext sleeps that long
   before it looks for an answer. Then it sets ``TF_CONFIG`` and ``CUDA_VISIBLE_DEVICES``, and calls the task.
4. The task waits for its worker's end; a worker that has not started in step 2 starts first, with these settings.
5. The tasks exchange the outcomes, and each returns them all.
6. The worker is ended, and the variables that the runner has set are restored.

In local mode the runner calls the task on the driver, where only step 4 remains.
"""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from mirrorspark.spark_session import BarrierTask, barrier_task, partition_id, task_cores
from mirrorspark.storage import clean
from mirrorspark.training.executor import worker_process
from mirrorspark.training.executor.child_process import (
    LOG_CHARACTERS,
    LineBudget,
    Tail,
    tensorflow_environment,
)
from mirrorspark.training.executor.rank_monitor import Message, RankMonitor, report_failure
from mirrorspark.training.executor.worker import PREEMPTION_SIGNALS, WorkerOrders
from mirrorspark.training.executor.worker_control import Outcome
from mirrorspark.training.executor.worker_log import CleanEventClient
from mirrorspark.training.executor.worker_process import WorkerProcess, WorkerStartError
from mirrorspark.training.protocol import AttemptPlan, woken_main_thread
from mirrorspark.training.protocol.messages import EventClient
from mirrorspark.training.protocol.outcomes import timing


@dataclass
class WorkerTask:
    """The training function that MirroredStrategyRunner calls on every barrier task.

    Attributes:
        payload: Bytes for the plan's entry.
        lease_seconds: Longest silence of the driver before the worker is ended.
        preload: Module that is imported before the first worker is forked.
    """

    plan: AttemptPlan
    payload: bytes | None = field(default=None, repr=False)
    lease_seconds: float = timing.LEASE_SECONDS
    preload: str = worker_process.PRELOAD
    _started: "StartedWorker | None" = field(default=None, init=False, repr=False)

    def __call__(self) -> list[Outcome]:
        """Start the worker, unless it was started ahead, and return the outcomes of all ranks, in rank order."""
        if self._started is not None:
            return self._started.wait()
        with self.start_worker() as worker:
            return worker.wait()

    @contextlib.contextmanager
    def start_worker(self) -> Iterator["StartedWorker"]:
        """Start the worker, and obey the driver's commands meanwhile; leaving the block ends the worker."""
        barrier, rank = barrier_task(), partition_id()
        environment = self._environment()
        messages: SimpleQueue[Message] = SimpleQueue()
        events = CleanEventClient(self.plan.events, rank, self.plan.attempt, on_command=messages.put, sender="task")
        # Undone in reverse: abort, end of the monitor, kill, tail, process, signals, events.
        with contextlib.ExitStack() as ending:
            ending.callback(events.close)
            ending.enter_context(_preemption_passed_to(messages.put))
            outcome_of_rank: Future[Outcome] = Future()
            try:
                process = ending.enter_context(worker_process.start(environment, self.preload))
            except (WorkerStartError, OSError) as error:
                outcome_of_rank.set_result(report_failure(events, "start", type(error).__name__, str(error)))
            else:
                tail = self._tail(process, events, rank)
                ending.callback(tail.close)
                ending.callback(process.kill)
                process.send(self._orders(rank, barrier).to_bytes())
                monitor = RankMonitor(process, events, messages, tail, self.lease_seconds)
                # In a separate thread, the only one that uses the process: this thread waits for the runner meanwhile.
                pool = ending.enter_context(ThreadPoolExecutor(1, "rank monitor"))
                ending.callback(messages.put, {"command": "abort", "reason": "the task has ended"})
                outcome_of_rank = pool.submit(self._monitored, monitor, process, tail)

            self._started = StartedWorker(outcome_of_rank, events, barrier)
            try:
                yield self._started
            finally:
                self._started = None

    def _monitored(self, monitor: RankMonitor, process: WorkerProcess, tail: Tail) -> Outcome:
        """Monitor the worker to its end, and return its outcome."""
        outcome = monitor.wait()
        if outcome["outcome"] not in ("finished", "stopped"):
            process.kill()  # The sooner its connections end, the sooner the other ranks notice.
            outcome = clean(outcome)
        if self.plan.verbose:
            tail.close()  # The last lines are sent, too.
        return outcome

    def _environment(self) -> dict[str, str]:
        environment = _environment_of(self.plan.threads, verbose=self.plan.verbose)
        if self.plan.meets_through_driver:
            # Started ahead: the present values are those of the executor.
            environment.pop("TF_CONFIG", None)
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def _tail(self, process: WorkerProcess, events: EventClient, rank: int) -> Tail:
        if not self.plan.verbose:
            return Tail(process.errors, echo=False)
        budget = LineBudget()

        def send_line(line: str) -> None:
            if (text := budget.admit(line)) is not None:
                events.send({"event": "log", "level": "INFO", "message": text[:LOG_CHARACTERS]})

        return Tail(process.errors, echo=True, prefix=f"rank {rank}: ", on_line=send_line)

    def _orders(self, rank: int, barrier: BarrierTask | None) -> WorkerOrders:
        plan_class = type(self.plan)
        return WorkerOrders(
            rank=rank,
            attempt=self.plan.attempt,
            events=self.plan.events,
            entry=self.plan.entry,
            plan_class=f"{plan_class.__module__}:{plan_class.__qualname__}",
            plan=self.plan.to_json(),
            payload=self.payload,
            verbose=self.plan.verbose,
            host=_host(barrier),
        )


@dataclass(frozen=True)
class StartedWorker:
    """A worker that has been started, or has failed to start."""

    outcome: "Future[Outcome]"
    events: EventClient
    barrier: BarrierTask | None

    def wait(self) -> list[Outcome]:
        """Wait for the ends of all ranks, and return their outcomes, in rank order."""
        outcome = self.outcome.result()
        self.events.close()
        # Finished workers are kept alive: to the others, the end of their connections would look like a death.
        return _exchanged(self.barrier, outcome)


def run_program(program: Callable[[Any], list[Any]], task: WorkerTask, partition: Any) -> list[Any]:
    """Run the runner's ``program`` for ``task``, whose worker starts ahead of it where it can: steps 2 to 6 above."""
    with _environment_kept(), task.start_worker() if task.plan.meets_through_driver else contextlib.nullcontext():
        return program(partition)


def run_on_driver(run: Callable[[WorkerTask], list[Outcome]], task: WorkerTask) -> list[Outcome]:
    """Return ``run(task)``, of the runner's local mode, and leave no fork server behind in this process."""

    def run_with_own_server() -> list[Outcome]:
        with worker_process.own_server():
            return run(task)

    # In a thread: the handlers of signals stay those of the driver.
    with ThreadPoolExecutor(1, "local mode") as pool:
        return pool.submit(run_with_own_server).result()


def started_ahead_on_driver(threads: int | None, *, verbose: bool) -> AbstractContextManager[None]:
    """Let TensorFlow be imported for the first worker that :func:`run_on_driver` starts in the block.

    Args:
        threads: The threads of its plan.
        verbose: Whether its plan is.
    """
    return worker_process.started_ahead(_environment_of(threads, verbose=verbose))


def _environment_of(threads: int | None, *, verbose: bool) -> dict[str, str]:
    return tensorflow_environment(threads or task_cores() or 1, verbose=verbose)


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """After the block, restore the variables that the runner sets in Spark's Python worker, which Spark uses again.

    The runner takes a task's GPUs for indices into a ``CUDA_VISIBLE_DEVICES`` that is there: the one of an earlier
    attempt has too few, or hides them all. And scores would be computed on the GPUs of a training that has ended.
    """
    before = {name: os.environ.get(name) for name in worker_process.PER_RANK}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _host(barrier: BarrierTask | None) -> str:
    """Return the host at which the other ranks reach this one: the one at which Spark reaches this executor."""
    return "127.0.0.1" if barrier is None else barrier.host.strip("[]")  # as sockets take an IPv6 address


def _exchanged(barrier: BarrierTask | None, outcome: Outcome) -> list[Outcome]:
    """Wait until all ranks have an outcome, and return them all."""
    # The exchange takes a second. The driver could pass on outcomes at once, but an outcome must never be lost: this
    # way even that of a task which cannot reach the driver arrives, also at the other tasks, which wait for it. And the
    # return value of a training function may be of any size, unlike a command.
    if barrier is None:
        return [outcome]
    return [json.loads(text) for text in barrier.gather(json.dumps(outcome, default=str))]


@contextlib.contextmanager
def _preemption_passed_to(put: Callable[[Message], None]) -> Iterator[None]:
    """Make a SIGTERM or SIGHUP to this process ask the worker to save and stop, while the block runs.

    When a machine is taken away, all its processes get a SIGTERM; Spark's daemon passes it on to its Python workers as
    a SIGHUP, and also sends a SIGHUP when its JVM ends. A Python worker would die of either, and our worker with it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # SimpleQueue.put is reentrant, so a signal handler may call it.
    def notice(number: int, _: object) -> None:
        put({"command": "stop", "reason": "preempted", "signal": number})

    before = {number: signal.signal(number, notice) or signal.SIG_DFL for number in PREEMPTION_SIGNALS}
    try:
        with woken_main_thread(PREEMPTION_SIGNALS):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
