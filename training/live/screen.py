"""Where live lines are drawn: a block at the end of a terminal, or an output of a notebook's cell."""

import html
import os
import sys
from typing import Any, Protocol, TextIO

_CLEAR_BELOW = "\x1b[J"


class Screen(Protocol):
    """Shows a block of lines that changes, below lines that stay."""

    def show(self, lines: list[str]) -> None:
        """Draw the block; no lines remove it."""

    def write(self, line: str) -> None:
        """Add a line that stays; the block is drawn below it again."""

    @property
    def columns(self) -> int | None:
        """Characters of a line; None without a limit."""


class TerminalScreen:
    """Draws with the few control sequences that every terminal knows.

    Between two drawings the cursor stands on an empty line above the block. So what others print meanwhile stays whole,
    and the next drawing begins below it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._block: list[str] = []

    @property
    def columns(self) -> int | None:
        """Characters of a line; None where the stream is no terminal."""
        size = _size(self._stream)
        return None if size is None else size.columns - 1

    def show(self, lines: list[str]) -> None:
        """Draw the block; no lines remove it."""
        self._block = lines
        self._stream.write("\r" + _CLEAR_BELOW + self._drawn())
        self._stream.flush()

    def write(self, line: str) -> None:
        """Add a line that stays."""
        self._stream.write(f"\r{_CLEAR_BELOW}{line}\n{self._drawn()}")
        self._stream.flush()

    def _drawn(self) -> str:
        size = _size(self._stream)
        lines = self._block
        if size is not None:
            # A line that wraps, or a block that scrolls, would be beyond the cursor's reach.
            lines = [line[: size.columns - 1] for line in lines][: max(0, size.lines - 2)]
        if not lines:
            return ""
        return "\n" + "\n".join(lines) + f"\r\x1b[{len(lines)}A"


class NotebookScreen:
    """Draws into one output of the cell, and replaces it: what is saved with the notebook is its last state."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._handle: Any = None

    @property
    def columns(self) -> int | None:
        """None: a cell's output scrolls."""
        return None

    def show(self, lines: list[str]) -> None:
        """Draw the block; no lines remove it."""
        from IPython.display import HTML, display

        style = "margin: 0; line-height: 1.3; white-space: pre"
        page = HTML(f'<pre style="{style}">{html.escape(chr(10).join(lines))}</pre>' if lines else "")
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)
        if not lines:
            # The next stage draws below the lines that were written meanwhile.
            self._handle = None

    def write(self, line: str) -> None:
        """Add a line that stays."""
        print(line, file=self._stream, flush=True)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    return bool(shell and shell.get_ipython() and "IPKernelApp" in shell.get_ipython().config)


def can_draw(stream: TextIO) -> bool:
    """Whether what is written to the stream is looked at, by somebody whose terminal moves its cursor."""
    # A variable of the terminal, not of the run.
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def _size(stream: TextIO) -> os.terminal_size | None:
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return None
    # A terminal that was never told its size says 0.
    return os.terminal_size((size.columns or 80, size.lines or 24))
