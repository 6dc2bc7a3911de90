"""The history of the runs under an output folder: the only module that reads a run's folder as a whole.

It needs neither Spark nor TensorFlow nor MLflow, and reads runs of hours in an instant.
"""

import json
import math
import re
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import FOR_MLFLOW, event_file
from mirrorspark.training.protocol import RUNS_FOLDER, STATE_FILE, SUMMARY_FILE
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import Driver, RunState, driver_of

LATEST = "latest"

# Stands for a setting that a configuration lacks.
UNSET = "(not set)"

# Settings of the command itself, which do not affect its results.
_NOT_COMPARED = frozenset({"dry_run", "resume", "summary", "verbose"})

_STARTED = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4}$")
# Most lines are progress events, which are not needed: to recognise them is ten times faster than to parse them.
_INFORMATIVE = re.compile(rb'"event":\s*"(?:attempt|restart|waiting|epoch_end)"')
_FOR_MLFLOW = re.compile(rb'"event":\s*"' + FOR_MLFLOW.encode())
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RunNotFoundError(ClearError, ValueError):
    """No run has the name, or several begin with it; the message lists the candidates."""


@dataclass(frozen=True)
class UnreadableRun:
    """A folder among the runs that is not a run, or is damaged.

    Attributes:
        reason: The problem, in words.
    """

    path: Path
    reason: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


@dataclass(frozen=True)
class Launch:
    """An attempt, as recorded in the events.

    Attributes:
        workers: Number of its workers; None if it is not known.
        seconds: Time from its launch to its last event.
    """

    workers: int | None
    seconds: float


