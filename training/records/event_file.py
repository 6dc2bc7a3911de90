"""The events of a run as a file of JSON lines that is open as long as the run is, and stays small."""

import json
import logging
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from callbacks.credentials import clean
from training.channel.events import Event

# What comes every few seconds from every rank; the next one says the same and more.
SAMPLED = frozenset({"alive", "system", "progress", "validation"})
# Eight ranks write a megabyte an hour and kind this way, and a slow minute can still be found.
SAMPLE_SECONDS = 10.0

logger = logging.getLogger(__name__)


class EventFile:
    """Appends events, each with one write, so that who reads meanwhile sees whole lines.

    Of the kinds in ``SAMPLED`` each rank gets one line every ``SAMPLE_SECONDS``; a warning that a rank repeats counts
    as such a kind, everything else is written. A disk that takes nothing is reported once; the training goes on.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Name the file; it is opened by the first event.

        Args:
            path: The file.
            clock: Returns seconds; monotonic.
        """
        self._path = path
        self._clock = clock
        # Events come from the ranks' connections and from the supervisor.
        self._lock = Lock()
        self._due: dict[tuple[object, ...], float] = {}
        self._descriptor: int | None = None
        self._close: Callable[[], object] = _nothing
        self._is_torn = False
        self._has_failed = False

    def append(self, event: Event) -> None:
        """Write an event, or leave it out when its kind is sampled and its rank had one of it just now."""
        with self._lock:
            if not self._is_due(event):
                return
            line = (json.dumps(clean(event), default=str) + "\n").encode()
            try:
                self._write(line)
            except OSError as error:
                if not self._has_failed:
                    logger.warning("events are lost, training goes on: cannot write %s (%s)", self._path, error)
                self._has_failed = True

    def close(self) -> None:
        """Close the file; a later event opens it again."""
        with self._lock:
            self._close()
            self._descriptor = None

    def _is_due(self, event: Event) -> bool:
        kind = event["event"]
        if kind not in SAMPLED and kind != "log":
            return True
        now = self._clock()
        key = (kind, event.get("rank"), event.get("message"), event.get("step") == 0)
        if now < self._due.get(key, now):
            return False
        if kind == "log":  # there is no end to what messages may say
            self._due = {known: due for known, due in self._due.items() if due > now}
        self._due[key] = now + SAMPLE_SECONDS
        return True

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            self._close = weakref.finalize(self, os.close, self._descriptor)
            self._is_torn = _ends_within_a_line(self._descriptor)
        line = b"\n" + line if self._is_torn else line
        self._is_torn = True
        written = os.write(self._descriptor, line)
        if written < len(line):
            raise OSError("the disk took a part of a line")
        self._is_torn = False


def _ends_within_a_line(descriptor: int) -> bool:
    """Whether a crash or a full disk has cut off the last line."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _nothing() -> None:
    pass
