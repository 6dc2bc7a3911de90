"""The folder of one run: its files, and its one driver, which has a lock and a heartbeat."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from uuid import uuid4

from mirrorspark.storage import EventFile, EventTail, Holder, LockState, atomic_file
from mirrorspark.training.protocol import EVENTS_FILE, STATE_FILE, WARM_START_FOLDER
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import Every
from mirrorspark.training.protocol.outcomes import every as call_every
from mirrorspark.training.run_records.run_state import (
    TIMING,
    RunState,
    RunUnderWayError,
    Status,
    driver_of,
    hold_lock,
    read_state,
    under_way,
    watch_driver,
)

logger = logging.getLogger(__name__)


class _Hold:
    """A driver's own state of its run while it has locked the folder."""

    def __init__(self) -> None:
        # The state is written by several threads of the driver, one of which is the heartbeat's.
        self.lock = threading.RLock()
        self.state: RunState | None = None
        self.is_lost = False
        self.is_continued_after_fence = False
        self.when_lost: list[Callable[[], None]] = []


@dataclass(frozen=True)
class RunFolder:
    """A run's folder.

    Attributes:
        identity: As in the run's state.
        continues: The MLflow run that it continues; None for a new one.
        kind: Word for the run in messages.
    """

    path: Path
    identity: str
    continues: str | None
    kind: str = "run"
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
    def spark_checkpoints(self) -> Path:
        """Intermediate results of a recommender that Spark computes."""
        return self.path / "spark"

    @property
    def fitted(self) -> Path:
        """The model that was fitted without workers, or the graph that workers train with."""
        return self.path / "fitted"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / "model"

    @property
    def predictions(self) -> Path:
        """The predictions of the training framework."""
        return self.path / "predictions"

    @property
    def plots(self) -> Path:
        """The figures of the evaluation, a PNG image each."""
        return self.path / "plots"

    @property
    def exported(self) -> Path:
        """The result of the export, once it is done."""
        return self.path / "export.json"

    @property
    def warm_start(self) -> Path:
        """The model that the training began from."""
        return self.path / WARM_START_FOLDER

    @property
    def delivered(self) -> Path:
        """The result of a training that was started from Python."""
        return self.path / "trained.json"

    @property
    def events(self) -> Path:
        """The events of ranks and supervisor, as JSON lines."""
        return self.path / EVENTS_FILE

    @property
    def channel(self) -> Path:
        """Messages of the attempt that runs, where workers cannot reach the driver over TCP."""
        return self.path / "channel"

    @property
    def profile(self) -> Path:
        """Profiles of the ranks for TensorBoard, a folder for each."""
        return self.path / "profile"

    @property
    def has_begun(self) -> bool:
        """True if an earlier driver has used the checkpoints' store; known while this one has locked the folder."""
        return self._hold.is_continued_after_fence

    @contextlib.contextmanager
    def hold(
        self,
        seen: RunState | None = None,
        *,
        every: Every = call_every,
        clock: Callable[[], float] = time.time,
    ) -> Iterator[None]:
        """Make this process the run's only driver while the block runs, with the lock and a heartbeat in the state.

        Args:
            seen: The state in which the folder was found; a different state means that another driver has taken it.
            every: Calls a function periodically; by default from a separate thread.
            clock: Returns seconds since the epoch.

        Raises:
            RunUnderWayError: Another driver has locked it.
        """
        hold = self._hold
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context(hold_lock(self.path))
            except BlockingIOError as error:
                raise self._under_way(read_state(self.path)) from error
            before = read_state(self.path)
            if seen is not None and before != seen:
                raise self._under_way(before)
            if before is not None and self._is_taken(before, lock, was_watched=seen is not None):
                raise self._under_way(before)
            hold.is_continued_after_fence = before is not None and before.is_fenced
            run_id = self.continues or (before and before.mlflow_run_id) or None
            state = replace(
                self._new_state("running", run_id),
                boot=Holder.here().boot,
                holder=uuid4().hex,
                heartbeat=clock(),
                is_fenced=hold.is_continued_after_fence,
            )
            with hold.lock:
                hold.is_lost = False
                self._write(state)
            try:
                held.enter_context(every(TIMING.heartbeat_seconds, lambda: self._renew(clock())))
                yield
            finally:
                held.close()
                with hold.lock:
                    hold.state = None

    def _is_taken(self, state: RunState, lock: LockState, *, was_watched: bool) -> bool:
        if was_watched:
            return driver_of(self.path, state, lock) == "alive"
        return watch_driver(self.path, state, lock=lock, kind=self.kind) == "alive"

    def _under_way(self, state: RunState | None) -> RunUnderWayError:
        return under_way(self.path, state, self.kind)

    def when_lost(self, action: Callable[[], None]) -> None:
        """Call ``action`` if another driver takes over the run from this one."""
        self._hold.when_lost.append(action)

    def save_state(self, status: Status, mlflow_run_id: str | None) -> None:
        """Write the state atomically: a crash leaves the old state or the new one.

        Raises:
            RunUnderWayError: Another driver has taken over the run.
            OSError: The state cannot be written.
        """
        with self._hold.lock:
            self.require_own()
            mine = self._hold.state
            if mine is None:
                self._write(self._new_state(status, mlflow_run_id), keep=False)
            else:
                self._write(replace(mine, status=status, mlflow_run_id=mlflow_run_id))

    def note_begun(self) -> None:
        """Remember that the checkpoints' store has been used."""
        with self._hold.lock:
            mine = self._hold.state
            if mine is not None and not mine.is_fenced:
                self.require_own()
                self._write(replace(mine, is_fenced=True))

    def _new_state(self, status: Status, mlflow_run_id: str | None) -> RunState:
        here = Holder.here()
        return RunState(self.identity, status, mlflow_run_id, here.host, here.pid, here.started or 0.0)

    def _write(self, state: RunState, *, keep: bool = True) -> None:
        atomic_file.write_atomically(self.path / STATE_FILE, json.dumps(asdict(state)))
        if keep:
            self._hold.state = state

    def require_own(self) -> None:
        """Check that the state in the folder is not another driver's.

        Raises:
            RunUnderWayError: Another driver has taken over the run.
        """
        there, mine = read_state(self.path), self._hold.state
        if there is None:
            return
        if mine is not None:
            is_own = there.holder == mine.holder
        else:
            is_own = driver_of(self.path, there) in (None, "gone") or (there.is_of_this_process and not there.holder)
        if not is_own:
            raise self._under_way(there)

    def _renew(self, now: float) -> None:
        """Write a heartbeat, or notice that another driver has taken over the run."""
        with self._hold.lock:
            mine = self._hold.state
            if mine is None or self._hold.is_lost:
                return
            try:
                self.require_own()
                self._write(replace(mine, heartbeat=now))
            except OSError as error:
                logger.warning("%s %s gives no sign of life: %s", self.kind, self.path.name, error)
            except RunUnderWayError as error:
                self._hold.is_lost = True
                logger.warning("this driver has been taken for dead, and stops: %s", error)
        if self._hold.is_lost:
            for action in self._hold.when_lost:
                action()

    def append_event(self, event: Event) -> None:
        """Append an event to the file; ``EventFile`` describes the events that are left out."""
        self.event_file.append(event)

    @cached_property
    def event_file(self) -> EventFile:
        """The file ``events``, which this driver writes."""
        return EventFile(self.events)

    def past_events(self) -> Iterator[Event]:
        """Yield the events of earlier drivers of this run in order; a line that a crash cut off is left out."""
        with contextlib.closing(EventTail(EventFile(self.events))) as tail:
            while (event := tail.read()) is not None:
                yield event
