"""The base of this package's own errors: a notebook shows their message and the caller's lines."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

_PACKAGE = __name__.partition(".")[0]
# The mode of IPython's tracebacks in which nothing is folded.
_WHOLE = "Verbose"
# All that some program takes for a line break, with the blanks around it.
_BREAK = r"\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029"
_BREAKS = re.compile(rf"\s*[{_BREAK}]+\s*")
# Other characters that a terminal obeys, or that turn the direction of a text.
_CONTROL = r"\x00-\x08\x0e-\x1b\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_CONTROLS = re.compile(f"[{_CONTROL}]")
BREAKS_AND_CONTROLS = re.compile(f"[{_BREAK}{_CONTROL}]")
_FOLDED = f"(The frames inside {_PACKAGE} are folded; %xmode Verbose, then %tb, shows them.)"


def visible(text: str) -> str:
    """Return a text in which control characters are written as Python writes them; line breaks and tabs stay."""
    return escaped(text, _CONTROLS)


def escaped(text: str, characters: "re.Pattern[str]" = BREAKS_AND_CONTROLS) -> str:
    """Return a text in which some characters, line breaks and controls by default, are written as Python does."""
    return characters.sub(lambda found: ascii(found[0])[1:-1], text)


def one_visible_line(text: str) -> str:
    """Return a text in one line, with control characters as Python writes them."""
    return visible(_BREAKS.sub(" ", text).strip())


class ClearError(Exception):
    """An error whose message says what failed, which value, and what to do, so that no stack is needed to read it.

    The message is one line, whatever the names and values in it. Subclasses have a built-in error as their second base.
    Scripts, logs and tests see the whole stack.
    """

    def __str__(self) -> str:
        return one_visible_line(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows for this error, by the hook that it offers to exceptions."""
        from IPython import get_ipython  # only IPython calls this

        shell = get_ipython()
        view, callers = shell.InteractiveTB, _callers(self.__traceback__)
        if callers is None or view.mode == _WHOLE:
            lines: list[str] = view.structured_traceback(type(self), self, self.__traceback__)
            return lines
        with _without_cause(self):
            return [*view.structured_traceback(type(self), self, callers), _FOLDED]


class OtherPySparkError(ClearError, ImportError):
    """Another PySpark is imported in the place of the installed one."""


def _callers(stack: TracebackType | None) -> TracebackType | None:
    """Return the frames before the first one of this package; None if it has none, or nothing called it."""
    frames: list[TracebackType] = []
    while stack is not None and not _is_own(stack):
        frames.append(stack)
        stack = stack.tb_next
    if stack is None:
        return None
    found: TracebackType | None = None
    for frame in reversed(frames):
        found = TracebackType(found, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return found


def _is_own(stack: TracebackType) -> bool:
    return str(stack.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == _PACKAGE


@contextmanager
def _without_cause(error: BaseException) -> Iterator[None]:
    """Hide the errors that led to this one, whose frames are inside the package, too."""
    cause, context, is_suppressed = error.__cause__, error.__context__, error.__suppress_context__
    error.__cause__ = error.__context__ = None
    try:
        yield
    finally:
        error.__cause__, error.__context__ = cause, context
        error.__suppress_context__ = is_suppressed  # setting the cause sets this, too
