"""The folder of one run: its configuration, state, events, checkpoints and results; what ``--resume`` looks for."""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import psutil

from training.event_file import EventFile
from training.events import Event

if TYPE_CHECKING:  # whoever reads run folders need not wait for the models' settings
    from training.config import TrainingConfig

STATE_FILE = "run.json"

Status = Literal["running", "failed", "stopped", "finished"]

_SAME_START_SECONDS = 2.0

logger = logging.getLogger(__name__)


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
    """

    identity: str
    status: Status
    mlflow_run_id: str | None
    host: str
    process: int
    process_started: float

    @property
    def is_alive(self) -> bool:
        """Whether its driver may still be at work; a driver on another host counts as alive."""
        if self.status != "running":
            return False
        if self.host != socket.gethostname():
            return True
        try:
            started = psutil.Process(self.process).create_time()
        except psutil.NoSuchProcess:
            return False
        # The clock may have been set meanwhile, which moves the answer a little.
        return abs(started - self.process_started) < _SAME_START_SECONDS


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the MLflow run that it continues (None for a new one)."""

    path: Path
    identity: str
    continues: str | None

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
    def events(self) -> Path:
        """What ranks and supervisor said, as JSON lines."""
        return self.path / "events.jsonl"

    @property
    def profile(self) -> Path:
        """Profiles of the ranks, a folder for each, as TensorBoard reads them."""
        return self.path / "profile"

    def save_state(self, status: Status, mlflow_run_id: str | None) -> None:
        """Write the state so that a crash leaves the old one or the new one."""
        started = psutil.Process().create_time()
        state = RunState(self.identity, status, mlflow_run_id, socket.gethostname(), os.getpid(), started)
        temporary = self.path / f".{STATE_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
        temporary.replace(self.path / STATE_FILE)

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


def open_run_folder(config: "TrainingConfig", dataset_hash: str) -> RunFolder:
    """Return the folder of the unfinished run on the same dataset that ``config`` continues, or a new one."""
    identity = f"{config.identity}-{dataset_hash}"
    runs = Path(config.output).absolute() / "runs"
    if config.resume:
        for path in sorted(runs.glob(f"*/{STATE_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
            state = _read_state(path)
            if state is None:
                continue
            if state.identity == identity and state.status != "finished" and not state.is_alive:
                return RunFolder(path.parent, identity, state.mlflow_run_id)
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    (runs / name).mkdir(parents=True)
    return RunFolder(runs / name, identity, None)


def _read_state(path: Path) -> RunState | None:
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        logger.warning("passed over a run that cannot be continued: %s is damaged (%s)", path, error)
        return None
