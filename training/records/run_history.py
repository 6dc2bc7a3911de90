"""What is known of the runs under an output folder: the one place that reads a run's folder as a whole.

Light: neither Spark nor TensorFlow nor MLflow is needed, and runs of hours are read in a blink.
"""

import json
import math
import re
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from training.records.run_folder import RUNS_FOLDER, STATE_FILE, Driver, RunFolder, RunState, driver_of
from training.results.summary import headline

DEFAULT_OUTPUT = "mirrorspark-output"
SUMMARY_FILE = "summary.json"
LATEST = "latest"

# What a configuration does not set.
UNSET = "(not set)"

# How a command was given; what came of it does not depend on these.
_NOT_COMPARED = frozenset({"dry_run", "resume", "summary", "verbose"})

_STARTED = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{4}$")
# Most lines are progress, which nobody needs afterwards: telling them apart is ten times faster than reading them.
_TELLING = re.compile(rb'"event":\s*"(?:attempt|epoch_end)"')
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RunNotFoundError(ValueError):
    """No run is called so, or several begin so; the message lists what there is."""


@dataclass(frozen=True)
class UnreadableRun:
    """A folder among the runs that is no run, or no whole one.

    Attributes:
        path: The folder.
        reason: What is wrong with it.
    """

    path: Path
    reason: str

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.path.name


