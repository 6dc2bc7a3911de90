"""Screens: where the picture of a run is drawn: here the end of a terminal, in ``notebook.py`` a cell."""

from typing import Protocol

from rich.console import Console, RenderableType

from mirrorspark.storage import terminal_text
from mirrorspark.training.run_records.live import drawing
from mirrorspark.training.run_records.live.picture import Picture

_CLEAR_BELOW = "\x1b[J"


class Screen(Protocol):
    """Shows a picture that changes, and lines that stay.

    Attributes:
        shows_history: The picture includes the stages and epochs that are over, so that they need no lines.
    """

    shows_history: bool

    def show(self, picture: Picture) -> None:
        """Draw the picture in place of the one before."""

    def write(self, line: str) -> None:
        """Add a permanent line."""


class TerminalScreen:
    """Draws at the end of a terminal.

    Between two drawings the cursor is on an empty line above the block, so that lines of other programs stay, and the
    next drawing begins below them. ``rich.live`` leaves the cursor below the block and captures only Python's output:
    lines of the JVM, its Python workers and C libraries would be overwritten.
    """

    shows_history = False

    def __init__(self, console: Console) -> None:
        self._console = console
        self._block: RenderableType | None = None

    def show(self, picture: Picture) -> None:
        """Draw the running stage; without one nothing is left of it."""
        self.draw(drawing.block(picture))

    def draw(self, block: RenderableType | None) -> None:
        """Draw a block; None removes it."""
        self._block = block
        self._draw("")

    def write(self, line: str) -> None:
        """Add a permanent line above the block."""
        self._draw(f"{terminal_text.wrapped(line, self._console.width)}\n")

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


def can_draw(console: Console) -> bool:
    """Return True for a terminal that can move its cursor."""
    # Not ``console.is_terminal``, which is True for a file with FORCE_COLOR.
    return console.file.isatty() and not console.is_dumb_terminal
