"""Text for people at a terminal: broken between words, where the terminal itself would break it anywhere."""

import re
import shutil
import textwrap
from typing import TextIO

from mirrorspark.clear_error import visible

EXIT_INTERRUPTED = 130
"""Exit status of a command that Ctrl-C has ended, as shells count it: 128 and the number of the signal."""


_NO_BREAK = "\x00"


def is_interrupt(error: BaseException | None, handled: BaseException | None = None) -> bool:
    """Return True if Ctrl-C has led to an error: py4j may raise one of its own in the place of the interrupt.

    Args:
        error: The error.
        handled: An earlier one, which the caller handles already and which has not led to this one.
    """
    while error is not None and error is not handled:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def for_stream(text: str, stream: TextIO) -> str:
    """Return the text as ``stream`` gets it: broken to a terminal's width, with control characters written out."""
    text = visible(text)
    return wrapped(text, shutil.get_terminal_size().columns) if stream.isatty() else text


def wrapped(text: str, width: int) -> str:
    """Return the text broken between words; lines keep their indentation, and continuation lines have two more.

    A word that is longer than a line, as a path may be, stays whole, to be copied.
    """
    return "\n".join(line if len(line) <= width else _broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    # A number stays with its name where lines are rows of both, two blanks apart.
    kept = re.sub(r"(?<=  )(\w+) (?=[\d.,]+(?:  |$))", rf"\1{_NO_BREAK}", line)
    broken = textwrap.fill(kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return broken.replace(_NO_BREAK, " ")
