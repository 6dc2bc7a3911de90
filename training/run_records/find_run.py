"""The choice of the run that a command continues: an unfinished one of equal configuration and data, or a new one."""

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import yaml

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import clean, file_lock
from mirrorspark.training.protocol import RUNS_FOLDER, STATE_FILE
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import (
    TIMING,
    RunState,
    RunUnderWayError,
    read_state,
    under_way,
    watch_driver,
)

if TYPE_CHECKING:  # The import takes long, and a search for runs does not need it.
    from mirrorspark.data_pipelines.reading import Dataset

_CHOOSING_LOCK = ".choosing.lock"

logger = logging.getLogger(__name__)


class RunFinishedError(ClearError, RuntimeError):
    """A run that is not to be repeated has finished; its results are in its folder."""

    def __init__(self, folder: RunFolder) -> None:
        """Build the error from the run's folder."""
        super().__init__(f"run {folder.path.name} has finished")
        self.folder = folder

    def in_words(self, run_date: str | None) -> str:
        """Return a message about the finished run, with the flag that trains anew."""
        return f"run {self.folder.path.name} of {run_date} has finished: nothing to do (--no-resume trains anew)"


class RunIdentity(Protocol):
    """The fields of a configuration that decide which run it continues."""

    @property
    def name(self) -> str:
        """Names the run folders."""

    @property
    def identity(self) -> str:
        """A text that two runs share when one may continue the other on the same data."""

    @property
    def decisive(self) -> Mapping[str, Any]:
        """The settings behind it."""

    @property
    def output(self) -> str:
        """The folder with all runs."""

    @property
    def resume(self) -> bool:
        """True if an unfinished run is continued."""


@contextlib.contextmanager
def hold_run_folder(
    config: RunIdentity, dataset_hash: str, say: Callable[[str], None] = logger.warning, *, only_once: bool = False
) -> Iterator[RunFolder]:
    """Lock the folder of the unfinished run on the same dataset that ``config`` continues, or of a new one.

    Args:
        config: Identifies the training.
        dataset_hash: Identifies the data.
        say: Shows a message about a run that is skipped because its driver is running.
        only_once: Raise an error instead of skipping an equal run that is running or finished.

    Raises:
        RunUnderWayError: There is such a run, and ``only_once`` is set.
        RunFinishedError: The run has finished, and ``only_once`` is set.
    """
    while True:
        with contextlib.ExitStack() as held:
            with _choosing(_runs(config)) if only_once else contextlib.nullcontext():
                folder, seen = _find(config, dataset_hash, say, only_once=only_once)
                try:
                    held.enter_context(folder.hold(seen))
                except RunUnderWayError:
                    # An equal command has created its run first; the next search finds it.
                    continue
            yield folder
            return


@contextlib.contextmanager
def _choosing(runs: Path) -> Iterator[None]:
    """Lock the search for a run, since two commands that both find none would begin two runs."""
    runs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # The file system has no locks, so the search goes on without one.
            held.enter_context(file_lock(runs / _CHOOSING_LOCK, -1))
        yield


def _find(
    config: RunIdentity, dataset_hash: str, say: Callable[[str], None], *, only_once: bool
) -> tuple[RunFolder, RunState | None]:
    identity = f"{config.identity}-{dataset_hash}"
    runs = _runs(config)
    if only_once:
        decisive = _decisive(config, dataset_hash)
        if decisive is not None and decisive[1].status == "finished":
            raise RunFinishedError(decisive[0])
        if decisive is not None:
            return decisive
    elif config.resume:
        for path, state in runs_of_identity(runs, identity):
            if state.status == "finished":
                continue
            if watch_driver(path, state, say) in (None, "gone"):
                return RunFolder(path, identity, state.mlflow_run_id), state
            say(_passed_over(path, state))
        if (changes := _changes_since_unfinished(config, dataset_hash)) is not None:
            say(changes)
    name = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid4().hex[:4]}"
    (runs / name).mkdir(parents=True)
    return RunFolder(runs / name, identity, None), None


