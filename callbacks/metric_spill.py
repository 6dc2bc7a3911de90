"""The file that keeps metric values which could not be sent: JSON lines that name the run, and one for each value."""

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from callbacks.credentials import without_credentials

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
    """Where saved values belong; ``run_id`` is None when the run could not be started yet."""

    run_id: str | None
    tracking_uri: str
    experiment: str


class SpillFile:
    """Metric values in a JSON-lines file: lines that name the run, and one line for each value.

    The caller serialises access. What was sent already is remembered as an offset in memory, and the file is removed
    when all of it was.
    """

    def __init__(self, path: Path, run_id: str | None, tracking_uri: str, experiment: str) -> None:
        self.path = path
        self._experiment = experiment
        self._tracking_uri = without_credentials(tracking_uri)
        self._run_id: str | None = None
        self._offset = self._end = 0
        if path.exists():
            self._run_id = read_spill(path)[0].run_id
            self._end = path.stat().st_size
            if self._run_id is None or self._run_id != run_id:
                raise ValueError(
                    f"{path} holds metrics of {'run ' + self._run_id if self._run_id else 'a run not started yet'}; "
                    f"send them first (python -m callbacks.metric_buffer replay {path}) or name another spill_path"
                )

    def has_points(self) -> bool:
        """Tell whether values in the file wait to be sent."""
        return self._end > self._offset

    def name_run(self, run_id: str) -> None:
        """Add the id of a run that was started after values had been written."""
        if self.has_points():
            self.append([], run_id)

    def append(self, points: Iterable[Point], run_id: str | None) -> None:
        """Write values; raises ``OSError`` where the disk does not take them."""
        lines = [
            # float() reads "nan" and "inf" back; JSON has neither.
            json.dumps([p.name, p.value if math.isfinite(p.value) else str(p.value), p.step, p.timestamp_ms])
            for p in points
        ]
        if self._end == 0 or run_id != self._run_id:
            lines.insert(0, json.dumps(asdict(Target(run_id, self._tracking_uri, self._experiment))))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.path.open("ab") as file:
                # The newline first ends a line that a killed process left unfinished.
                file.write(b"\n" + "".join(f"{line}\n" for line in lines).encode())
        finally:
            # A full disk may have taken a part: it is in the file, and counts as there.
            self._end = self.path.stat().st_size if self.path.exists() else 0
        self._run_id = run_id

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
        if self._end and offset >= self._end:
            self.path.unlink(missing_ok=True)
            self._offset = self._end = 0


def name_run_in(path: Path, target: Target) -> None:
    """Add a line to the file at ``path`` that says to which run its values belong."""
    with path.open("ab") as file:
        file.write(b"\n" + json.dumps(asdict(target)).encode() + b"\n")


def read_spill(path: Path) -> tuple[Target, list[Point]]:
    """Return where the values of a file belong, and the values; damaged lines are left out."""
    target = Target(None, "", "Default")
    points = []
    with path.open("rb") as file:
        for line in file:
            entry = _parse(line)
            if isinstance(entry, Point):
                points.append(entry)
            elif entry is not None:
                target = entry
    return target, points


def _parse(line: bytes) -> Point | Target | None:
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
        if isinstance(entry, dict):
            return Target(entry["run_id"], entry["tracking_uri"], entry["experiment"])
        name, value, step, timestamp_ms = entry
        return Point(str(name), float(value), int(step), int(timestamp_ms))
    except (ValueError, TypeError, KeyError):
        logger.warning("Skipped a damaged line of saved metrics: %r", line[:80])
        return None