@dataclass(frozen=True)
class Curves:
    """What the chief said of the epochs.

    Attributes:
        epochs: Per epoch, counted from 1, its metrics.
        attempts: Launches, of all drivers together.
        seconds: Time in training, of all attempts together; None before the first sign of life.
        examples_per_second: Per epoch, all workers together.
    """

    epochs: Mapping[int, Mapping[str, float]]
    attempts: int
    seconds: float | None
    examples_per_second: Mapping[int, float]

    def columns(self) -> dict[str, list[float]]:
        """Return per metric its value at every epoch from the first on, NaN where nothing was said."""
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
        path: Its folder.
        state: What its driver left for the next one.
        config: Its resolved configuration, without passwords.
        summary: The JSON document of its end, or of what a training from Python delivered; empty before that.
    """

    path: Path
    state: RunState
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.path.name

    @property
    def recipe(self) -> str:
        """The last part of the recipe's name; the run's own name where it was started from Python."""
        return Path(str(self.config.get("recipe") or self.config.get("name", ""))).name

    @property
    def driver(self) -> Driver | None:
        """Whether the driver of a run that has not ended is at work; None for one that has ended.

        From another host nobody can tell of a driver that gives no signs of life.
        """
        return driver_of(self.path, self.state)

    @property
    def status(self) -> str:
        """How it stands, in words."""
        elsewhere = "" if self.state.host == socket.gethostname() else f" on {self.state.host}"
        words = {"gone": "driver gone", "unknown": f"running{elsewhere}?", "alive": f"running{elsewhere}"}
        return words.get(self.driver or "", self.state.status)

    @cached_property
    def curves(self) -> Curves:
        """What the chief said of the epochs; read when asked for."""
        return read_curves(_folder(self.path).events)

    @property
    def monitor(self) -> str:
        """The validation metric that picks the best epoch."""
        return str(self.config.get("monitor", ""))

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best ``monitor``, the earliest of equals."""
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
        """Name and value of the metric of the test split: ``monitor``'s, or else the one that tells most."""
        test = self.metrics("test")
        names = [self.monitor.removeprefix("val_"), *headline(test)]
        return next(((name, test[name]) for name in names if name in test), None)

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics of the exported model on a split, without those that are no number."""
        found = self.summary.get("metrics")
        of_split = found.get(split) if isinstance(found, Mapping) else None
        if not isinstance(of_split, Mapping):
            return {}
        return {str(name): float(value) for name, value in of_split.items() if isinstance(value, int | float)}


def history(output: Path) -> list[RunRecord | UnreadableRun]:
    """Return the runs under ``output``, newest first; none where the folder does not exist."""
    folders = [path for path in _runs(output).glob("*") if path.is_dir() and not path.name.startswith(".")]
    return [read_run(path) for path in sorted(folders, key=lambda path: (_started(path), path.name), reverse=True)]


def find(output: Path, name: str) -> RunRecord:
    """Return the run of that name, with that unique beginning, or the newest one for ``latest``.

    Raises:
        RunNotFoundError: There is none, several, or it cannot be read.
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
    """Return what the folder holds, or why it is no run."""
    folder = _folder(path)
    state_file = path / STATE_FILE
    if not state_file.exists():
        has_begun = folder.config.exists()
        reason = f"it has no {STATE_FILE}" + (": its start is under way, or was cut off" if has_begun else ": no run")
        return UnreadableRun(path, reason)
    if not folder.config.exists():
        return UnreadableRun(path, f"it has no {folder.config.name}")
    try:
        state = RunState(**_mapping(json.loads(state_file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        return UnreadableRun(path, f"{STATE_FILE} is damaged ({_first_line(error)})")
    try:
        config = _mapping(yaml.load(folder.config.read_text(encoding="utf-8"), _YAML_LOADER))  # noqa: S506 - a safe one
    except (OSError, ValueError, yaml.YAMLError) as error:
        return UnreadableRun(path, f"{folder.config.name} is damaged ({_first_line(error)})")
    # A training from Python keeps what it delivered, under the same names.
    return RunRecord(path, state, config, _document(path / SUMMARY_FILE) or _document(folder.delivered))


def _document(file: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (OSError, ValueError):
        return {}  # the run's end is lost, the run is not


def read_curves(events: Path) -> Curves:
    """Return what the chief said, from the event file of a run; lines that a crash cut off are passed over."""
    epochs: dict[int, Mapping[str, float]] = {}
    rates: dict[int, float] = {}
    attempts, seconds, begin = 0, 0.0, None
    recent: deque[bytes] = deque(maxlen=2)
    for line in _lines(events):
        event = _event(line) if begin is None or _TELLING.search(line) else {}
        if event.get("event") == "attempt":
            attempts += 1
            seconds += _until(recent, begin)
            begin = None
        if event.get("event") == "epoch_end" and event.get("rank") == 0:
            # An epoch that a restart repeats says the same again.
            epochs.setdefault(int(event["epoch"]), _numbers(event.get("logs")))
            rates.setdefault(int(event["epoch"]), float(event.get("examples_per_second") or math.nan))
        if begin is None:
            begin = event.get("time")
        recent.append(line)
    seconds += _until(recent, begin)
    return Curves(dict(sorted(epochs.items())), attempts, seconds if epochs or seconds else None, rates)


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
    """Return per setting that is not the same in all, its value in each; ``UNSET`` where one does not set it."""
    flat = [flat_config(config) for config in configs]
    names = dict.fromkeys(name for config in flat for name in config if name not in _NOT_COMPARED)
    values = {name: tuple(config.get(name, UNSET) for config in flat) for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def _folder(path: Path) -> RunFolder:
    return RunFolder(path, "", None)


def _runs(output: Path) -> Path:
    return output.absolute() / RUNS_FOLDER


def _started(path: Path) -> float:
    """Return when a run began, as its folder's name has it, else when the folder was changed."""
    found = _STARTED.search(path.name)
    try:
        return datetime.strptime(found[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp() if found else _mtime(path)
    except ValueError:
        return _mtime(path)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError:
        return


def _event(line: bytes) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _until(recent: Sequence[bytes], begin: float | None) -> float:
    """Return the seconds from ``begin`` to the newest of the recent lines that is whole."""
    if begin is None:
        return 0.0
    times = [event["time"] for event in map(_event, reversed(recent)) if isinstance(event.get("time"), int | float)]
    return max(0.0, times[0] - begin) if times else 0.0


def _numbers(logs: Any) -> dict[str, float]:
    """Return the metrics of an epoch; JSON has no word for NaN that is a number everywhere."""
    found = {}
    for name, value in (logs if isinstance(logs, Mapping) else {}).items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def _mapping(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ValueError(f"it holds a {type(document).__name__}, not fields with values")  # noqa: TRY004 - told as damage
    return document


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
