"""The folder of one run: its configuration, state, events, checkpoints and results; what ``--resume`` looks for."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol
from uuid import uuid4

import psutil

from training.channel.events import Event
from training.records.atomic_file import write_atomically
from training.records.event_file import EventFile
from training.records.run_lock import LockState, hold_lock, look_at_lock

if TYPE_CHECKING:  # whoever reads run folders need not wait for what trains
    from data_pipelines.dataset import Dataset
    from training.live.view import LiveView
    from training.supervision.running_attempt import Every

STATE_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
RUNS_FOLDER = "runs"
WARM_START_FOLDER = "warm_start"

Status = Literal["running", "failed", "stopped", "finished"]
Driver = Literal["alive", "gone", "unknown"]

# A driver on another machine, whose lock cannot be seen, gives a sign of life in the run's state. The machines' clocks
# may differ by what is between the two.
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0

_SAME_START_SECONDS = 2.0
_CHOOSING_LOCK = ".choosing.lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

logger = logging.getLogger(__name__)


class RunUnderWayError(RuntimeError):
    """Another driver is at work on the run; what it wrote stays as it is."""


class RunIdentity(Protocol):
    """What tells which run a configuration continues."""

    @property
    def name(self) -> str:
        """Names the run folders."""

    @property
    def identity(self) -> str:
        """What two runs share when one may continue the other on the same data."""

    @property
    def output(self) -> str:
        """The folder with all runs."""

    @property
    def resume(self) -> bool:
        """Whether an unfinished run goes on."""


class DatedRun(RunIdentity, Protocol):
    """What tells which day a configuration stands for."""

    @property
    def run_date(self) -> str | None:
        """The day; None for none."""

    @property
    def only_once(self) -> bool:
        """Whether a run that has been done is not done again."""


@dataclass(frozen=True)
class RunState:
    """What must survive the driver.

    Attributes:
        identity: Of the configuration and the dataset; only a run of the same identity may continue this one.
        status: How far it came.
        mlflow_run_id: Its MLflow run, once there is one.
        host: Where its driver runs.
        process: Its driver's process id on that host.
        process_started: When that process started, in seconds since the epoch; tells it from a later one of that id.
        boot: Which start of that machine it was; empty where that is not known.
        holder: What tells its driver from every other; empty for one that held no lock.
        heartbeat: The driver's last sign of life, in seconds since the epoch; None when it gives none.
        is_fenced: Whether its checkpoints' store has been used: from then on it must be there.
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

    @property
    def is_alive(self) -> bool:
        """Whether its driver may still be at work, without a look at the lock in its folder."""
        return self.status == "running" and self.driver() != "gone"

    def driver(self, lock: LockState = "unknown", now: float | None = None) -> Driver:
        """Return whether the driver of a run that has not ended is at work.

        Args:
            lock: That of the run's folder, as seen from here.
            now: Seconds since the epoch.
        """
        if lock == "held":
            return "alive"
        is_stale = self.heartbeat is not None and (now or time.time()) - self.heartbeat > STALE_SECONDS
        if self.host != socket.gethostname() or (self.boot and self.boot != _boot()):
            if self.heartbeat is None:
                return "unknown"
            return "gone" if is_stale else "alive"
        if lock == "free" and self.holder:
            return "gone"
        try:
            started = psutil.Process(self.process).create_time()
        except psutil.NoSuchProcess:
            return "gone"
        if self.heartbeat is not None:
            return "gone" if is_stale else "alive"
        # The clock may have been set meanwhile, which moves the answer a little.
        return "alive" if abs(started - self.process_started) < _SAME_START_SECONDS else "gone"

    @property
    def is_of_this_process(self) -> bool:
        """Whether this very process wrote it."""
        return (self.host, self.process) == (socket.gethostname(), os.getpid())


