"""The few frames of a rank's stacks that tell what it is doing; the whole text is in the events file. Pure."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+),? in (?P<function>.+?)\s*$')
_THREAD = re.compile(r"^\s*(?:Current thread|Thread)\b")
# faulthandler begins with the innermost frame, the traceback module ends with it.
_INNERMOST_FIRST = "most recent call first"

_LIBRARY = re.compile(r"(?:/site-packages/|/dist-packages/|/lib(?:64)?/python\d|^<)")
# Where this project lies on the host of a rank: threads of these modules are in every rank.
_OUR_ROOT = re.compile(r'^\s*File "(?P<root>(?:[^"]*/)?)training/(?:channel|ranks)/\w+\.py"', re.MULTILINE)
# Its folders there: its threads wait for most of their lives, and that tells nothing.
_OURS = ("callbacks/", "data_pipelines/", "training/")


@dataclass(frozen=True)
class Frame:
    """One call.

    Attributes:
        file: As its host names it.
        line: From 1.
        function: What was called.
        is_ours: Whether this project holds it.
    """

    file: str
    line: int
    function: str
    is_ours: bool = False

    def __str__(self) -> str:
        return f"{self.function} ({PurePosixPath(self.file).name}:{self.line})"

    @property
    def is_library(self) -> bool:
        """Whether Python or an installed package holds it."""
        return _LIBRARY.search(self.file) is not None

    @property
    def is_users(self) -> bool:
        """Whether neither a library nor this project holds it."""
        return not self.is_library and not self.is_ours


def threads_of(text: str) -> list[tuple[Frame, ...]]:
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


def telling_frames(text: str, limit: int = 2) -> list[str]:
    """Return what the threads that matter are doing, a line each: the main thread, and those in the user's own code.

    Args:
        text: All stacks, as ``faulthandler`` or ``traceback`` writes them.
        limit: Lines at the most.
    """
    threads = threads_of(text)
    if not threads:
        return []
    # The main thread's outermost call is that of a module; no other one's is.
    main = next((frames for frames in threads if frames[-1].function == "<module>"), threads[-1])
    others = [frames for frames in threads if frames is not main and any(frame.is_users for frame in frames)]
    return [_described(frames) for frames in (main, *others)][:limit]


def _described(frames: tuple[Frame, ...]) -> str:
    """Return the innermost call, and from where one that a library made was called."""
    innermost = frames[0]
    # A wait within a library is told best by who asked for it.
    caller = next((frame for frame in frames if frame.is_users), None) or next(
        (frame for frame in frames if not frame.is_library), innermost
    )
    return str(innermost) if caller == innermost else f"{innermost} < {caller}"
