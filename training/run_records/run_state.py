"""The state of a run, which outlives its driver: its status, and the identity, lock and heartbeat of the driver.

The driver locks a file in the run's folder for its life. Machines that share the folder see each other's locks on some
file systems (NFS 4) and not on others; some have none. There the heartbeat in the state takes its place, see
:mod:`training.run_records.run_folder`.
"""

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import Holder, LockState, Timing, file_lock, lock_state, renewed
from mirrorspark.training.protocol import STATE_FILE

Status = Literal["running", "failed", "stopped", "finished"]
Driver = Literal["alive", "gone", "unknown"]

LOCK_FILE = "driver.lock"

# A suspended machine may have suspended the driver, too, so this time does not count.
TIMING = Timing(heartbeat_seconds=10.0, look_seconds=1.0, clock=time.monotonic)
"""Times of the heartbeats that a driver writes into its run's state, and of the looks of other drivers at them."""

# A process that only checks the lock also holds it for a moment.
_WAIT_SECONDS, _NAP_SECONDS = 0.4, 0.02
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
# States that this process has watched for that long already; a driver that goes on changes its state.
_SILENT: set[tuple[Path, "RunState"]] = set()

# More than any system has.
_PROCESSES = 1 << 31

logger = logging.getLogger(__name__)


class RunUnderWayError(ClearError, RuntimeError):
    """Another driver is running the run; its files are left unchanged."""


@dataclass(frozen=True)
class RunState:
    """The state of a run that must survive its driver.

    Attributes:
        identity: Identity of the configuration and the dataset; only a run of the same identity may continue this one.
        mlflow_run_id: Its MLflow run, once there is one.
        host: Host of its driver.
        process: Its driver's process id on that host.
        process_started: Start of that process in seconds since the epoch; distinguishes it from a later one of that id.
        boot: Boot of that machine, as in :class:`storage.Holder`.
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
        if lock == "free" and self.holder and self.driver_process.is_on_this_machine:
            return "gone"
        has_ended = self.driver_process.has_ended
        return "unknown" if has_ended is None else "gone" if has_ended else "alive"

    @property
    def driver_process(self) -> Holder:
        """The process of its driver."""
        # A clock that was set shifts the start of a process; where there are heartbeats, these decide.
        started = self.process_started if self.heartbeat is None else None
        return Holder(self.host, self.process, started, self.boot)

    @property
    def is_of_this_process(self) -> bool:
        """True if this process wrote it."""
        return self.driver_process == Holder.here(os.getpid())


def _is_of(kind: Any, value: object) -> bool:
    if kind == Status:
        return value in get_args(Status)
    if kind is int:
        return isinstance(value, int) and 0 <= value < _PROCESSES
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < _PROCESSES else value
    return isinstance(value, kind)


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[LockState]:
    """Hold the lock of a run's folder while the block runs; does nothing on a file system without locks.

    Yields:
        The former state of the lock: free, or unknown on a file system without locks.

    Raises:
        BlockingIOError: Another driver holds it.
    """
    state: LockState = "free"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / LOCK_FILE, _WAIT_SECONDS, _NAP_SECONDS))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            state = "unknown"
        yield state


def driver_of(folder: Path, state: RunState, lock: LockState | None = None) -> Driver | None:
    """Return the state of the driver of an unfinished run at one look; None for a run that has ended.

    Without ``lock`` it looks at the lock, which a process that holds the lock itself would take for another's.
    """
    if state.status != "running":
        return None
    return state.driver(lock_state(folder / LOCK_FILE) if lock is None else lock)


def watch_driver(
    folder: Path,
    state: RunState,
    say: Callable[[str], None] = logger.warning,
    *,
    lock: LockState | None = None,
    kind: str = "run",
) -> Driver | None:
    """Do :func:`driver_of`; if only a heartbeat can decide, watch for up to a minute until it changes.

    Args:
        folder: The run's folder.
        state: The run's state.
        say: Gets a message before it waits.
        lock: State of the folder's lock before this process took it; None if this process does not hold it.
        kind: Word for the run in the message.
    """
    found = driver_of(folder, state, lock)
    if found != "unknown" or state.heartbeat is None:
        return found
    if (folder, state) in _SILENT:
        return "gone"
    say(
        f"watching for up to {TIMING.stale_seconds:.0f} s whether the driver of {kind} {folder.name} "
        f"({state.driver_process}) is alive"
    )
    if not renewed({folder: state}, lambda folder: read_state(folder) or state, TIMING):
        _SILENT.add((folder, state))
        return "gone"
    now = read_state(folder)
    return "alive" if now is None or now.status == "running" else None


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


def under_way(folder: Path, state: RunState | None, kind: str = "run") -> RunUnderWayError:
    """Return the error that names the driver of a run; ``kind`` is the word for the run."""
    who = "" if state is None else f" ({state.driver_process})"
    return RunUnderWayError(f"{kind} {folder.name} is under way in another driver{who}; wait for it, or stop it")