class _Hold:
    """What a driver knows of its own run while it holds the folder."""

    def __init__(self) -> None:
        # The state is written by the driver's threads and by the one of the heartbeat.
        self.lock = threading.RLock()
        self.state: RunState | None = None
        self.is_lost = False
        self.is_continued_after_fence = False
        self.when_lost: list[Callable[[], None]] = []


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the MLflow run that it continues (None for a new one)."""

    path: Path
    identity: str
    continues: str | None
    _hold: _Hold = field(default_factory=_Hold, init=False, repr=False, compare=False)

    @property
    def config(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / "model"

    @property
    def predictions(self) -> Path:
        """The training framework's own predictions."""
        return self.path / "predictions"

    @property
    def exported(self) -> Path:
        """What became of the export, once it is done."""
        return self.path / "export.json"

    @property
    def warm_start(self) -> Path:
        """The model that the training began from."""
        return self.path / WARM_START_FOLDER

    @property
    def delivered(self) -> Path:
        """What a training started from Python has returned."""
        return self.path / "trained.json"

    @property
    def events(self) -> Path:
        """What ranks and supervisor said, as JSON lines."""
        return self.path / EVENTS_FILE

    @property
    def profile(self) -> Path:
        """Profiles of the ranks, a folder for each, as TensorBoard reads them."""
        return self.path / "profile"

    @property
    def was_fenced(self) -> bool:
        """Whether an earlier driver has used the checkpoints' store; known while this one holds the folder."""
        return self._hold.is_continued_after_fence

    @contextlib.contextmanager
    def hold(
        self,
        seen: RunState | None = None,
        *,
        every: "Every | None" = None,
        clock: Callable[[], float] = time.time,
    ) -> Iterator[None]:
        """Be the run's only driver while the block runs: with the lock, and with signs of life in the state.

        Args:
            seen: The state in which it was found; another one by now is another driver's work.
            every: Calls something again and again; by default from a thread of its own.
            clock: Returns seconds since the epoch.

        Raises:
            RunUnderWayError: Another driver has it.
        """
        from training.supervision import running_attempt

        hold, every = self._hold, every or running_attempt.every
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context(hold_lock(self.path))
            except BlockingIOError as error:
                raise _under_way(self.path, read_state(self.path)) from error
            before = read_state(self.path)
            if seen is not None and before != seen:
                raise _under_way(self.path, before)
            if before is not None and before.status == "running" and before.driver(lock, clock()) == "alive":
                raise _under_way(self.path, before)
            hold.is_continued_after_fence = before is not None and before.is_fenced
            run_id = self.continues or (before and before.mlflow_run_id) or None
            state = replace(
                self._new_state("running", run_id),
                boot=_boot(),
                holder=uuid4().hex,
                heartbeat=clock(),
                is_fenced=hold.is_continued_after_fence,
            )
            with hold.lock:
                hold.is_lost = False
                self._write(state)
            try:
                held.enter_context(every(HEARTBEAT_SECONDS, lambda: self._renew(clock())))
                yield
            finally:
                held.close()
                with hold.lock:
                    hold.state = None

    def when_lost(self, action: Callable[[], None]) -> None:
        """Call ``action`` should another driver take the run over from one that holds it."""
        self._hold.when_lost.append(action)

    def save_state(self, status: Status, mlflow_run_id: str | None) -> None:
        """Write the state so that a crash leaves the old one or the new one.

        Raises:
            RunUnderWayError: It is another driver's by now.
            OSError: It cannot be written.
        """
        with self._hold.lock:
            self._require_own()
            mine = self._hold.state
            if mine is None:
                self._write(self._new_state(status, mlflow_run_id), keep=False)
            else:
                self._write(replace(mine, status=status, mlflow_run_id=mlflow_run_id))

    def note_fenced(self) -> None:
        """Remember that the checkpoints' store has been used."""
        with self._hold.lock:
            mine = self._hold.state
            if mine is not None and not mine.is_fenced:
                self._require_own()
                self._write(replace(mine, is_fenced=True))

    def _new_state(self, status: Status, mlflow_run_id: str | None) -> RunState:
        started = psutil.Process().create_time()
        return RunState(self.identity, status, mlflow_run_id, socket.gethostname(), os.getpid(), started)

    def _write(self, state: RunState, *, keep: bool = True) -> None:
        write_atomically(self.path / STATE_FILE, json.dumps(asdict(state)))
        if keep:
            self._hold.state = state

    def _require_own(self) -> None:
        """Raise ``RunUnderWayError`` when the state that is there is another driver's."""
        there, mine = read_state(self.path), self._hold.state
        if there is None:
            return
        if mine is not None:
            is_own = there.holder == mine.holder
        else:
            is_own = driver_of(self.path, there) in (None, "gone") or (there.is_of_this_process and not there.holder)
        if not is_own:
            raise _under_way(self.path, there)

    def _renew(self, now: float) -> None:
        """Give a sign of life, or notice that another driver has taken the run over."""
        with self._hold.lock:
            mine = self._hold.state
            if mine is None or self._hold.is_lost:
                return
            try:
                self._require_own()
                self._write(replace(mine, heartbeat=now))
            except OSError as error:
                logger.warning("run %s gives no sign of life: %s", self.path.name, error)
            except RunUnderWayError as error:
                self._hold.is_lost = True
                logger.warning("this driver has been taken for dead, and stops: %s", error)
        if self._hold.is_lost:
            for action in self._hold.when_lost:
                action()

    def append_event(self, event: Event) -> None:
        """Add an event to the file; see ``EventFile`` for what is left out."""
        self._event_file.append(event)

    @cached_property
    def _event_file(self) -> EventFile:
        return EventFile(self.events)

    def past_events(self) -> Iterator[Event]:
        """Yield the events that earlier drivers of this run saw, in order; a line that a crash cut off is left out."""
        if not self.events.exists():
            return
        with self.events.open(encoding="utf-8") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


