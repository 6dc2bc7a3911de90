"""The file that keeps what could not be sent: JSON lines that name the run, and one for each value and call."""

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from callbacks.run_calls import RunCall, from_line, to_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True)
class Target:
    """Where saved values belong.

    Attributes:
        run_id: The run; None when it could not be started yet.
        tracking_uri: Server or store, without user name and password.
        experiment: Of a run that is yet to be started.
        run_name: Of a run that is yet to be started; with it a second start finds the first one's run.
        experiment_id: Of an experiment that is known by its id; it goes before the name.
    """

    run_id: str | None
    tracking_uri: str
    experiment: str
    run_name: str | None = None
    experiment_id: str | None = None

    def is_same_run(self, other: "Target") -> bool:
        """Whether values saved for this target belong to the other one's run."""
        if self.run_id is None:
            return self.run_name is not None and self.run_name == other.run_name
        return self.run_id == other.run_id or (other.run_id is None and self.run_name == other.run_name is not None)


@dataclass(frozen=True)
class Spilled:
    """The content of a file: where it belongs, the metric values and the other calls, in the order they came."""

    target: Target
    points: tuple[Point, ...]
    calls: tuple[RunCall, ...]


class SpillFile:
    """Metric values and calls in a JSON-lines file: lines that name the run, and one line for each value and call.

    The caller serialises access. What was sent already is remembered as an offset in memory, and the file is removed
    when the caller says so and all of it was. The calls of a file that is there already are in ``earlier_calls``;
    ``read`` leaves them out.
    """

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self._target = target
        self._written_for: str | None = None
        self._offset = self._end = 0
        self.earlier_calls: tuple[RunCall, ...] = ()
        if path.exists():
            found = read_spill(path)
            self._written_for = found.target.run_id
            self._end = path.stat().st_size
            self.earlier_calls = found.calls
            if not found.target.is_same_run(target):
                run = f"run {found.target.run_id}" if found.target.run_id else "a run not started yet"
                raise ValueError(
                    f"{path} holds metrics of {run}; "
                    f"send them first (python -m callbacks.metric_buffer replay {path}) or name another spill_path"
                )

    def has_points(self) -> bool:
        """Tell whether values in the file wait to be sent."""
        return self._end > self._offset

    def name_run(self, run_id: str) -> None:
        """Add the id of a run that was started after values had been written."""
        if self.has_points():
            self.append([], run_id)

    def append(self, points: Iterable[Point], run_id: str | None, calls: Iterable[RunCall] = ()) -> None:
        """Write values and calls; raises ``OSError`` where the disk does not take them."""
        lines = [
            # float() reads "nan" and "inf" back; JSON has neither.
            json.dumps([p.name, p.value if math.isfinite(p.value) else str(p.value), p.step, p.timestamp_ms])
            for p in points
        ]
        lines += [json.dumps(to_line(call)) for call in calls]
        if self._end == 0 or run_id != self._written_for:
            lines.insert(0, json.dumps(asdict(replace(self._target, run_id=run_id))))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("ab") as file:
                # The newline first ends a line that a killed process left unfinished.
                file.write(b"\n" + "".join(f"{line}\n" for line in lines).encode())
        finally:
            # A full disk may have taken a part: it is in the file, and counts as there.
            self._end = self.path.stat().st_size if self.path.exists() else 0
        self._written_for = run_id

    def read(self, limit: int) -> tuple[list[Point], int]:
        """Return the next values to send and the offset behind them."""
        points: list[Point] = []
        if not self.has_points():
            return points, self._offset
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while len(points) < limit and (line := file.readline()):
                point = _parse(line)
                if isinstance(point, Point):
                    points.append(point)
            return points, file.tell()

    def drop_until(self, offset: int) -> None:
        """Count everything before ``offset`` as sent."""
        self._offset = offset

    def remove_when_sent(self) -> None:
        """Remove the file if all of its values were sent, and its calls, of which the caller knows."""
        if self._end and not self.has_points():
            self.path.unlink(missing_ok=True)
            self._offset = self._end = 0


def name_run_in(path: Path, target: Target) -> None:
    """Add a line to the file at ``path`` that says to which run its values belong."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(asdict(target)).encode() + b"\n")


def read_spill(path: Path) -> Spilled:
    """Return the content of a file; damaged lines are left out."""
    target = Target(None, "", "Default")
    points: list[Point] = []
    calls: list[RunCall] = []
    with path.open("rb") as file:
        for line in file:
            entry = _parse(line)
            if isinstance(entry, Point):
                points.append(entry)
            elif isinstance(entry, Target):
                target = entry
            elif entry is not None:
                calls.append(entry)
    return Spilled(target, tuple(points), tuple(calls))


def _parse(line: bytes) -> Point | Target | RunCall | None:
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
        if isinstance(entry, dict):
            return from_line(entry) if "call" in entry else Target(**entry)
        name, value, step, timestamp_ms = entry
        return Point(str(name), float(value), int(step), int(timestamp_ms))
    except (ValueError, TypeError, KeyError):
        logger.warning("Skipped a damaged line of saved metrics: %r", line[:80])
        return None
