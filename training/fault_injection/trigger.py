"""When a fault strikes from outside: what a run has written of itself so far, and the moment that is waited for."""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mirrorspark.storage.event_file import FOR_MLFLOW
from mirrorspark.training.protocol.events import Event
from mirrorspark.training.protocol.names import EVENTS_FILE, RUNS_FOLDER, STATE_FILE
from mirrorspark.training.records.run_state import RunState, driver_of

_POLL_SECONDS = 0.02
_EXECUTOR = "CoarseGrainedExecutorBackend"


@dataclass(frozen=True)
class Trigger:
    """When a fault strikes from outside: as soon as all that is set has come to pass.

    Steps in the events file are those of a sample, one in five seconds: for an exact step let the rank do it itself
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
        usual = {field.name: field.default for field in dataclasses.fields(self)}
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


def wait_for(watch: "RunWatch", after: Trigger, rank: int, over: threading.Event, timeout_seconds: float) -> Run | None:
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


class RunWatch:
    """Reads what a run writes from now on: one that begins under an output folder, or one that goes on."""

    def __init__(self, place: Path) -> None:
        """Begin to watch; what is there already does not count."""
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
        known = len(self.events)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # what a crash cut off
                event = json.loads(line)
                if not event["event"].startswith(FOR_MLFLOW):
                    self.events.append(event)
        return len(self.events) > known

    def _begun(self) -> Iterator[Path]:
        # By the state, which a run writes before it says a word: one that has begun may still be silent.
        return (state.parent for state in self._runs.glob(f"*/{STATE_FILE}"))
