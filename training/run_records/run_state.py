"""The state of a run, which outlives its driver: its status, and the identity and heartbeat of the driver."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from mirrorspark.training.protocol import STATE_FILE
from mirrorspark.training.run_records.run_lock import LockState, look_at_lock

Status = Literal["running", "failed", "stopped", "finished"]
Driver = Literal["alive", "gone", "unknown"]

# A driver writes a heartbeat into the run's state. Where its lock cannot be seen, others watch by their own clock
# whether it changes: the clocks of two machines are never compared.
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
_LOOK_SECONDS = 1.0
# States that this process has watched for that long already; a driver that goes on changes its state.
_SILENT: set[tuple[Path, "RunState"]] = set()

_SAME_START_SECONDS = 2.0
# More than any system has.
_PROCESSES = 1 << 31
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

logger = logging.getLogger(__name__)


class RunUnderWayError(RuntimeError):
    """Another driver is running the run; its files are left unchanged."""


@dataclass(frozen=True)
class RunState:
    """The state of a run that must survive its driver.

    Attributes:
        identity: Of the configuration and the dataset; only a run of the same identity may continue this one.
        mlflow_run_id: Its MLflow run, once there is one.
        host: Host of its driver.
        process: Its driver's process id on that host.
        process_started: Start of that process in seconds since the epoch; distinguishes it from a later one of that id.
        boot: Boot id of that machine; empty if unknown.
        holder: Unique id of its driver; empty for a driver without a lock.
        heartbeat: The driver's last heartbeat, in seconds since the epoch; None if it has none.
        is_fenced: Its checkpoints' store has been used, and must exist from then on.
    """

    identity: str
    status: Status
    mlflow_run_id: str | None
    host: str
    process: int
    process_started: float
    boot: str = ""
    holder: str = ""
    heartbeat: float | None = None
    is_fenced: bool = False

    @classmethod
    def parse(cls, text: str) -> "RunState":
        """Return the state that a run's file holds.

        Raises:
            ValueError: It is none, or a value is of another type.
        """
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}, not fields with values")  # noqa: TRY004 - damage
        try:
            state = cls(**document)
        except TypeError as error:
            raise ValueError(str(error)) from error
        for field in fields(cls):
            value = getattr(state, field.name)
            if not _is_of(field.type, value):
                raise ValueError(f"{field.name} is {value!r:.80}")
        return state

    def driver(self, lock: LockState = "unknown") -> Driver:
        """Return the state of the driver of an unfinished run, as it shows at one look.

        Args:
            lock: State of the lock in the run's folder, as seen from here.
        """
        if lock == "held":
            return "alive"
        if self.host != socket.gethostname() or (self.boot and self.boot != boot_id()):
            return "unknown"
        if lock == "free" and self.holder:
            return "gone"
        try:
            started = psutil.Process(self.process).create_time()
        except psutil.NoSuchProcess:
            return "gone"
        if self.heartbeat is not None:
            return "unknown"
        # The clock may have been adjusted since, which shifts the start time a little.
        return "alive" if abs(started - self.process_started) < _SAME_START_SECONDS else "gone"

    @property
    def is_of_this_process(self) -> bool:
        """True if this process wrote it."""
        return (self.host, self.process) == (socket.gethostname(), os.getpid())


def _is_of(kind: Any, value: object) -> bool:
    if kind == Status:
        return value in get_args(Status)
    if kind is int:
        return isinstance(value, int) and 0 <= value < _PROCESSES
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < _PROCESSES else value
    return isinstance(value, kind)


def driver_of(folder: Path, state: RunState) -> Driver | None:
    """Return the state of the driver of an unfinished run at one look; None for a run that has ended."""
    return state.driver(look_at_lock(folder)) if state.status == "running" else None


def watch_driver(
    folder: Path,
    state: RunState,
    say: Callable[[str], None] = logger.warning,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Driver | None:
    """Do :func:`driver_of`; if only a heartbeat can decide, watch it for up to ``STALE_SECONDS`` for a change.

    Args:
        folder: The run's folder.
        state: The run's state.
        say: Gets a message before it waits.
        clock: Returns seconds; monotonic.
        sleep: Waits for a number of seconds.
    """
    found = driver_of(folder, state)
    if found != "unknown" or state.heartbeat is None:
        return found
    if (folder, state) in _SILENT:
        return "gone"
    say(
        f"watching for up to {STALE_SECONDS:.0f} s whether the driver of run {folder.name} (process {state.process} on "
        f"{state.host}) is alive"
    )
    begun = clock()
    while clock() - begun < STALE_SECONDS:
        sleep(_LOOK_SECONDS)
        now = read_state(folder)
        if now is not None and now != state:
            return "alive" if now.status == "running" else None
    _SILENT.add((folder, state))
    return "gone"


def read_state(folder: Path) -> RunState | None:
    """Return the state of the run in ``folder``; None if there is none or, with a warning, if it is damaged."""
    path = folder / STATE_FILE
    try:
        return RunState.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("passed over a run that cannot be continued: %s is damaged (%s)", path, error)
        return None


def under_way(folder: Path, state: RunState | None) -> RunUnderWayError:
    """Return the error that names the driver of a run."""
    who = "" if state is None else f" (process {state.process} on {state.host})"
    return RunUnderWayError(f"run {folder.name} is under way in another driver{who}; wait for it, or stop it")


def boot_id() -> str:
    """Return an id of this boot of the machine; empty if the system has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
