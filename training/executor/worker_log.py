"""The output and the log of a worker: without secrets, and to the driver within a budget."""

import io
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from mirrorspark.storage import clean, without_credentials
from mirrorspark.training.executor.child_process import LOG_CHARACTERS, LineBudget
from mirrorspark.training.protocol.messages import EventClient

# Warnings that a model of the user's own causes, and about which nothing can or need be done: functions that are sent
# by value have no source, which AutoGraph needs only for Python's own loops and branches on tensors; and a pretrained
# layer is not trained by its own configuration.
_HARMLESS = re.compile(
    r"AutoGraph could not transform .*Unable to locate the source code|No training configuration found in save file",
    re.DOTALL,
)


class CleanEventClient(EventClient):
    """A client that removes secrets from events in the worker, where the environment that defines them is known."""

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event without the secrets in it."""
        super().send(clean(event))


class CleanText(io.TextIOWrapper):
    """Standard output or error of a worker, line by line, without the secrets in its environment."""

    def __init__(self, file: int) -> None:
        # Flushed at every line, even into a pipe: a finished worker is killed, and its output must not be lost.
        stream = open(file, "wb", closefd=False)  # noqa: SIM115 - open as the process
        super().__init__(stream, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write the text without the secrets in it."""
        super().write(without_credentials(text))
        return len(text)


def let_the_log_out(events: EventClient, *, verbose: bool) -> None:
    """Send warnings and errors to the driver; with ``verbose``, print INFO, which the task sends as any other output.

    A record goes one of the two ways, so that the driver gets it once.
    """
    root = logging.getLogger()
    root.addHandler(LogToDriver(events, verbose=verbose))
    if verbose:
        root.setLevel(logging.INFO)
        printer = logging.StreamHandler()
        printer.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        printer.addFilter(lambda record: not _is_for_driver(record))
        root.addHandler(printer)


def _is_for_driver(record: logging.LogRecord) -> bool:
    # The channel's own warnings would return to it in an endless loop.
    is_of_channel = record.name.startswith("mirrorspark.training.protocol.messages.")
    return record.levelno >= logging.WARNING and not is_of_channel


class LogToDriver(logging.Handler):
    """A handler that sends warnings and errors to the driver as events; harmless ones only with ``verbose``."""

    def __init__(
        self, events: EventClient, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._events = events
        self._verbose = verbose
        # Apart from that of printed lines, so that many of those cannot crowd out a warning.
        self._budget = LineBudget(clock)
        self.addFilter(_is_for_driver)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record if the budget admits it."""
        try:
            text = without_credentials(record.getMessage())
        except Exception:  # A malformed record must not end a training.
            self.handleError(record)
            return
        if not self._verbose and record.levelno == logging.WARNING and _HARMLESS.match(text):
            return
        if (admitted := self._budget.admit(text)) is not None:
            self._events.send({"event": "log", "level": record.levelname, "message": admitted[:LOG_CHARACTERS]})
