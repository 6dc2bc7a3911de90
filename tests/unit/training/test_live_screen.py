"""What a terminal shows after all that was written to it, and what a notebook's cell holds."""

import io
import os
import pty
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from training.live.screen import NotebookScreen, TerminalScreen, can_draw

_SEQUENCE = re.compile(r"\x1b\[(\d*)([AJ])")


def shown(text: str) -> list[str]:
    """Return the lines that a terminal shows: it knows new lines, returns, and two control sequences."""
    lines: list[str] = [""]
    row = column = index = 0
    while index < len(text):
        sequence = _SEQUENCE.match(text, index)
        if sequence is not None and sequence[2] == "A":
            row = max(0, row - int(sequence[1]))
        elif sequence is not None:
            lines[row:] = [lines[row][:column]]
        elif text[index] == "\r":
            column = 0
        elif text[index] == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + text[index] + lines[row][column + 1 :]
            column += 1
        index = sequence.end() if sequence is not None else index + 1
    return lines


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_a_block_is_drawn_over_the_one_before(stream: io.StringIO) -> None:
    screen = TerminalScreen(stream)
    for lines in (["bar 1", "rank 0", "rank 1"], ["bar 2", "rank 0"]):
        screen.show(lines)
    assert shown(stream.getvalue()) == ["", "bar 2", "rank 0"]
    screen.show([])
    assert shown(stream.getvalue()) == [""]


def test_lines_stay_above_the_block(stream: io.StringIO) -> None:
    screen = TerminalScreen(stream)
    screen.show(["bar", "rank 0"])
    for line in ("epoch 1", "epoch 2"):
        screen.write(line)
    assert shown(stream.getvalue()) == ["epoch 1", "epoch 2", "", "bar", "rank 0"]


def test_what_others_print_stays_whole(stream: io.StringIO) -> None:
    screen = TerminalScreen(stream)
    screen.show(["bar", "rank 0"])
    stream.write("a warning of a library\n")
    screen.show(["bar", "rank 0"])
    assert shown(stream.getvalue()) == ["a warning of a library", "", "bar", "rank 0"]


@pytest.fixture
def terminal() -> Iterator[tuple[Any, int]]:
    """Return the stream of a terminal of 20 columns and 5 lines, and the other end of it."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 20, 0, 0))
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours, "rb", buffering=0):
        yield stream, ours


def test_lines_and_blocks_are_cut_to_the_terminal(terminal: tuple[Any, int]) -> None:
    stream, other_end = terminal
    screen = TerminalScreen(stream)
    assert screen.columns == 19
    screen.show(["x" * 50] * 9)
    drawn = os.read(other_end, 10_000).decode().replace("\r\n", "\n")
    assert shown(drawn) == ["", *["x" * 19] * 3]


def test_a_dumb_terminal_and_a_file_are_not_drawn_on(
    terminal: tuple[Any, int], stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw(terminal[0])
    assert not can_draw(stream)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(terminal[0])


class Cell:
    """Stands for a notebook's cell: its outputs by the order in which they were displayed."""

    def __init__(self) -> None:
        self.outputs: list[str] = []

    def display(self, page: Any, display_id: bool) -> Any:
        assert display_id
        self.outputs.append(page)
        cell, place = self, len(self.outputs) - 1

        class Handle:
            def update(self, page: Any) -> None:
                cell.outputs[place] = page

        return Handle()


def test_a_cell_holds_one_output_per_stage_which_is_empty_at_its_end(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell()
    display = ModuleType("IPython.display")
    vars(display).update(display=cell.display, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    screen = NotebookScreen(stream)
    screen.show(["bar 0"])
    screen.show(["bar 1 <ready>", "rank 0"])
    assert len(cell.outputs) == 1
    assert "bar 1 &lt;ready&gt;\nrank 0</pre>" in cell.outputs[0]
    screen.write("epoch 1")
    screen.show([])
    screen.show(["bar 2"])
    assert cell.outputs[0] == ""
    assert "bar 2" in cell.outputs[1]
    assert stream.getvalue() == "epoch 1\n"
