"""A run that is under way: its folder, its MLflow run and its view are opened, hear its events, and are left in order.

The same for a training of ours and for a function of somebody else's.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from training.channel.events import Event
from training.live.view import LiveView
from training.ranks.plan import TrainingPlan
from training.records import tracking
from training.records.run_folder import RunFolder, RunIdentity, Status, hold_run_folder
from training.supervision.failure_policy import Attempt
from training.supervision.signals import on_stop_signals
from training.supervision.supervisor import Supervisor, TrainingStoppedError

Sink = Callable[[Event], None]

_MLFLOW_STATUS: dict[Status, str] = {"stopped": "KILLED", "failed": "FAILED"}

logger = logging.getLogger(__name__)


class RunSettings(RunIdentity, Protocol):
    """What opening a run asks of a configuration."""

    @property
    def experiment(self) -> str | None:
        """MLflow experiment; by default the run's name."""

    def save(self, path: Path) -> None:
        """Write what is configured."""


@dataclass
class OpenRun:
    """What every run has while it goes on.

    Attributes:
        folder: Keeps it; this driver is its only one.
        tracked: Its MLflow run.
        view: Shows it.
        listener: Gets every event, too.
        replay: Command that sends MLflow what it could not be told; None while the run goes on, and when it knows all.
    """

    folder: RunFolder
    tracked: tracking.TrackedRun
    view: LiveView
    listener: Sink | None = None
    replay: str | None = None
    _failed: set[str] = field(default_factory=set, init=False)

    def on_event(self, event: Event) -> None:
        """Pass on an event. What one receiver stumbles over (a full disk, a closed terminal) keeps it from no other."""
        # The file first: what else is shown or sent can be made of it again.
        sinks: dict[str, Sink | None] = {
            "the events file": self.folder.append_event,
            "the run's state": self._note_fence,
            "MLflow": self.tracked.on_event,
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

    def recall(self, keep: Sink | None = None) -> None:
        """Hear again what earlier drivers of this run heard; ``keep`` gets it, too."""
        for event in self.folder.past_events():
            if keep is not None:
                keep(event)
            # A killed driver may not have sent its last metrics; what is there already is skipped.
            self.tracked.on_event(event)

    def supervise(self, supervisor: Supervisor, plan: TrainingPlan) -> tuple[Attempt, ...]:
        """Run ``plan`` to its end; a signal stops it, and so does another driver that takes the run over.

        Raises:
            TrainingFailedError: A fault of the user's code, or a spent budget.
            TrainingStoppedError: Somebody asked for a stop.
            NotEnoughSlotsError: The cluster has had too few slots for the fewest workers for too long.
        """
        self.folder.when_lost(lambda: supervisor.stop_now("another driver has taken over this run"))
        with on_stop_signals(supervisor.request_stop, supervisor.stop_now):
            return supervisor.supervise(plan)

    def _note_fence(self, event: Event) -> None:
        if event["event"] == "attempt":  # the supervisor tells of it when it has put up the fence
            self.folder.note_fenced()


@contextlib.contextmanager
def open_run(
    config: RunSettings,
    dataset_hash: str,
    store: str,
    view: LiveView,
    *,
    folder: RunFolder | None = None,
    listener: Sink | None = None,
    only_once: bool = False,
) -> Iterator[OpenRun]:
    """Hold the run's folder, open its MLflow run, and leave both finished, stopped or failed.

    Args:
        config: How the run is configured.
        dataset_hash: What it learns from.
        store: The MLflow store.
        view: Shows it.
        folder: The run's folder; by default that of the unfinished run which ``config`` continues, or a new one.
        listener: Gets every event, too.
        only_once: Begin none beside one that is under way or has finished; of no account where there is a ``folder``.

    Raises:
        RunUnderWayError: Another driver is at work on ``folder``, or there is a run beside which none may begin.
        TrackingError: The MLflow store cannot be opened.
    """
    with _held(config, dataset_hash, view, folder, only_once=only_once) as held:
        tracked: tracking.TrackedRun | None = None
        try:
            config.save(held.config)
            experiment = config.experiment or config.name
            tracked = tracking.TrackedRun(store, experiment, Path(config.output), held.continues, held.path.name)
            held.save_state("running", tracked.run_id)
            run = OpenRun(held, tracked, view, listener)
            yield run
        except BaseException as error:
            is_stopped = isinstance(error, TrainingStoppedError | KeyboardInterrupt)
            leave(held, tracked, "stopped" if is_stopped else "failed")
            raise
        run.replay = tracked.finish("FINISHED")
        held.save_state("finished", tracked.run_id)


@contextlib.contextmanager
def _held(
    config: RunIdentity, dataset_hash: str, view: LiveView, folder: RunFolder | None, *, only_once: bool
) -> Iterator[RunFolder]:
    if folder is None:
        with hold_run_folder(config, dataset_hash, view.say, only_once=only_once) as found:
            yield found
        return
    with folder.hold():
        yield folder


class Ending(Protocol):
    """What is told of its end of an MLflow run; :class:`training.records.tracking.TrackedRun` is one."""

    @property
    def run_id(self) -> str | None:
        """The run, once it is known."""

    def finish(self, status: str) -> Any:
        """End it."""


def leave(folder: RunFolder, tracked: Ending | None, status: Status, what: str = "run") -> None:
    """Say how a run ended, wherever that can still be said; the error that ended it is what people are told.

    Args:
        folder: Its folder.
        tracked: Its MLflow run, if there is one yet.
        status: ``stopped`` or ``failed``.
        what: What it is called.
    """
    run_id = tracked.run_id if tracked else folder.continues
    try:
        folder.save_state(status, run_id)
    except Exception as error:
        logger.warning("that %s %s has %s could not be written down: %s", what, folder.path.name, status, error)
    if tracked is None:
        return
    try:
        tracked.finish(_MLFLOW_STATUS[status])
    except Exception as error:
        logger.warning("MLflow could not be told that %s %s has %s: %s", what, folder.path.name, status, error)