@dataclass(frozen=True)
class Curves:
    """The metrics of a run over its epochs, from the chief's events.

    Attributes:
        epochs: Metrics by epoch, counted from 1.
        launches: The attempts of all drivers together.
        seconds: Time in training, of all attempts together; None before the first heartbeat.
        examples_per_second: Rate by epoch, all workers together.
    """

    epochs: Mapping[int, Mapping[str, float]]
    launches: tuple[Launch, ...]
    seconds: float | None
    examples_per_second: Mapping[int, float]

    @property
    def attempts(self) -> int:
        """Number of launches."""
        return len(self.launches)

    def columns(self) -> dict[str, list[float]]:
        """Return the values of each metric at all epochs from the first, NaN for a missing one."""
        names = dict.fromkeys(name for logs in self.epochs.values() for name in logs)
        last = max(self.epochs, default=0)
        return {
            name: [float(self.epochs.get(epoch, {}).get(name, math.nan)) for epoch in range(1, last + 1)]
            for name in names
        }


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        state: The state that its driver left for the next one.
        config: Its resolved configuration, without passwords.
        summary: The JSON document of its summary, or of the result of a training from Python; empty before its end.
    """

    path: Path
    state: RunState
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def recipe(self) -> str:
        """The last part of the recipe's name; the run's own name for a training from Python."""
        return Path(str(self.config.get("recipe") or self.config.get("name", ""))).name

    @property
    def driver(self) -> Driver | None:
        """State of the driver of an unfinished run; None for a run that has ended.

        A driver on another host whose lock cannot be seen is ``unknown``.
        """
        return driver_of(self.path, self.state)

    @property
    def status(self) -> str:
        """The run's status in words."""
        elsewhere = "" if self.state.host == socket.gethostname() else f" on {self.state.host}"
        words = {"gone": "driver gone", "unknown": f"running{elsewhere}?", "alive": f"running{elsewhere}"}
        return words.get(self.driver or "", self.state.status)

    @cached_property
    def curves(self) -> Curves:
        """The metrics over the epochs; read at the first access."""
        return read_curves(_folder(self.path).events)

    @property
    def monitor(self) -> str:
        """The validation metric that picks the best epoch."""
        return str(self.config.get("monitor", ""))

    @property
    def best_epoch(self) -> int | None:
        """The earliest epoch with the best ``monitor``."""
        sign = 1.0 if self.config.get("mode") == "max" else -1.0
        known = {
            epoch: sign * value
            for epoch, logs in self.curves.epochs.items()
            if (value := logs.get(self.monitor)) is not None and math.isfinite(value)
        }
        return max(sorted(known), key=lambda epoch: known[epoch]) if known else None

    @property
    def best(self) -> float | None:
        """The best value of ``monitor``."""
        epoch = self.best_epoch
        return None if epoch is None else self.curves.epochs[epoch][self.monitor]

    @property
    def test_metric(self) -> tuple[str, float] | None:
        """Name and value of the test split's metric: that of ``monitor``, or else the most informative one."""
        test = self.metrics("test")
        names = [self.monitor.removeprefix("val_"), *headline(test)]
        return next(((name, test[name]) for name in names if name in test), None)

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics of the exported model on a split, without those that are not numbers."""
        found = self.summary.get("metrics")
        of_split = found.get(split) if isinstance(found, Mapping) else None
        if not isinstance(of_split, Mapping):
            return {}
        return {str(name): float(value) for name, value in of_split.items() if isinstance(value, int | float)}


def history(output: Path) -> list[RunRecord | UnreadableRun]:
    """Return the runs under ``output``, newest first; none if the folder does not exist."""
    folders = [path for path in _runs(output).glob("*") if path.is_dir() and not path.name.startswith(".")]
    return [read_run(path) for path in sorted(folders, key=lambda path: (_started(path), path.name), reverse=True)]


def find(output: Path, name: str) -> RunRecord:
    """Return the run with the name or unique prefix ``name``, or the newest one for ``latest``.

    Raises:
        RunNotFoundError: There is no such run, there are several, or it cannot be read.
    """
    runs = history(output)
    found: Sequence[RunRecord | UnreadableRun] = [run for run in runs if run.name == name] or [
        run for run in runs if name and run.name.startswith(name)
    ]
    if name == LATEST:
        found = [run for run in runs if isinstance(run, RunRecord)][:1]
    if not found:
        known = [run.name for run in runs if isinstance(run, RunRecord)]
        shown = f"there are {', '.join(known[:5])}{' and more' if len(known) > 5 else ''}" if known else "there is none"
        raise RunNotFoundError(f"no run in {_runs(output)} is called '{name}'; {shown} (another --output?)")
    if len(found) > 1:
        raise RunNotFoundError(f"'{name}' begins several runs: {', '.join(run.name for run in found)}; give more of it")
    if isinstance(found[0], UnreadableRun):
        raise RunNotFoundError(f"run {found[0].name} cannot be read: {found[0].reason}")
    return found[0]


def read_run(path: Path) -> RunRecord | UnreadableRun:
    """Return the run in a folder, or the reason why it is not one."""
    folder = _folder(path)
    state_file = path / STATE_FILE
    if not state_file.exists():
        has_begun = folder.config.exists()
        reason = f"it has no {STATE_FILE}" + (": its start is under way, or was cut off" if has_begun else ": no run")
        return UnreadableRun(path, reason)
    if not folder.config.exists():
        return UnreadableRun(path, f"it has no {folder.config.name}")
    try:
        state = RunState.parse(state_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return UnreadableRun(path, f"{STATE_FILE} is damaged ({_first_line(error)})")
    try:
        config = _mapping(yaml.load(folder.config.read_text(encoding="utf-8"), _YAML_LOADER))  # noqa: S506 - a safe one
    except (OSError, ValueError, yaml.YAMLError) as error:
        return UnreadableRun(path, f"{folder.config.name} is damaged ({_first_line(error)})")
    # A training from Python writes its result with the same names.
    return RunRecord(path, state, config, _document(path / SUMMARY_FILE) or _document(folder.delivered))


def _document(file: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (OSError, ValueError):
        return {}  # Only the summary is lost; the rest of the run can be read.


def read_curves(events: Path) -> Curves:
    """Return the metrics from the event file of a run; lines that a crash cut off are skipped."""
    epochs: dict[int, Mapping[str, float]] = {}
    rates: dict[int, float] = {}
    seconds, begin = 0.0, None
    launches: list[Launch] = []
    is_under_way, began = False, None
    recent: deque[bytes] = deque(maxlen=2)
    for line in _lines(events):
        event = _event(line) if begin is None or _INFORMATIVE.search(line) else {}
        if is_under_way and event.get("event") in ("attempt", "restart", "waiting"):
            launches[-1] = replace(launches[-1], seconds=_until(recent, began))
            is_under_way = False
        if event.get("event") == "attempt":
            workers, began, is_under_way = event.get("workers"), _number(event.get("time")), True
            launches.append(Launch(workers if isinstance(workers, int) and began is not None else None, 0.0))
            seconds += _until(recent, begin)
            begin = None
        epoch = event.get("epoch") if event.get("event") == "epoch_end" and event.get("rank") == 0 else None
        if isinstance(epoch, int):
            # An epoch that a restart repeats sends the same event again.
            epochs.setdefault(epoch, _numbers(event.get("logs")))
            rates.setdefault(epoch, _number(event.get("examples_per_second")) or math.nan)
        if begin is None:
            begin = _number(event.get("time"))
        recent.append(line)
    seconds += _until(recent, begin)
    if is_under_way:
        launches[-1] = replace(launches[-1], seconds=_until(recent, began))
    return Curves(dict(sorted(epochs.items())), tuple(launches), seconds if epochs or seconds else None, rates)


def headline(test: Mapping[str, float]) -> tuple[str, ...]:
    """Return the names of the most informative metrics; for a retrieval model those of its longest lists."""
    ranks = sorted(int(found[1]) for name in test if (found := re.fullmatch(r"recall_at_(\d+)", name)))
    if not ranks:
        return ("auc", "pr_auc", "log_loss") if "auc" in test else tuple(test)[:3]
    return (f"recall_at_{ranks[-1]}", f"ndcg_at_{ranks[-1]}", *(f"recall_at_{rank}" for rank in ranks[-2:-1]))


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration with one entry per setting: nested ones get dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_config(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the settings that differ, with their value in each configuration; ``UNSET`` for a missing one."""
    flat = [flat_config(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config if name not in _NOT_COMPARED)
    values = {name: tuple(config.get(name, UNSET) for config in flat) for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def _folder(path: Path) -> RunFolder:
    return RunFolder(path, "", None)


def _runs(output: Path) -> Path:
    return output.absolute() / RUNS_FOLDER


def _started(path: Path) -> float:
    """Return the start time of a run from its folder's name, or else the folder's modification time."""
    found = _STARTED.search(path.name)
    try:
        return datetime.strptime(found[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp() if found else _mtime(path)
    except ValueError:
        return _mtime(path)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # Deleted in the meantime.
        return 0.0


def _lines(path: Path) -> Iterator[bytes]:
    try:
        yield from (line for line in event_file.lines_of(path) if not _FOR_MLFLOW.search(line, 0, 80))
    except OSError:
        return


def _event(line: bytes) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _until(recent: Sequence[bytes], begin: float | None) -> float:
    """Return the seconds from ``begin`` to the newest whole line of ``recent``."""
    if begin is None:
        return 0.0
    times = (_number(_event(line).get("time")) for line in reversed(recent))
    return max(0.0, next((time for time in times if time is not None), begin) - begin)


def _numbers(logs: Any) -> dict[str, float]:
    """Return the metrics of an epoch that are numbers, since JSON has no portable NaN."""
    found = {str(name): _number(value) for name, value in (logs if isinstance(logs, Mapping) else {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _mapping(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError(f"it holds a {type(document).__name__}, not fields with values")  # noqa: TRY004 - reported as damage
    return document


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
