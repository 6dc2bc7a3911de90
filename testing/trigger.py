"""Triggers of faults from outside, and the events of a run that they follow."""

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

from mirrorspark.storage import FOR_MLFLOW
from mirrorspark.training.protocol import EVENTS_FILE, RUNS_FOLDER, STATE_FILE
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.run_records import run_state

_POLL_SECONDS = 0.02
_EXECUTOR = "CoarseGrainedExecutorBackend"


@dataclass(frozen=True)
class Trigger:
    """The moment of a fault from outside: all conditions that are set hold.

    The events file has a sample of the steps, one in five seconds: for an exact step use
    :class:`testing.fault.Fault`. It has all epochs and phases.

    Attributes:
        step: Optimizer steps that the rank has done, without those of a validation.
        epoch: Epoch that the chief has completed, and is past.
        phase: Phase that the rank has entered (``training``, ``validation``, ...).
        attempt: The attempt; None for any.
        seconds: Delay after the other conditions.
    """

    step: int | None = None
    epoch: int | None = None
    phase: str | None = None
    attempt: int | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return the conditions that are set."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return ", ".join(f"{n} {v}" for n, v in vars(self).items() if v != usual[n]) or "the first event"

    def is_met(self, events: Sequence[Event], rank: int) -> bool:
        """Return True if the run's events so far meet the conditions, apart from ``seconds``."""
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
    """A run: its folder and its events so far."""

    folder: Path
    events: tuple[Event, ...]

    def process(self, rank: int) -> int:
        """Return the process id of ``rank``, on this host.

        Raises:
            ProcessLookupError: It is unknown yet, or on another host.
        """
        phases = [event for event in self.events if event["event"] == "phase" and event.get("rank") == rank]
        if not phases:
            raise ProcessLookupError(f"rank {rank} has not reported its process yet")
        host = phases[-1].get("host", socket.gethostname())
        if host != socket.gethostname():
            raise ProcessLookupError(f"rank {rank} runs on {host}; inject its fault there")
        return int(phases[-1]["process"])

    def driver(self) -> int:
        """Return the process id of its driver, on this host.

        Raises:
            ProcessLookupError: The driver has ended, is on another host, or is this process.
        """
        state = run_state.RunState.parse((self.folder / STATE_FILE).read_text(encoding="utf-8"))
        if state.host != socket.gethostname() or run_state.driver_of(self.folder, state) != "alive":
            raise ProcessLookupError(f"the driver of {self.folder.name} does not run on this host")
        if state.process == os.getpid():
            raise ProcessLookupError("the driver is this process; start the run in another one")
        return state.process

    def executor(self, rank: int) -> int:
        """Return the process id of the JVM of the executor of ``rank``.

        Raises:
            ProcessLookupError: There is none: in a local session the driver's JVM is the executor.
        """
        for process in psutil.Process(self.process(rank)).parents():
            with contextlib.suppress(psutil.Error):
                if any(_EXECUTOR in part for part in process.cmdline()):
                    return process.pid
        raise ProcessLookupError(f"rank {rank} has no executor: in a local session the driver's JVM is the executor")


def wait_for(watch: "RunWatch", after: Trigger, rank: int, over: threading.Event, timeout_seconds: float) -> Run | None:
    """Return the run once the trigger is met; None if the block ended first."""
    deadline = time.monotonic() + timeout_seconds
    while not over.is_set():
        if watch.has_news() and after.is_met(watch.events, rank):
            assert watch.folder is not None  # noqa: S101 - events have a folder
            return Run(watch.folder, tuple(watch.events))
        if time.monotonic() > deadline:
            raise TimeoutError(f"the trigger ({after}) was not met within {timeout_seconds:g} s")
        over.wait(_POLL_SECONDS)
    return None


class RunWatch:
    """Reads the new events of a run that begins under an output folder, or is resumed."""

    def __init__(self, place: Path) -> None:
        """Begin to watch; existing events do not count."""
        self.events: list[Event] = []
        self.folder: Path | None = place if (place / STATE_FILE).is_file() else None
        self._runs = place / RUNS_FOLDER
        self._before = set(self._begun())
        file = place / EVENTS_FILE
        self._offset = file.stat().st_size if self.folder is not None and file.is_file() else 0

    def has_news(self) -> bool:
        """Read on; return True if there are new events."""
        if self.folder is None:
            new = sorted(set(self._begun()) - self._before)
            if not new:
                return False
            # Other runs that begin meanwhile are ignored.
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
            with contextlib.suppress(ValueError):  # A line that a crash cut off.
                event = json.loads(line)
                if not event["event"].startswith(FOR_MLFLOW):
                    self.events.append(event)
        return len(self.events) > known

    def _begun(self) -> Iterator[Path]:
        # By the state file, which a run writes before its first event.
        return (state.parent for state in self._runs.glob(f"*/{STATE_FILE}"))
