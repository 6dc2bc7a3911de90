"""Where a block is drawn that changes: at the end of a terminal, or in an output of a notebook's cell."""

import io
from typing import Any, Protocol

from rich.console import Console, RenderableType

_CLEAR_BELOW = "\x1b[J"
_CELL_COLUMNS = 140
_CELL = '<pre style="margin: 0; line-height: 1.3; white-space: pre">{code}</pre>'


class Screen(Protocol):
    """Shows a block that changes, below lines that stay."""

    def show(self, block: RenderableType | None) -> None:
        """Draw the block; None removes it."""

    def write(self, line: str) -> None:
        """Add a line that stays; the block is drawn below it again."""


class TerminalScreen:
    """Draws at the end of a terminal.

    Between two drawings the cursor is on an empty line above the block. So the lines that others print meanwhile are
    kept, and the next drawing begins below them. ``rich.live`` leaves it below the block and sees only what Python
    prints: lines of the JVM, of its Python workers and of C libraries would be drawn over.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._block: RenderableType | None = None

    def show(self, block: RenderableType | None) -> None:
        """Draw the block; None removes it."""
        self._block = block
        self._draw("")

    def write(self, line: str) -> None:
        """Add a line that stays."""
        self._draw(f"{line}\n")

    def _draw(self, above: str) -> None:
        console = self._console
        text = f"\r{_CLEAR_BELOW}{above}"
        if self._block is not None:
            with console.capture() as drawn:
                console.print(self._block, width=console.width - 1, highlight=False)
            # A line that wraps, or a block that scrolls, would be beyond the cursor's reach.
            lines = drawn.get().rstrip("\n").split("\n")[: max(0, console.height - 2)]
            if lines:
                text += "\n" + "\n".join(lines) + f"\r\x1b[{len(lines)}A"
        # At once: nothing flickers.
        console.file.write(text)
        console.file.flush()


class NotebookScreen:
    """Draws into one output of the cell, and replaces it: what is saved with the notebook is its last state."""

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
            # The next stage draws below the lines that were written meanwhile.
            self._handle = None

    def write(self, line: str) -> None:
        """Add a line that stays."""
        print(line, file=self._console.file, flush=True)


def can_draw(console: Console) -> bool:
    """Whether the console is looked at by somebody whose terminal moves its cursor."""
    # Not ``console.is_terminal``: FORCE_COLOR makes a terminal of a file there.
    return console.is_jupyter or (console.file.isatty() and not console.is_dumb_terminal)


def _as_html(block: RenderableType) -> str:
    recorder = Console(
        file=io.StringIO(), record=True, width=_CELL_COLUMNS, force_jupyter=False, color_system="truecolor"
    )
    recorder.print(block, highlight=False)
    return recorder.export_html(inline_styles=True, code_format=_CELL)
