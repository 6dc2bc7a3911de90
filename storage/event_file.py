"""A file of events, one JSON object per line, that stays small and can be read while it is written.

Where nothing can be appended to a file (a mounted object store), the events are objects with numbers instead, as
``events.jsonl.00000002`` after ``events.jsonl``.
"""

import contextlib
import fcntl
import glob
import json
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from mirrorspark.storage import abilities
from mirrorspark.storage.credentials import clean

Event = dict[str, Any]

# Prefix of the kinds that only MLflow uses. They have no time, so durations ignore them.
FOR_MLFLOW = "mlflow_"
# Kinds that every rank repeats every few seconds; the next event replaces the one before.
SAMPLED = frozenset({"alive", "system", "progress", "validation"})
# Eight ranks write about two megabytes an hour at this rate, and a slow minute still shows.
SAMPLE_SECONDS = 10.0
# The curves over optimizer steps are drawn from progress events.
PROGRESS_SECONDS = 5.0
# Above this size samples and logs are left out: the rest shows the run's progress, and MLflow's metrics are sent from
# it. It is not rotated, because a run that is resumed or replayed is read from its beginning.
LARGEST_BYTES = 1 << 30

logger = logging.getLogger(__name__)


class EventFile:
    """Appends events, each with one write, so that a reader sees whole lines.

    Events of the kinds in ``SAMPLED`` are written once per rank every ``SAMPLE_SECONDS`` (progress every
    ``PROGRESS_SECONDS``). A warning that a rank repeats is sampled in the same way. Both kinds are left out once the
    file has ``LARGEST_BYTES``, without what this process writes for MLflow alone. All other events are written. A disk
    error is reported once; the caller goes on, and :class:`EventTail` still gets the events.

    Where nothing can be appended, samples wait for the next event of another kind, for ``SAMPLE_SECONDS`` at most, and
    become one object with it.

    Args:
        path: The file, created by the first event; None keeps the events in memory.
        capacity: Number of events kept in memory for a tail when they cannot be written; the oldest are dropped first.
        clock: Returns seconds; used for events without a time of their own.
        locks: Whether to lock the file while it is open, to show others that more may be written.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        locks: bool = False,
    ) -> None:
        """Name the file."""
        self.path = path
        self.unwritten: deque[Event] = deque(maxlen=capacity)
        self.when_appended: Callable[[], object] = _nothing
        self._clock = clock
        self._locks = locks
        # Events come from the ranks' connections and from the supervisor.
        self._lock = Lock()
        self._due: dict[tuple[object, ...], float] = {}
        self._descriptor: int | None = None
        self._close: Callable[[], object] = _nothing
        self._appends = True
        self._waiting, self._stored_at = b"", -SAMPLE_SECONDS
        self._is_torn = False
        self._bytes = 0
        self._is_full = False
        self.has_failed = False
        self._has_overflowed = False

    def append(self, event: Event, *, as_is: bool = False) -> None:
        """Write an event, unless its kind is sampled and its rank wrote one a moment ago.

        Args:
            event: The event.
            as_is: Whether to write it unchanged: its content is clean, or encoded. Otherwise secrets are removed.
        """
        with self._lock:
            if not self._is_due(event):
                return
            event = event if as_is else clean(event)
            try:
                if self.path is None:
                    self._remember(event)
                else:
                    self._write(self.path, (json.dumps(event, default=str) + "\n").encode(), event["event"])
            except OSError as error:
                self._remember(event)
                if not self.has_failed:
                    logger.warning("cannot write %s (%s); its events are kept in memory", self.path, error)
                self.has_failed = True
        # Called without the lock, because the callback may append.
        self.when_appended()

    @property
    def is_appending(self) -> bool:
        """True if the file is open for further events, so that no objects follow."""
        return self._descriptor is not None

    def close(self) -> None:
        """Close the file; a later event opens it again."""
        with self._lock:
            if self._waiting and self.path is not None:
                with contextlib.suppress(OSError):  # samples
                    self._store(self.path)
            self._close()
            self._descriptor = None

    def _remember(self, event: Event) -> None:
        if len(self.unwritten) == self.unwritten.maxlen and not self._has_overflowed:
            logger.warning("more than %d events wait; the oldest are dropped from now on", len(self.unwritten))
            self._has_overflowed = True
        self.unwritten.append(event)

    def _is_due(self, event: Event) -> bool:
        kind = event["event"]
        if kind not in SAMPLED and kind != "log":
            return True
        if self._bytes > LARGEST_BYTES:
            if not self._is_full:
                logger.warning("%s has %d bytes: samples and logs are left out from now on", self.path, self._bytes)
            self._is_full = True
            return False
        seconds = PROGRESS_SECONDS if kind == "progress" else SAMPLE_SECONDS
        now = float(event.get("time", self._clock()))
        key = (kind, event.get("rank"), event.get("message"), event.get("step") == 0)
        # A clock that was set back must not suppress events for longer than one interval.
        if 0 < self._due.get(key, now) - now <= seconds:
            return False
        if kind == "log":  # messages vary without limit, so old keys are dropped
            self._due = {known: due for known, due in self._due.items() if due > now}
        self._due[key] = now + seconds
        return True

    def _write(self, path: Path, line: bytes, kind: str) -> None:
        if self._descriptor is None and self._appends:
            self._descriptor = self._open(path)
        if self._descriptor is None:
            self._collect(path, line, is_sample=kind in SAMPLED or kind == "log")
            return
        line = b"\n" + line if self._is_torn else line
        self._is_torn = True
        written = os.write(self._descriptor, line)
        if not kind.startswith(FOR_MLFLOW):
            self._bytes += written
        if written < len(line):
            raise OSError("the disk took a part of a line")
        self._is_torn = False

    def _open(self, path: Path) -> int | None:
        """Open the file for appending; None where nothing can be appended."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._appends = abilities.can_append(path.parent)
        if not self._appends:
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._close = weakref.finalize(self, os.close, descriptor)
        if self._locks:
            # Another process has it, or the file system has no locks.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._is_torn = _ends_within_a_line(descriptor)
        self._bytes = os.fstat(descriptor).st_size
        return descriptor

    def _collect(self, path: Path, line: bytes, *, is_sample: bool) -> None:
        self._waiting += line
        if is_sample and self._clock() - self._stored_at < SAMPLE_SECONDS:
            return
        try:
            self._store(path)
        except OSError:
            self._waiting = self._waiting.removesuffix(line)
            raise

    def _store(self, path: Path) -> None:
        """Write the lines that wait as the next object."""
        files = files_of(path)
        number = 2 if files in ([], [path]) else int(files[-1].suffix[1:]) + 1
        target = path.with_name(f"{path.name}.{number:08d}") if files else path
        try:
            with target.open("xb") as file:
                file.write(self._waiting)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        self._bytes += len(self._waiting)
        self._waiting, self._stored_at = b"", self._clock()


