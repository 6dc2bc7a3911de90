"""A log that a model which fails with every request does not fill."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any


class Repeats(logging.Filter):
    """Lets an error through once, with its traceback, and from then on once a minute, with the number of the others.

    Errors are alike if their class, the line that raised them and the text of the log are the same; that text names the
    version. Their own messages often have values of a row, and do not count.
    """

    def __init__(self, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the seconds for which an error like the last one is only counted."""
        super().__init__()
        self._seconds, self._clock = seconds, clock
        self._logged_at: dict[tuple[Any, ...], float] = {}
        self._held_back: Counter[tuple[Any, ...]] = Counter()
        self._lock = threading.Lock()  # models fail in other threads, too

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged; without an exception, it always is."""
        kind, _, trace = record.exc_info or (None, None, None)
        if kind is None or trace is None:
            return True
        while trace.tb_next:
            trace = trace.tb_next
        place = (record.getMessage(), kind, trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        with self._lock:
            now = self._clock()
            if place not in self._logged_at:
                self._logged_at[place] = now
                return True
            self._held_back[place] += 1
            if now < self._logged_at[place] + self._seconds:
                return False
            self._logged_at[place] = now
            more = f"{self._held_back.pop(place):,} more of the same {kind.__name__} since it was last logged"
        record.msg, record.args = "%s (%s)", (record.getMessage(), more)
        record.exc_info = record.exc_text = None
        return True
