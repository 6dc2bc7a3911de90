"""A run in progress: its folder, its MLflow run and its view are opened, get its events, and are closed at its end.

It serves both trainings of ours and functions of users.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mirrorspark.storage import terminal_text
from mirrorspark.training.driver import Supervisor, TrainingStoppedError, on_stop_signals
from mirrorspark.training.protocol import AttemptPlan
from mirrorspark.training.protocol.messages import Event
from mirrorspark.training.protocol.outcomes import Attempt
from mirrorspark.training.run_records.find_run import RunIdentity, hold_run_folder
from mirrorspark.training.run_records.live import LiveView
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import RunUnderWayError, Status
from mirrorspark.training.run_records.run_title import run_title
from mirrorspark.training.run_records.tracked_run import TrackedRun
from mirrorspark.training.run_records.tracking import Tracking

Sink = Callable[[Event], None]

_MLFLOW_STATUS: dict[Status, str] = {"stopped": "KILLED", "failed": "FAILED"}

logger = logging.getLogger(__name__)


class RunToOpen(RunIdentity, Protocol):
    """The part of a configuration that is needed to open a run."""

    def save(self, path: Path) -> None:
        """Write the configuration."""


@dataclass
class OpenRun:
    """A run while it is in progress.

    Attributes:
        folder: The run's folder, locked by this driver.
        tracked: The MLflow run.
        view: Shows the run's progress.
        listener: Gets every event, too.
        replay: Command that sends MLflow the records it missed; None during the run, and if MLflow has them all.
    """

    folder: RunFolder
    tracked: TrackedRun
    view: LiveView
    listener: Sink | None = None
    replay: str | None = None
    _failed: set[str] = field(default_factory=set, init=False)

    def on_event(self, event: Event) -> None:
        """Pass on an event to all receivers, even if one fails (on a full disk or a closed terminal, for example)."""
        # The file comes first: the view can be rebuilt from it, and MLflow gets its events from it.
        sinks: dict[str, Sink | None] = {
            "the events file": self.folder.append_event,
            "the run's state": self._note_fence,
            "the view": self.view.on_event,
            "the listener": self.listener,
        }
        for name, sink in sinks.items():
            if sink is None:
                continue
            try:
                sink(event)
            except Exception:
                if name not in self._failed:
                    logger.exception("%s did not take an event (%s); the run goes on", name, event.get("event"))
                self._failed.add(name)

    def recall(self, keep: Sink) -> None:
        """Pass the events of earlier drivers of this run to ``keep``."""
        for event in self.folder.past_events():
            keep(event)

    def run_to_end(self, supervisor: Supervisor, plan: AttemptPlan) -> tuple[Attempt, ...]:
        """Run ``plan`` to its end under supervision. It is stopped by a signal, or by a driver that takes over the run.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: The run was asked to stop.
            NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        """
        self.folder.when_lost(lambda: supervisor.stop_now("another driver has taken over this run"))
        with on_stop_signals(supervisor.request_stop, supervisor.stop_now):
            return supervisor.supervise(plan)

    def _note_fence(self, event: Event) -> None:
        if event["event"] == "attempt":  # Sent by the supervisor once it has put up the fence.
            self.folder.note_begun()


@contextlib.contextmanager
def open_run(
    config: RunToOpen,
    dataset_hash: str,
    tracking: Tracking,
    view: LiveView,
    *,
    folder: RunFolder | None = None,
    listener: Sink | None = None,
    only_once: bool = False,
    title: Sequence[str] = (),
    on_folder: Callable[[RunFolder], None] = lambda folder: None,
) -> Iterator[OpenRun]:
    """Lock the run's folder, open its MLflow run, and mark both as finished, stopped or failed at the end.

    Args:
        config: The run's configuration.
        dataset_hash: Identifies the data.
        tracking: Its place in MLflow.
        view: Shows the run's progress.
        folder: The run's folder; by default that of the unfinished run that ``config`` continues, or a new one.
        listener: Gets every event, too.
        only_once: Refuse if an equal run is running or finished; ignored with ``folder``.
        title: Settings in words for its name in MLflow, which distinguish it from runs of the same configuration name.
        on_folder: Gets the folder before the configuration in it, if there is one, is replaced.

    Raises:
        RunUnderWayError: Another driver is running the run of ``folder``, or an equal run with ``only_once``, or has
            taken over this run.
        TrackingError: The MLflow store cannot be opened.
    """
    with _held(config, dataset_hash, view, folder, only_once=only_once) as held:
        tracked: TrackedRun | None = None
        try:
            on_folder(held)
            config.save(held.config)
            name = held.path.name
            if (elsewhere := tracking.goes_on_elsewhere(f"run {name}", held.continues)) is not None:
                view.log(elsewhere)
            is_of_experiment = tracking.outer is None and tracking.experiment == config.name
            shown = run_title("" if is_of_experiment else config.name, title)
            tracked = tracking.open_run(Path(config.output), held.continues, name, held.event_file, title=shown)
            held.save_state("running", tracked.run_id)
            run = OpenRun(held, tracked, view, listener)
            yield run
            held.require_own()
        except BaseException as error:
            is_stopped = isinstance(error, TrainingStoppedError) or terminal_text.is_interrupt(error)
            leave(held, tracked, "stopped" if is_stopped else "failed")
            raise
        run.replay = tracked.finish("FINISHED")
        held.save_state("finished", tracked.run_id)


@contextlib.contextmanager
def _held(
    config: RunIdentity, dataset_hash: str, view: LiveView, folder: RunFolder | None, *, only_once: bool
) -> Iterator[RunFolder]:
    if folder is None:
        with hold_run_folder(config, dataset_hash, view.log, only_once=only_once) as found:
            yield found
        return
    with folder.hold():
        yield folder


class MlflowRunToEnd(Protocol):
    """An MLflow run that can be ended, such as :class:`training.run_records.TrackedRun`."""

    @property
    def run_id(self) -> str | None:
        """The run's id, once it is known."""

    def finish(self, status: str) -> Any:
        """End the run."""

    def abandon(self) -> None:
        """Leave the run to another process."""


def leave(folder: RunFolder, tracked: MlflowRunToEnd | None, status: Status) -> None:
    """Record the end of a run as possible; failures are only logged, so that they do not hide its own error.

    A run that another driver has taken over is left to that driver, in MLflow, too.

    Args:
        folder: Its folder.
        tracked: Its MLflow run, if there is one yet.
        status: ``stopped`` or ``failed``.
    """
    name = f"{folder.kind} {folder.path.name}"
    run_id = tracked.run_id if tracked else folder.continues
    try:
        folder.save_state(status, run_id)
    except RunUnderWayError as error:
        logger.warning("%s has been taken over: %s", name, error)
        if tracked is not None:
            tracked.abandon()
        return
    except Exception as error:
        logger.warning("that %s has %s could not be written down: %s", name, status, error)
    if tracked is None:
        return
    try:
        tracked.finish(_MLFLOW_STATUS[status])
    except Exception as error:
        logger.warning("MLflow could not record that %s has %s: %s", name, status, error)