@contextlib.contextmanager
def hold_run_folder(
    config: RunIdentity, dataset_hash: str, say: Callable[[str], None] = logger.warning, *, only_once: bool = False
) -> Iterator[RunFolder]:
    """Hold the folder of the unfinished run on the same dataset that ``config`` continues, or a new one.

    Args:
        config: Tells what is trained.
        dataset_hash: Tells on what.
        say: Tells people of a run that is passed over since its driver is at work.
        only_once: Pass over no run whose driver is at work, nor one that has finished.

    Raises:
        RunUnderWayError: There is such a run, and ``only_once`` is set.
    """
    while True:
        with contextlib.ExitStack() as held:
            with _choosing(_runs(config)) if only_once else contextlib.nullcontext():
                folder, seen = _find(config, dataset_hash, say, only_once=only_once)
                try:
                    held.enter_context(folder.hold(seen))
                except RunUnderWayError:
                    # An equal command was quicker; the next look sees its run.
                    continue
            yield folder
            return


@contextlib.contextmanager
def _choosing(runs: Path) -> Iterator[None]:
    """Let one command at a time look for its run: two that see none would begin two."""
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / _CHOOSING_LOCK).open("a") as file:
        with contextlib.suppress(OSError):  # the file system has no locks: a look is all there is
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find(
    config: RunIdentity, dataset_hash: str, say: Callable[[str], None], *, only_once: bool
) -> tuple[RunFolder, RunState | None]:
    identity = f"{config.identity}-{dataset_hash}"
    runs = _runs(config)
    if only_once:
        decisive = _decisive(config, dataset_hash)
        if decisive is not None and decisive[1].status == "finished":
            raise RunUnderWayError(
                f"run {decisive[0].path.name} has finished meanwhile; the same command tells what came of it"
            )
        if decisive is not None:
            return decisive
    elif config.resume:
        for path, state in _of_identity(runs, identity):
            if state.status == "finished":
                continue
            if driver_of(path, state) in (None, "gone"):
                return RunFolder(path, identity, state.mlflow_run_id), state
            say(_passed_over(path, state))
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    (runs / name).mkdir(parents=True)
    return RunFolder(runs / name, identity, None), None