def files_of(path: Path) -> list[Path]:
    """Return the files that hold the events at ``path`` in their order: one, and objects where nothing is appended."""
    objects = sorted(path.parent.glob(f"{glob.escape(path.name)}.{'[0-9]' * 8}"))
    return [path, *objects] if path.exists() else objects


def remove(path: Path) -> None:
    """Remove a file of events, and its objects."""
    for file in reversed(files_of(path)):
        file.unlink()


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file of events, and of its objects.

    Raises:
        FileNotFoundError: There are none.
    """
    for file in files_of(path) or [path]:
        with file.open("rb") as opened:
            yield from opened


class EventTail:
    """Reads the events of a file from its beginning, then those that are appended.

    Events that could not be written follow once the file has no more.
    """

    def __init__(self, events: EventFile) -> None:
        """Read nothing yet."""
        self._events = events
        self._file: BinaryIO | None = None
        self._opened: Path | None = None
        self._position = 0
        self._is_closed = False

    def read(self) -> Event | None:
        """Return the next event, or None if there is none yet; lines that a crash cut off are skipped."""
        while (line := self._line()) is not None:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                return event
        try:
            return self._events.unwritten.popleft()
        except IndexError:
            return None

    @property
    def position(self) -> int:
        """Bytes of the file that have been read; events that could not be written do not count."""
        return self._position

    def close(self) -> None:
        """Close the file; :meth:`read` then returns only events that could not be written."""
        self._is_closed = True
        if self._file is not None:
            self._file.close()

    def _line(self) -> bytes | None:
        if self._is_closed:
            return None
        if self._file is None and not self._open_next():
            return None
        while self._file is not None:
            line = self._file.readline()
            if line.endswith(b"\n"):
                self._position += len(line)
                return line
            self._file.seek(-len(line), os.SEEK_CUR)  # the rest of the line may follow
            if not self._open_next():
                return None
            self._position += len(line)
        return None

    def _open_next(self) -> bool:
        """Open the first file, or the object after the one that is open; return whether there is one."""
        path = self._events.path
        if path is None or (self._opened is not None and self._events.is_appending):
            return False
        files = (file for file in files_of(path) if self._opened is None or file > self._opened)
        if (following := next(files, None)) is None:
            return False
        if self._file is not None:
            self._file.close()
        self._file, self._opened = following.open("rb"), following
        return True


def _ends_within_a_line(descriptor: int) -> bool:
    """Return whether a crash or a full disk has cut off the last line."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _nothing() -> None:
    pass
