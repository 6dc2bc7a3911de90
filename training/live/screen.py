"""Screens for a block that changes: the end of a terminal, or an output of a notebook's cell."""

import io
from typing import Any, Protocol

from rich.console import Console, RenderableType

_CLEAR_BELOW = "\x1b[J"
_CELL_COLUMNS = 140
_CELL = '<pre style="margin: 0; line-height: 1.3; white-space: pre">{code}</pre>'


class Screen(Protocol):
    """Shows a changing block below permanent lines."""

    def show(self, block: RenderableType | None) -> None:
        """Draw the block; None removes it."""

    def write(self, line: str) -> None:
        """Add a permanent line; the block is redrawn below it."""


class TerminalScreen:
    """Draws at the end of a terminal.

    Between two drawings the cursor is on an empty line above the block, so that lines of other programs stay, and the
    next drawing begins below them. ``rich.live`` leaves the cursor below the block and captures only Python's output:
    lines of the JVM, its Python workers and C libraries would be overwritten.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._block: RenderableType | None = None

    def show(self, block: RenderableType | None) -> None:
        """Draw the block; None removes it."""
        self._block = block
        self._draw("")

    def write(self, line: str) -> None:
        """Add a permanent line."""
        self._draw(f"{line}\n")

    def _draw(self, above: str) -> None:
        console = self._console
        text = f"\r{_CLEAR_BELOW}{above}"
        if self._block is not None:
            with console.capture() as drawn:
                console.print(self._block, width=console.width - 1, highlight=False)
            # The cursor could not return over a wrapped line or a scrolled block.
            lines = drawn.get().rstrip("\n").split("\n")[: max(0, console.height - 2)]
            if lines:
                text += "\n" + "\n".join(lines) + f"\r\x1b[{len(lines)}A"
        # In one write, against flicker.
        console.file.write(text)
        console.file.flush()


class NotebookScreen:
    """Draws into one output of the cell and replaces it; the notebook is saved with the last state."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._handle: Any = None

    def show(self, block: RenderableType | None) -> None:
        """Draw the block; None removes it."""
        from IPython.display import HTML, display

        page = HTML("" if block is None else _as_html(block))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)
        if block is None:
            # The next stage draws below the lines that were written since.
            self._handle = None

    def write(self, line: str) -> None:
        """Add a permanent line."""
        print(line, file=self._console.file, flush=True)


def can_draw(console: Console) -> bool:
    """Return True for a notebook, and for a terminal that can move its cursor."""
    # Not ``console.is_terminal``, which is True for a file with FORCE_COLOR.
    return console.is_jupyter or (console.file.isatty() and not console.is_dumb_terminal)


def _as_html(block: RenderableType) -> str:
    recorder = Console(
        file=io.StringIO(), record=True, width=_CELL_COLUMNS, force_jupyter=False, color_system="truecolor"
    )
    recorder.print(block, highlight=False)
    return recorder.export_html(inline_styles=True, code_format=_CELL)
