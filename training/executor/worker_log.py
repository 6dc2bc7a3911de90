"""The output and the log of a worker: without secrets, and to the driver within a budget."""

import io
import logging
import re
from collections.abc import Mapping
from typing import Any

from mirrorspark.storage.credentials import clean, without_credentials
from mirrorspark.training.executor.child_process import LOG_CHARACTERS, LineBudget, marked_as_sent
from mirrorspark.training.protocol.event_client import EventClient

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
        stream = open(file, "wb", closefd=False)  # noqa: SIM115 - open as long as the process
        super().__init__(stream, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Write the text without the secrets in it."""
        super().write(without_credentials(text))
        return len(text)


def let_the_log_out(events: EventClient, *, verbose: bool) -> None:
    """Send the log to the driver: warnings and errors, with ``verbose`` INFO too, which is then also printed."""
    root = logging.getLogger()
    root.addHandler(LogToDriver(events, logging.INFO if verbose else logging.WARNING))
    if verbose:
        root.setLevel(logging.INFO)
        printer = logging.StreamHandler()
        printer.setFormatter(_PrintedFormatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(printer)


class LogToDriver(logging.Handler):
    """A handler that sends log records to the driver as events."""

    def __init__(self, events: EventClient, level: int) -> None:
        super().__init__(level)
        self._events = events
        # Warnings have their own budget, so that many lines of INFO cannot crowd them out.
        self._budgets = {is_warning: LineBudget() for is_warning in (False, True)}

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record if the budget admits it."""
        # The channel's own warnings would return to it in an endless loop.
        if record.name.startswith("mirrorspark.training.protocol.event_"):
            return
        try:
            text: str | None = without_credentials(record.getMessage())
        except Exception:  # A malformed record must not end a training.
            self.handleError(record)
            return
        if record.levelno == logging.WARNING and self.level >= logging.WARNING and _HARMLESS.match(text or ""):
            return
        text = self._budgets[record.levelno >= logging.WARNING].admit(text or "")
        if text is not None:
            self._events.send({"event": "log", "level": record.levelname, "message": text[:LOG_CHARACTERS]})


class _PrintedFormatter(logging.Formatter):
    """A formatter that marks its lines: the task shows them, and only :class:`LogToDriver` sends them to the driver."""

    def format(self, record: logging.LogRecord) -> str:
        return marked_as_sent(super().format(record))