def find_finished(config: RunIdentity, dataset_hash: str) -> RunFolder | None:
    """Return the folder of the finished run of ``config`` on the same dataset, None where a run is to begin or go on.

    The newest run decides: one that was broken off after another had finished was to do it again.

    Raises:
        RunUnderWayError: Another driver is at work on a run that is newer than every finished one.
    """
    decisive = _decisive(config, dataset_hash)
    return decisive[0] if decisive is not None and decisive[1].status == "finished" else None


def finished_for_date(config: DatedRun, dataset: "Dataset | None", view: "LiveView") -> RunFolder | None:
    """Return the folder of the run that has done the day of ``config`` on ``dataset``, and say so.

    Args:
        config: Names the day. Without one, or where everything begins anew, the answer is None.
        dataset: None where it has still to be converted, so that no run can have finished on it.
        view: Tells people.

    Raises:
        RunUnderWayError: Another driver is at work on that day.
    """
    if dataset is None or not config.only_once:
        return None
    folder = find_finished(config, dataset.manifest.content_hash)
    if folder is not None:
        view.say(f"run {folder.path.name} of {config.run_date} has finished: nothing to do (--no-resume trains anew)")
    return folder


def _decisive(config: RunIdentity, dataset_hash: str) -> tuple[RunFolder, RunState] | None:
    """Return the run that says what is left to do: the newest, which has finished or is to go on; None without any.

    Raises:
        RunUnderWayError: Another driver is at work on a run that is newer than every finished one.
    """
    identity = f"{config.identity}-{dataset_hash}"
    broken_off: tuple[RunFolder, RunState] | None = None
    for path, state in _of_identity(_runs(config), identity):
        if driver_of(path, state) not in (None, "gone"):
            raise _under_way(path, state)
        found = RunFolder(path, identity, state.mlflow_run_id), state
        if state.status == "finished":
            return broken_off or found
        # Older ones are looked at, too: one of them may be under way, and has not been touched for some seconds.
        broken_off = broken_off or found
    return broken_off


def _runs(config: RunIdentity) -> Path:
    return Path(config.output).absolute() / RUNS_FOLDER


def _of_identity(runs: Path, identity: str) -> Iterator[tuple[Path, RunState]]:
    """Yield the folders of the runs of that identity with their states, the one touched last first."""
    for path in sorted(runs.glob(f"*/{STATE_FILE}"), key=_modified, reverse=True):
        state = read_state(path.parent)
        if state is not None and state.identity == identity:
            yield path.parent, state


def driver_of(folder: Path, state: RunState) -> Driver | None:
    """Return whether the driver of a run that has not ended is at work; None for one that has ended."""
    return state.driver(look_at_lock(folder)) if state.status == "running" else None


def read_state(folder: Path) -> RunState | None:
    """Return the state of the run in ``folder``; None where there is none, or, with a warning, none that is whole."""
    path = folder / STATE_FILE
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        logger.warning("passed over a run that cannot be continued: %s is damaged (%s)", path, error)
        return None


def _passed_over(folder: Path, state: RunState) -> str:
    who = f"process {state.process} on {state.host}"
    if state.heartbeat is None:
        where = "" if state.host == socket.gethostname() else ", as far as can be told from here"
        goes_on = f"if it is not, remove {folder / STATE_FILE} or resume the run there" if where else "stop it first"
        return (
            f"run {folder.name} of the same configuration is under way ({who}{where}), so a new one begins; {goes_on}"
        )
    ago = max(0.0, time.time() - state.heartbeat)
    return (
        f"run {folder.name} of the same configuration is under way ({who}, last heard of {ago:.0f} s ago), so a new "
        f"one begins; the same command goes on with it once its driver has been silent for {STALE_SECONDS:.0f} s"
    )


def _under_way(folder: Path, state: RunState | None) -> RunUnderWayError:
    who = "" if state is None else f" (process {state.process} on {state.host})"
    return RunUnderWayError(f"run {folder.name} is under way in another driver{who}; wait for it, or stop it")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def _boot() -> str:
    """Return what tells this start of this machine from every other; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