def find_finished(config: RunIdentity, dataset_hash: str) -> RunFolder | None:
    """Return the folder of the finished run of ``config`` on the same dataset; None if a run is to begin or go on.

    The newest run decides: an unfinished run that is newer than a finished one was meant to repeat it.

    Raises:
        RunUnderWayError: Another driver is running a run that is newer than every finished one.
    """
    decisive = _decisive(config, dataset_hash)
    return decisive[0] if decisive is not None and decisive[1].status == "finished" else None


def require_unfinished(config: RunIdentity, dataset: "Dataset | None") -> None:
    """Check that ``config`` is yet to be trained on ``dataset``; None for data that is yet to be converted.

    Raises:
        RunFinishedError: It has been trained.
        RunUnderWayError: Another driver is training it.
    """
    if dataset is not None and (folder := find_finished(config, dataset.manifest.content_hash)) is not None:
        raise RunFinishedError(folder)


def _decisive(config: RunIdentity, dataset_hash: str) -> tuple[RunFolder, RunState] | None:
    """Return the newest run, finished or to be continued, which decides the remaining work; None if there is no run.

    Raises:
        RunUnderWayError: Another driver is running a run that is newer than every finished one.
    """
    identity = f"{config.identity}-{dataset_hash}"
    broken_off: tuple[RunFolder, RunState] | None = None
    for path, state in runs_of_identity(_runs(config), identity):
        if watch_driver(path, state) not in (None, "gone"):
            raise under_way(path, state)
        found = RunFolder(path, identity, state.mlflow_run_id), state
        if state.status == "finished":
            return broken_off or found
        # Older runs are checked, too: one of them may be running without having been touched for some seconds.
        broken_off = broken_off or found
    return broken_off


def _runs(config: RunIdentity) -> Path:
    return Path(config.output).absolute() / RUNS_FOLDER


def runs_of_identity(runs: Path, identity: str) -> Iterator[tuple[Path, RunState]]:
    """Yield the folders and states of the runs of that identity, the one touched last first."""
    for path in sorted(runs.glob(f"*/{STATE_FILE}"), key=_modified, reverse=True):
        state = read_state(path.parent)
        if state is not None and state.identity == identity:
            yield path.parent, state


def _passed_over(folder: Path, state: RunState) -> str:
    who = state.driver_process
    if state.heartbeat is None:
        where = "" if state.host == socket.gethostname() else ", as far as this host can see"
        goes_on = f"if it is not, remove {folder / STATE_FILE} or resume the run there" if where else "stop it first"
        return (
            f"run {folder.name} of the same configuration is under way ({who}{where}), so a new one begins; {goes_on}"
        )
    return (
        f"run {folder.name} of the same configuration is under way ({who}, which sends heartbeats), so a new one "
        f"begins; the same command goes on with it once its driver has been silent for {TIMING.stale_seconds:.0f} s"
    )


def _changes_since_unfinished(config: RunIdentity, dataset_hash: str) -> str | None:
    """Return a message about the newest run of that name if it is unfinished and has other settings; else None."""
    runs = (path.parent for path in sorted(_runs(config).glob(f"{config.name}-*/{STATE_FILE}"), key=_modified))
    newest = next(reversed(list(runs)), None)
    state = None if newest is None else read_state(newest)
    if newest is None or state is None or state.status == "finished" or not state.identity.endswith(dataset_hash):
        return None
    try:
        before = yaml.safe_load(RunFolder(newest, state.identity, None).config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):  # It was interrupted before it had saved them.
        return None
    changed = list(_changes(before, clean(json.loads(json.dumps(config.decisive)), names=False)))
    if not changed:
        return None
    return (
        f"the unfinished run {newest.name} is left as it is and a new one begins, since settings have changed: "
        f"{'; '.join(changed)}"
    )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    # A setting at the top that was not saved is one that an earlier version did not have.
    for name in now if not prefix else sorted({*before, *now}):
        if (not prefix and name not in before) or before.get(name) == now.get(name):
            continue
        if isinstance(now.get(name), dict) and isinstance(before[name], dict):
            yield from _changes(before[name], now[name], f"{name}.")
        elif (prefix, name) == ("model.", "digest"):
            yield f"the code of the model {now.get('function', before.get('function'))}"
        else:
            yield f"{prefix}{name} is {now.get(name, 'not given')}, was {before.get(name, 'not given')}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # Deleted in the meantime.
        return 0.0
