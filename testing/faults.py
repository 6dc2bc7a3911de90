"""Fault injection, to test how a training handles failures.

From outside, faults are injected by process id, with context managers around the code that starts the run
(:func:`kill`, :func:`stop`, :func:`preempt`, :func:`kill_executor`, :func:`kill_driver`, and :func:`inject_when` for
anything else, such as :func:`vanished`). Within the ranks they are injected at an exact step, by
``MIRRORSPARK_FAULTS`` or :func:`injected`. Every fault is undone when its block ends.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mirrorspark.testing.disk import full_disk, vanished
from mirrorspark.testing.fault import Fault, injected, parse
from mirrorspark.testing.trigger import Run, RunWatch, Trigger, wait_for
from mirrorspark.training.executor import FAULTS_VARIABLE as VARIABLE

__all__ = [
    "VARIABLE",
    "Fault",
    "Injection",
    "NotInjectedError",
    "Run",
    "Trigger",
    "full_disk",
    "inject_when",
    "injected",
    "kill",
    "kill_driver",
    "kill_executor",
    "parse",
    "preempt",
    "stop",
    "stopped",
    "vanished",
]

_JOIN_SECONDS = 10.0

_TRAINING = Trigger(phase="training")


class NotInjectedError(AssertionError):
    """A fault was not injected: the run ended first, or the trigger's time ran out."""


@dataclass
class Injection:
    """The result of a fault from outside.

    Attributes:
        happened: Set once the fault is injected.
        time: Time of the injection, in seconds since the epoch.
        process: The process, if the fault has one.
    """

    happened: threading.Event = field(default_factory=threading.Event)
    time: float | None = None
    process: int | None = None


# Injects a fault into a run, and undoes it when its context ends.
Act = Callable[[Run], AbstractContextManager[Any]]


@contextlib.contextmanager
def inject_when(
    output: str | Path,
    after: Trigger,
    act: Act | AbstractContextManager[Any],
    *,
    rank: int = 0,
    for_seconds: float | None = None,
    timeout_seconds: float = 240.0,
) -> Iterator[Injection]:
    """Inject a fault into the run that starts within the block.

    Args:
        output: The output folder, in which the run creates its own folder; or the folder of a resumed run, of which
            only new events count.
        after: The trigger.
        act: The fault: a context manager (``vanished(folder)``), or a function from the :class:`Run` to one.
        rank: The rank whose steps and phases the trigger follows.
        for_seconds: Duration of the fault; by default until the block ends.
        timeout_seconds: Time limit for the trigger.

    Raises:
        NotInjectedError: The block succeeded without the fault. An error of the block takes precedence.
        TimeoutError: The block succeeded, but the fault does not end and may still be active.
    """
    watch = RunWatch(Path(output))
    injection, over, failure = Injection(), threading.Event(), list[Exception]()

    def work() -> None:
        try:
            run = wait_for(watch, after, rank, over, timeout_seconds)
            if run is None or over.wait(after.seconds):
                return
            # Context managers may be callable, too: as decorators.
            context = act if isinstance(act, AbstractContextManager) else act(run)
            with context as process:
                injection.process = process if isinstance(process, int) else None
                injection.time = time.time()
                injection.happened.set()
                over.wait(for_seconds)
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="fault", daemon=True)
    thread.start()
    try:
        yield injection
    finally:
        over.set()
        thread.join(_JOIN_SECONDS)
    if thread.is_alive():
        raise TimeoutError(
            f"the fault has not ended {_JOIN_SECONDS:g} s after its block and may still be active; undo it by hand"
        )
    if failure:
        raise NotInjectedError(f"the fault could not be injected: {failure[0]}") from failure[0]
    if not injection.happened.is_set():
        raise NotInjectedError(f"the run ended before the trigger was met ({after})")


def kill(
    output: str | Path, rank: int, after: Trigger = _TRAINING, *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Injection]:
    """SIGKILL to the process of ``rank`` of the run that starts within the block; see :func:`inject_when`."""
    return _signal(output, rank, after, signal.SIGKILL, lambda run: run.process(rank), timeout_seconds)


def preempt(
    output: str | Path, rank: int, after: Trigger = _TRAINING, *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Injection]:
    """SIGTERM to the process of ``rank``, as at a preemption; see :func:`inject_when`."""
    return _signal(output, rank, after, signal.SIGTERM, lambda run: run.process(rank), timeout_seconds)


def stop(
    output: str | Path,
    rank: int,
    after: Trigger = _TRAINING,
    *,
    for_seconds: float | None = None,
    timeout_seconds: float = 240.0,
) -> AbstractContextManager[Injection]:
    """SIGSTOP to the process of ``rank``, and SIGCONT at the end; see :func:`inject_when`."""
    return inject_when(
        output,
        after,
        lambda run: stopped(run.process(rank)),
        rank=rank,
        for_seconds=for_seconds,
        timeout_seconds=timeout_seconds,
    )


def kill_executor(
    output: str | Path, rank: int, after: Trigger = _TRAINING, *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Injection]:
    """SIGKILL to the JVM of the executor in which ``rank`` runs; see :func:`inject_when`."""
    return _signal(output, rank, after, signal.SIGKILL, lambda run: run.executor(rank), timeout_seconds)


def kill_driver(
    output: str | Path, after: Trigger = _TRAINING, *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Injection]:
    """SIGKILL to the driver of the run that another process starts within the block; see :func:`inject_when`."""
    return _signal(output, 0, after, signal.SIGKILL, Run.driver, timeout_seconds)


def _signal(
    output: str | Path, rank: int, after: Trigger, number: int, process: Callable[[Run], int], timeout_seconds: float
) -> AbstractContextManager[Injection]:
    return inject_when(
        output, after, lambda run: _send_signal(process(run), number), rank=rank, timeout_seconds=timeout_seconds
    )


@contextlib.contextmanager
def stopped(process: int) -> Iterator[int]:
    """Keep a process stopped while the block runs."""
    target = psutil.Process(process)  # Has the start time, so that a reused process id is never continued.
    target.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            target.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _send_signal(process: int, number: int) -> Iterator[int]:
    os.kill(process, number)
    yield process
