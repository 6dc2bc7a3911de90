"""Faults on purpose, to see what a training does about them: what there are, when they strike, and from outside how.

Two ways in. From outside, by process id, as context managers around whatever starts the run (:func:`kill`,
:func:`stop`, :func:`preempt`, :func:`kill_executor`, :func:`kill_driver`, and :func:`at` for anything else, such as
:func:`vanished`). Within the ranks, to the step exactly, by ``MIRRORSPARK_FAULTS`` or :func:`injected`. Nothing here is
ever active unless somebody asks for it, and everything is undone when its block ends.
"""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import psutil

from training.records.run_folder import EVENTS_FILE, RUNS_FOLDER, STATE_FILE, RunState, driver_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

VARIABLE = "MIRRORSPARK_FAULTS"

Kind = Literal["kill", "stop", "raise", "hang", "freeze", "hang_input", "slow_input", "full_disk"]

# What `seconds` is where nobody says; long enough for any watchdog to notice, and not for ever.
_SECONDS: dict[Kind, float] = {
    "hang": 600.0,
    "freeze": 600.0,
    "hang_input": 600.0,
    "slow_input": 0.1,
    "full_disk": 600.0,
}
_EVERY = "every"
_POLL_SECONDS = 0.02
_JOIN_SECONDS = 10.0
_EXECUTOR = "CoarseGrainedExecutorBackend"

