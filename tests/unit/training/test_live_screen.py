"""Content of a terminal after all that was written to it (H9)."""

import io
import os
import pty
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from mirrorspark.training.run_records.live.drawing import bar
from mirrorspark.training.run_records.live.screen import TerminalScreen, can_draw

_SEQUENCE = re.compile(r"\x1b\[([\d;]*)([AJm])")


def shown(text: str) -> list[str]:
    """Return the lines that a terminal shows: it knows new lines, returns, colours, and two control sequences."""
    lines: list[str] = [""]
    row = column = index = 0
    while index < len(text):
        sequence = _SEQUENCE.match(text, index)
        if sequence is not None and sequence[2] == "A":
            row = max(0, row - int(sequence[1]))
        elif sequence is not None and sequence[2] == "J":
            lines[row:] = [lines[row][:column]]
        elif sequence is not None:
            pass  # a colour
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
    screen = TerminalScreen(Console(file=stream))
    for block in ("bar 1\nrank 0\nrank 1", "bar 2\nrank 0"):
        screen.draw(block)
    assert shown(stream.getvalue()) == ["", "bar 2", "rank 0"]
    screen.draw(None)
    assert shown(stream.getvalue()) == [""]


def test_lines_stay_above_the_block(stream: io.StringIO) -> None:
    screen = TerminalScreen(Console(file=stream))
    screen.draw("bar\nrank 0")
    for line in ("epoch 1", "epoch 2"):
        screen.write(line)
    assert shown(stream.getvalue()) == ["epoch 1", "epoch 2", "", "bar", "rank 0"]


def test_lines_of_other_programs_stay_whole(stream: io.StringIO) -> None:
    screen = TerminalScreen(Console(file=stream))
    screen.draw("bar\nrank 0")
    stream.write("a warning of a library\n")
    screen.draw("bar\nrank 0")
    assert shown(stream.getvalue()) == ["a warning of a library", "", "bar", "rank 0"]


def test_a_bar_in_colour_is_drawn_over_the_one_before_and_leaves_nothing(stream: io.StringIO) -> None:
    console = Console(file=stream, width=80, force_terminal=True, color_system="truecolor")
    screen = TerminalScreen(console)
    for share in (0.25, 0.5):
        screen.draw(bar("convert", 3.0, share, text="5/10 Spark tasks"))
        stream.write("a line of the JVM\n")
    screen.write("  epoch 1")
    lines = [line.rstrip() for line in shown(stream.getvalue())]
    assert lines[:-1] == ["a line of the JVM"] * 2 + ["  epoch 1", ""]
    assert re.fullmatch(r"convert     50% ━{10}\S+ 0:00:03 5/10 Spark tasks", lines[-1])
    screen.draw(None)
    assert shown(stream.getvalue()) == ["a line of the JVM", "a line of the JVM", "  epoch 1", ""]


def test_a_terminal_without_room_for_a_block_gets_its_lines(stream: io.StringIO) -> None:
    screen = TerminalScreen(Console(file=stream, width=20, height=2))
    screen.draw("bar")
    screen.write("epoch 1")
    screen.write("epoch 2")
    assert shown(stream.getvalue()) == ["epoch 1", "epoch 2", ""]


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


def test_a_block_is_cut_to_the_terminal(terminal: tuple[Any, int]) -> None:
    stream, other_end = terminal
    screen = TerminalScreen(Console(file=stream, width=20, height=5))
    screen.draw("x" * 500)
    drawn = os.read(other_end, 10_000).decode().replace("\r\n", "\n")
    assert shown(drawn) == ["", *["x" * 19] * 3]


def test_a_dumb_terminal_and_a_file_are_not_drawn_on(
    terminal: tuple[Any, int], stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw(Console(file=terminal[0]))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI does
    assert not can_draw(Console(file=stream))
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(Console(file=terminal[0]))


def test_a_line_breaks_between_words_and_a_path_stays_whole(stream: io.StringIO) -> None:
    screen = TerminalScreen(Console(file=stream, width=30))
    screen.write("  epoch 1/2  loss 0.3  val_mae 10.3789")
    screen.write("  warm start from /a/path/that/is/longer/than/the/terminal of yesterday's run")
    assert shown(stream.getvalue()) == [
        "  epoch 1/2  loss 0.3",
        "    val_mae 10.3789",
        "  warm start from",
        "    /a/path/that/is/longer/than/the/terminal",
        "    of yesterday's run",
        "",
    ]
