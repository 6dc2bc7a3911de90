"""A bar for calls that wait for Spark or other work: the done part and the time left, in a terminal or a notebook.

In a file, and where output is piped, nothing is written.
"""

import html
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TextIO

from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.spark.job_tasks import CountedWork, SparkTasks, Tasks
from mirrorspark.pages import bar_html, panel_html

_TICK_SECONDS = 0.5
_BAR_COLUMNS = 20

Display = Callable[..., Any]


@contextmanager
def task_bar(spark: SparkSession, name: str) -> Iterator[None]:
    """Show the tasks of a session's jobs while inside.

    Args:
        spark: The session.
        name: A verb for the work, such as ``score``.
    """
    with _shown(name, SparkTasks(spark).at):
        yield


@contextmanager
def work_bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show work of this process or of a child process while inside.

    Args:
        name: A verb for the work.

    Yields:
        The function that takes reports: the work in words, the part that is done, and the total (0 if not counted).
    """
    work = CountedWork(time.monotonic)
    with _shown(name, lambda now: work.tasks):
        yield work.report


@contextmanager
def _shown(name: str, count: Callable[[float], Tasks | None]) -> Iterator[None]:
    """Show the result of ``count``, which gets monotonic seconds, while inside."""
    bar = _bar_here(name)
    if bar is None:
        yield
        return
    begin, done = time.monotonic(), threading.Event()
    ticker = threading.Thread(target=_tick, args=(bar, count, begin, done), name="task-bar", daemon=True)
    # A cell's output belongs to the cell that runs now, in this thread; the ticker's thread updates it.
    with suppress(OSError, ValueError):
        bar.show(0.0, None)
    ticker.start()
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        done.set()
        ticker.join(timeout=5)
        with suppress(OSError, ValueError):
            bar.end(time.monotonic() - begin, has_failed=has_failed)


def notebook_display() -> Display | None:
    """Return IPython's ``display`` in a notebook; None elsewhere, as in the IPython of a terminal."""
    # A package that has not been imported cannot be running this code.
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    shell = get_ipython()
    return display if getattr(shell, "kernel", None) is not None else None


def clock_time(seconds: float) -> str:
    """Return ``0:01:50``."""
    return str(timedelta(seconds=int(seconds)))


class Bar(Protocol):
    """Shows the progress of one call."""

    def show(self, seconds: float, tasks: Tasks | None) -> None:
        """Draw the seconds that have passed, and the tasks if there are any."""

    def end(self, seconds: float, *, has_failed: bool) -> None:
        """Draw the end."""


class TerminalBar:
    """A line at the end of a terminal, of which nothing is left at the end.

    The cursor waits on an empty line above it, so that lines of other programs stay whole.
    """

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream

    def show(self, seconds: float, tasks: Tasks | None) -> None:
        """Draw the line over the one before."""
        room = shutil.get_terminal_size().columns - 1
        lines = [f"{self._name:<10} {_in_words(seconds, tasks, drawn=drawn)}" for drawn in (True, False)]
        line = next((line for line in lines if len(line) <= room), lines[-1][:room])
        self._write(f"\r\x1b[J\n{line}\r\x1b[1A")

    def end(self, seconds: float, *, has_failed: bool) -> None:
        """Remove the line."""
        self._write("\r\x1b[J")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class NotebookBar:
    """An output of a notebook's cell, which says at the end how long it took."""

    def __init__(self, name: str, display: Display) -> None:
        self._name = name
        self._display = display
        self._handle: Any = None

    def show(self, seconds: float, tasks: Tasks | None) -> None:
        """Draw the bar in place of the one before."""
        bar = "" if tasks is None else f"{bar_html(tasks.share)} &ensp;"
        self._update("▸", f"{bar}{html.escape(_in_words(seconds, tasks, drawn=False))}")

    def end(self, seconds: float, *, has_failed: bool) -> None:
        """Draw the seconds that it took."""
        words = f"{seconds:.1f} s" + (", did not finish" if has_failed else "")
        self._update('<span class="error">✗</span>' if has_failed else '<span class="good">✓</span>', words)

    def _update(self, sign: str, markup: str) -> None:
        page = panel_html(f"<p>{sign} <b>{html.escape(self._name)}</b> &ensp;{markup}</p>")
        contents = {"text/html": page, "text/plain": f"{self._name} …"}
        if self._handle is None:
            self._handle = self._display(contents, raw=True, display_id=True)
        else:
            self._handle.update(contents, raw=True)


def _bar_here(name: str) -> Bar | None:
    """Return the bar for where this process writes to; None for a file."""
    display = notebook_display()
    if display is not None:
        return NotebookBar(name, display)
    can_draw = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return TerminalBar(name, sys.stderr) if can_draw else None


def _tick(bar: Bar, count: Callable[[float], Tasks | None], begin: float, done: threading.Event) -> None:
    while not done.wait(_TICK_SECONDS):
        now = time.monotonic()
        try:
            bar.show(now - begin, count(now))
        except (OSError, ValueError):  # The terminal is closed; the work goes on without a bar.
            return


def _in_words(seconds: float, tasks: Tasks | None, *, drawn: bool = True) -> str:
    if tasks is None:
        return clock_time(seconds)
    filled = round(_BAR_COLUMNS * tasks.share)
    bar = f" {'━' * filled}{'╌' * (_BAR_COLUMNS - filled)}" if drawn else ""
    left = "" if tasks.seconds_left is None else f", {clock_time(tasks.seconds_left)} left"
    return f"{tasks.share:4.0%}{bar} {clock_time(seconds)}{left}  {tasks.done:,}/{tasks.total:,} {tasks.unit}"