Event = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A fault that a rank brings upon itself; as text ``hang:rank=1,step=40``.

    Attributes:
        kind: ``kill`` and ``stop`` (signals to its own process), ``raise`` (an error of the user's code), ``hang`` (in
            Python), ``freeze`` (holding Python's lock, so that not even its other threads run), ``hang_input`` and
            ``slow_input`` (the training data), ``full_disk`` (nothing can be written below ``path``; Python's files
            only).
        rank: Who; None for every rank.
        step: After so many optimizer steps; for input after so many batches of this process.
        attempt: In which attempt; None in every one.
        seconds: How long, for ``slow_input`` per batch; None for what is usual.
        path: Folder of ``full_disk``.
    """

    kind: Kind
    rank: int | None = None
    step: int = 1
    attempt: int | None = 1
    seconds: float | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"fault '{self.kind}' is unknown; use one of {list(get_args(Kind))}")
        if self.step < 0:
            raise ValueError(f"fault {self.kind}: step is {self.step}; use 0 or more")
        if self.seconds is not None and not self.seconds >= 0:
            raise ValueError(f"fault {self.kind}: seconds is {self.seconds}; use 0 or more")
        if (self.kind == "full_disk") != (self.path is not None):
            raise ValueError(f"fault {self.kind}: path is {self.path!r}; full_disk needs one, and no other kind does")
        if self.path is not None and set(self.path) & set(",;"):
            raise ValueError(f"fault {self.kind}: path {self.path!r} holds ',' or ';', which stand between faults")

    def __str__(self) -> str:
        """Return the text that :func:`parse` reads."""
        usual = {knob.name: knob.default for knob in dataclasses.fields(self)}
        values = {name: value for name, value in vars(self).items() if name != "kind" and value != usual[name]}
        return f"{self.kind}:" + ",".join(f"{n}={_EVERY if v is None else v}" for n, v in values.items())

    @property
    def duration(self) -> float:
        """Seconds it lasts; for ``slow_input`` the delay of a batch."""
        return _SECONDS.get(self.kind, 0.0) if self.seconds is None else self.seconds

    def strikes(self, rank: int, attempt: int) -> bool:
        """Whether it is for this rank in this attempt."""
        return self.rank in (None, rank) and self.attempt in (None, attempt)


def parse(text: str) -> tuple[Fault, ...]:
    """Return the faults that a text such as ``hang:rank=1,step=40;slow_input:seconds=0.5,attempt=every`` names.

    Raises:
        ValueError: It cannot be read.
    """
    return tuple(_parse_one(part) for part in text.split(";") if part.strip())


_READERS: dict[str, Callable[[str], Any]] = {"rank": int, "step": int, "attempt": int, "seconds": float, "path": str}


def _parse_one(text: str) -> Fault:
    kind, _, rest = text.strip().partition(":")
    values: dict[str, Any] = {}
    for pair in filter(None, map(str.strip, rest.split(","))):
        name, _, value = pair.partition("=")
        if name not in _READERS:
            raise ValueError(f"fault '{text}': '{name}' is unknown; use some of {list(_READERS)}")
        try:
            values[name] = None if value == _EVERY and name in ("rank", "attempt") else _READERS[name](value)
        except ValueError as error:
            raise ValueError(f"fault '{text}': {name} '{value}' is no number") from error
    return Fault(kind, **values)  # type: ignore[arg-type] # Fault checks the kind


@contextlib.contextmanager
def injected(spark: "SparkSession", *faults: Fault) -> Iterator[None]:
    """Let the ranks of trainings that start within the block have these faults.

    Spark starts Python workers of their own for them, so that no other job's worker is touched.
    """
    # What Spark hands to Python workers as their environment; a worker with another one is never reused.
    environment = spark.sparkContext.environment
    before = environment.get(VARIABLE)
    environment[VARIABLE] = ";".join(map(str, faults))
    try:
        yield
    finally:
        environment.pop(VARIABLE, None)
        if before is not None:
            environment[VARIABLE] = before


@dataclass(frozen=True)
class Moment:
    """When a fault strikes from outside: as soon as all that is set has come to pass.

    Steps in the events file are those of a sample, one in ten seconds: for an exact step let the rank do it itself
    (:class:`Fault`). Epochs and phases are all there.

    Attributes:
        step: The rank has done so many optimizer steps; the steps of a validation are none.
        epoch: The chief has completed this epoch, and is in the next one.
        phase: The rank has come to it (``training``, ``validation``, ...).
        attempt: In this attempt; None in the newest.
        seconds: So many seconds later.
    """

    step: int | None = None
    epoch: int | None = None
    phase: str | None = None
    attempt: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return what is set."""
        usual = {knob.name: knob.default for knob in dataclasses.fields(self)}
        return ", ".join(f"{n} {v}" for n, v in vars(self).items() if v != usual[n]) or "its first word"

    def has_come(self, events: Sequence[Event], rank: int) -> bool:
        """Whether these events, the run's so far, say so; ``seconds`` is not looked at."""
        if self.attempt is not None:
            events = [event for event in events if event.get("attempt") == self.attempt]
        own = [event for event in events if event.get("rank", rank) == rank]
        steps = [event.get("step") or 0 for event in own if event["event"] != "validation"]
        return (
            (self.step is None or any(step >= self.step for step in steps))
            and (self.epoch is None or any(_is_past(event, self.epoch) for event in events))
            and (self.phase is None or any(event.get("phase") == self.phase for event in own))
            and (self.attempt is None or bool(events))
        )


def _is_past(event: Event, epoch: int) -> bool:
    known = event.get("epoch") or 0
    return bool(known >= epoch if event["event"] == "epoch_end" else known > epoch)


class NotStruckError(AssertionError):
    """A fault that was to be injected was not: the run ended before, or its moment never came."""


@dataclass
class Strike:
    """What came of a fault from outside.

    Attributes:
        happened: Set once it has struck.
        time: When, in seconds since the epoch.
        process: Whom, where it was a process.
    """

    happened: threading.Event = field(default_factory=threading.Event)
    time: float | None = None
    process: int | None = None


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it so far.

    Attributes:
        folder: The run's.
        events: All so far.
    """

    folder: Path
    events: tuple[Event, ...]

    def process(self, rank: int) -> int:
        """Return the process of ``rank``, on this host.

        Raises:
            ProcessLookupError: It is not known yet, or on another host.
        """
        told = [event for event in self.events if event["event"] == "phase" and event.get("rank") == rank]
        if not told:
            raise ProcessLookupError(f"rank {rank} has not said yet which process it is")
        host = told[-1].get("host", socket.gethostname())
        if host != socket.gethostname():
            raise ProcessLookupError(f"rank {rank} runs on {host}; inject its fault there")
        return int(told[-1]["process"])

    def driver(self) -> int:
        """Return the process of its driver, on this host.

        Raises:
            ProcessLookupError: It has ended, is on another host, or is this very process.
        """
        state = RunState(**json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8")))
        if state.host != socket.gethostname() or driver_of(self.folder, state) != "alive":
            raise ProcessLookupError(f"the driver of {self.folder.name} is not at work on this host")
        if state.process == os.getpid():
            raise ProcessLookupError("the driver is this very process; start the run in one of its own")
        return state.process

    def executor(self, rank: int) -> int:
        """Return the JVM of the executor that ``rank`` runs in.

        Raises:
            ProcessLookupError: There is none: in a local session the driver's own JVM does the work.
        """
        for process in psutil.Process(self.process(rank)).parents():
            with contextlib.suppress(psutil.Error):
                if any(_EXECUTOR in part for part in process.cmdline()):
                    return process.pid
        raise ProcessLookupError(f"rank {rank} has no executor of its own: a local session's work is its driver's")


# Does something to a run, and undoes it when its context ends.
Act = Callable[[Run], AbstractContextManager[Any]]


@contextlib.contextmanager
def at(
    output: str | Path,
    after: Moment,
    act: Act | AbstractContextManager[Any],
    *,
    rank: int = 0,
    for_seconds: float | None = None,
    timeout_seconds: float = 240.0,
) -> Iterator[Strike]:
    """Do something to the run that starts within the block, when its moment has come.

    Args:
        output: The output folder, in which the run begins a folder of its own; or the folder of a run that goes on,
            of which only new events count.
        after: When.
        act: What: a context manager (``vanished(folder)``), or a function from the :class:`Run` to one.
        rank: Whose steps and phases tell the moment.
        for_seconds: Undo it after so long; by default when the block ends.
        timeout_seconds: How long to wait for the moment.

    Raises:
        NotStruckError: The block ended well, and the moment had not come. An error of the block itself goes first.
        TimeoutError: The block ended well, and the fault does not end; it may still be active.
    """
    watch = _RunWatch(Path(output))
    strike, over, failure = Strike(), threading.Event(), list[Exception]()

    def work() -> None:
        try:
            run = _wait_for(watch, after, rank, over, timeout_seconds)
            if run is None or over.wait(after.seconds):
                return
            # Context managers may be callable as well: as decorators.
            context = act if isinstance(act, AbstractContextManager) else act(run)
            with context as process:
                strike.process = process if isinstance(process, int) else None
                strike.time = time.time()
                strike.happened.set()
                over.wait(for_seconds)
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="fault", daemon=True)
    thread.start()
    try:
        yield strike
    finally:
        over.set()
        thread.join(_JOIN_SECONDS)
    if thread.is_alive():
        raise TimeoutError(
            f"the fault has not ended {_JOIN_SECONDS:g} s after its block and may still be active; undo it by hand"
        )
    if failure:
        raise NotStruckError(f"the fault could not be injected: {failure[0]}") from failure[0]
    if not strike.happened.is_set():
        raise NotStruckError(f"the run ended before its moment had come ({after})")


def kill(
    output: str | Path, rank: int, after: Moment = Moment(phase="training"), *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Strike]:
    """SIGKILL to the process of ``rank`` of the run that starts within the block; see :func:`at`."""
    return _signal_rank(output, rank, after, signal.SIGKILL, timeout_seconds=timeout_seconds)


def preempt(
    output: str | Path, rank: int, after: Moment = Moment(phase="training"), *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Strike]:
    """SIGTERM to the process of ``rank``: the notice that its machine is taken away; see :func:`at`."""
    return _signal_rank(output, rank, after, signal.SIGTERM, timeout_seconds=timeout_seconds)


def stop(
    output: str | Path,
    rank: int,
    after: Moment = Moment(phase="training"),
    *,
    for_seconds: float | None = None,
    timeout_seconds: float = 240.0,
) -> AbstractContextManager[Strike]:
    """SIGSTOP to the process of ``rank``, and SIGCONT at the end, if it is still there; see :func:`at`."""

    def act(run: Run) -> AbstractContextManager[int]:
        return stopped(run.process(rank))

    return at(output, after, act, rank=rank, for_seconds=for_seconds, timeout_seconds=timeout_seconds)


def kill_executor(
    output: str | Path, rank: int, after: Moment = Moment(phase="training"), *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Strike]:
    """SIGKILL to the JVM of the executor in which ``rank`` runs; see :func:`at`."""

    def act(run: Run) -> AbstractContextManager[int]:
        return _signalled(run.executor(rank), signal.SIGKILL)

    return at(output, after, act, rank=rank, timeout_seconds=timeout_seconds)


def kill_driver(
    output: str | Path, after: Moment = Moment(phase="training"), *, timeout_seconds: float = 240.0
) -> AbstractContextManager[Strike]:
    """SIGKILL to the driver of the run that another process starts meanwhile; see :func:`at`."""

    def act(run: Run) -> AbstractContextManager[int]:
        return _signalled(run.driver(), signal.SIGKILL)

    return at(output, after, act, timeout_seconds=timeout_seconds)


def _signal_rank(
    output: str | Path, rank: int, after: Moment, number: int, *, timeout_seconds: float
) -> AbstractContextManager[Strike]:
    def act(run: Run) -> AbstractContextManager[int]:
        return _signalled(run.process(rank), number)

    return at(output, after, act, rank=rank, timeout_seconds=timeout_seconds)


@contextlib.contextmanager
def stopped(process: int) -> Iterator[int]:
    """Keep a process stopped while the block runs."""
    target = psutil.Process(process)  # knows its start, so that it never continues another one of that number
    target.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            target.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def vanished(folder: str | Path) -> Iterator[None]:
    """Let a local folder be gone while the block runs, as when its disk is unmounted.

    In its place is a link that leads nowhere: nothing is found there, and nothing can be made there meanwhile.
    """
    place = Path(folder).absolute()
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    place.rename(aside)
    try:
        # No free place, where somebody would make the folder anew meanwhile.
        place.symlink_to(aside.with_name(f"{aside.name}.gone"))
        yield
    finally:
        if place.is_symlink():
            place.unlink()
        aside.rename(place)


@contextlib.contextmanager
def full_disk(folder: str | Path) -> Iterator[None]:
    """Let nothing new be written below a local folder by this process while the block runs: "No space left on device".

    Files that Python opens, and folders that it makes; not what libraries in C open by themselves.
    """
    guard = _FullDisk(os.path.realpath(folder))
    sys.addaudithook(guard)
    try:
        yield
    finally:
        guard.is_full = False  # an audit hook stays for good


class _FullDisk:
    """An audit hook that refuses to open files for writing below a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.is_full = True
        # What the hook calls may be audited itself.
        self._is_within = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_full or event not in ("open", "os.mkdir", "os.link"):
            return
        path = arguments[1] if event == "os.link" else arguments[0]
        is_writing = event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if not is_writing or not isinstance(path, str | bytes) or getattr(self._is_within, "it", False):
            return
        self._is_within.it = True
        try:
            real = os.path.realpath(os.fsdecode(path))
        finally:
            self._is_within.it = False
        if real == self._folder or real.startswith(self._folder + os.sep):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), real)


