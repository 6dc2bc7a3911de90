"""Summaries of a rank's stacks; the whole text is in the events file. Pure."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+),? in (?P<function>.+?)\s*$')
_THREAD = re.compile(r"^\s*(?:Current thread|Thread)\b")
# faulthandler begins with the innermost frame, the traceback module ends with it.
_INNERMOST_FIRST = "most recent call first"

_LIBRARY = re.compile(r"(?:/site-packages/|/dist-packages/|/lib(?:64)?/python\d|^<)")
# The folder of this project on a rank's host: every rank has threads of these modules.
_OUR_ROOT = re.compile(r'^\s*File "(?P<root>(?:[^"]*/)?)training/(?:executor|protocol)/\w+\.py"', re.MULTILINE)
# Our folders: our own threads mostly wait, which is not news.
_OURS = ("callbacks/", "data_pipelines/", "training/")


@dataclass(frozen=True)
class Frame:
    """One call; ``is_ours`` is True for code of this project."""

    file: str
    line: int
    function: str
    is_ours: bool = False

    def __str__(self) -> str:
        return f"{self.function} ({PurePosixPath(self.file).name}:{self.line})"

    @property
    def is_library(self) -> bool:
        """True for code of Python or of an installed package."""
        return _LIBRARY.search(self.file) is not None

    @property
    def is_users(self) -> bool:
        """True for the user's own code."""
        return not self.is_library and not self.is_ours


def parse_threads(text: str) -> list[tuple[Frame, ...]]:
    """Return the frames of every thread in a dump of stacks, the innermost first."""
    root = _OUR_ROOT.search(text)
    ours = tuple(f"{root['root']}{folder}" for folder in _OURS) if root else ()
    threads: list[list[Frame]] = []
    is_innermost_first = _INNERMOST_FIRST in text
    for line in text.splitlines():
        if _THREAD.match(line):
            threads.append([])
        elif (found := _FRAME.match(line)) is not None:
            if not threads:
                threads.append([])
            is_ours = found["file"].startswith(ours)
            threads[-1].append(Frame(found["file"], int(found["line"]), found["function"], is_ours))
    return [tuple(frames if is_innermost_first else reversed(frames)) for frames in threads if frames]


def summarize_stacks(text: str, limit: int = 2) -> list[str]:
    """Return a line for the main thread and for each thread in the user's own code, ``limit`` lines at most.

    ``text`` has all stacks, as ``faulthandler`` or ``traceback`` writes them.
    """
    threads = parse_threads(text)
    if not threads:
        return []
    # Only the main thread's outermost frame is a module.
    main = next((frames for frames in threads if frames[-1].function == "<module>"), threads[-1])
    others = [frames for frames in threads if frames is not main and any(frame.is_users for frame in frames)]
    return [_describe(frames) for frames in (main, *others)][:limit]


def _describe(frames: tuple[Frame, ...]) -> str:
    """Return the innermost call, and for a library's call its caller outside the library."""
    innermost = frames[0]
    caller = next((frame for frame in frames if frame.is_users), None) or next(
        (frame for frame in frames if not frame.is_library), innermost
    )
    return str(innermost) if caller == innermost else f"{innermost} < {caller}"