@contextlib.contextmanager
def _signalled(process: int, number: int) -> Iterator[int]:
    os.kill(process, number)
    yield process


def _wait_for(
    watch: "_RunWatch", after: Moment, rank: int, over: threading.Event, timeout_seconds: float
) -> Run | None:
    """Return the run when the moment has come; None when the block ended first."""
    deadline = time.monotonic() + timeout_seconds
    while not over.is_set():
        if watch.has_news() and after.has_come(watch.events, rank):
            assert watch.folder is not None  # noqa: S101 - events come from somewhere
            return Run(watch.folder, tuple(watch.events))
        if time.monotonic() > deadline:
            raise TimeoutError(f"the moment ({after}) has not come within {timeout_seconds:g} s")
        over.wait(_POLL_SECONDS)
    return None


class _RunWatch:
    """Reads what a run writes from now on: one that begins under an output folder, or one that goes on."""

    def __init__(self, place: Path) -> None:
        self.events: list[Event] = []
        self.folder: Path | None = place if (place / STATE_FILE).is_file() else None
        self._runs = place / RUNS_FOLDER
        self._before = set(self._begun())
        file = place / EVENTS_FILE
        self._offset = file.stat().st_size if self.folder is not None and file.is_file() else 0

    def has_news(self) -> bool:
        """Read on; whether anything has come."""
        if self.folder is None:
            new = sorted(set(self._begun()) - self._before)
            if not new:
                return False
            # Of other runs that begin meanwhile nothing is heard.
            self.folder = new[0]
        file = self.folder / EVENTS_FILE
        if not file.is_file():
            return False
        with file.open("rb") as lines:
            lines.seek(self._offset)
            text = lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # what a crash cut off
                self.events.append(json.loads(line))
        return bool(whole)

    def _begun(self) -> Iterator[Path]:
        # By the state, which a run writes before it says a word: one that has begun may still be silent.
        return (state.parent for state in self._runs.glob(f"*/{STATE_FILE}"))
