"""A child process that owns TensorFlow: its start, its plan, its answer, and its end with its parent.

The plan goes through standard input, because it may hold a secret and arguments and environment are public on a host.
The pipe stays open: its end means that the parent has ended, and the child exits. Standard output carries only the
answer.
"""

import codecs
import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Any, Protocol

from mirrorspark.storage import out_of_memory, without_credentials

EXIT_ABANDONED = 3

_MORE_MEMORY = "stop other programs on this machine, or use one with more memory; then the same command goes on"


class OnProgress(Protocol):
    """Gets a process's activity in words, the amount done and the total, which is 0 if nothing is counted."""

    def __call__(self, doing: str, done: int = 0, total: int = 0, /) -> None:
        """Take a report."""


# Longest part of a line, or of a log message, that is sent to the driver.
LOG_CHARACTERS = 2000

_LAST_LINES = 40
_READ_BYTES = 1 << 16
# Longer text without a line end is cut, so that it cannot fill the memory.
_LINE_CHARACTERS = 1 << 16
_POLL_MILLISECONDS = 50

# Variables of the environment that are set unless the user has set them.
DEFAULT_VARIABLES = {
    # GNU OpenMP's threads, which gradient boosting uses, spin a million times by default while they wait: next to other
    # work, a fit then takes twice as long. This few spins cost nothing on a quiet machine; with none, a fit takes five
    # times as long there.
    "GOMP_SPINCOUNT": "10000",
    # Large tensors in huge pages where the kernel leaves the choice to programs: steps take a tenth less.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# A loop that prints every step must not crowd out the events that matter, nor fill the driver's file.
_BURST_LINES = 50
_LINES_PER_SECOND = 10.0


def tensorflow_environment(threads: int, *, verbose: bool) -> dict[str, str]:
    """Return the environment of a process that will load TensorFlow.

    TensorFlow reads its thread counts once, when it starts; Spark sets only ``OMP_NUM_THREADS``, which it ignores.
    """
    return (
        DEFAULT_VARIABLES
        | os.environ
        | {
            "TF_USE_LEGACY_KERAS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "0" if verbose else "3",
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_NUM_INTEROP_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            # Packages that Spark shipped are on this process's path, but not on that of a new process.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
    )


def start(module: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start ``python -m module`` with pipes to all its streams."""
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def send(process: subprocess.Popen[str], plan: str) -> None:
    """Send the plan, one line, and leave the pipe open."""
    assert process.stdin is not None  # noqa: S101 - start() made the pipe
    try:
        process.stdin.write(plan + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        # The process died before it could read, and its end shows why. close() must not fail on the unsent rest again.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def answer(process: subprocess.Popen[str], on_progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Return the last JSON line that a process prints; ``on_progress`` gets those of :func:`progress_reporter`."""
    assert process.stdout is not None  # noqa: S101 - start() made the pipe
    last: dict[str, Any] = {}
    for line in process.stdout:
        document = json.loads(line)
        if "doing" in document:
            on_progress(document["doing"], document["done"], document["total"])
        else:
            last = document
    return last


def progress_reporter(stream: IO[str]) -> OnProgress:
    """Return, in the child, the function that reports its work on the stream of its answer."""

    def report(doing: str, done: int = 0, total: int = 0) -> None:
        print(json.dumps({"doing": doing, "done": done, "total": total}), file=stream, flush=True)

    return report


def why_it_failed(status: int, tail: "Tail") -> str:
    """Return why a process has ended with a status other than 0: the signal, the last line of its output, the remedy.

    Args:
        status: Its exit status, negative for a signal.
        tail: Its standard error.
    """
    text = tail.text().strip()
    last = text.splitlines()[-1].strip() if text else ""
    if status >= 0:
        is_memory, words = out_of_memory.is_reported_in(last), last or f"status {status}"
    else:
        # Nobody else kills it, and C++ aborts a process that gets no memory. The last line does not explain a kill.
        is_memory = -status == signal.SIGKILL or out_of_memory.is_reported_in(text)
        words = out_of_memory.killed_by(status) + (f" ({last})" if last and -status != signal.SIGKILL else "")
    return f"{words}: memory has run out; {_MORE_MEMORY}" if is_memory else words


def end(process: subprocess.Popen[str], tail: "Tail") -> None:
    """End a process in any state, with the tail of its standard error."""
    process.kill()  # Does nothing to a process that has ended.
    process.wait()
    tail.close()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class LineBudget:
    """A limit for the lines of one process that go to the driver: a burst, then a few per second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a full burst."""
        self._clock = clock
        self._lines = float(_BURST_LINES)
        self._at = clock()
        self._left_out = 0

    def admit(self, line: str) -> str | None:
        """Return the line, with the number of lines left out before it; None if it is left out itself."""
        now = self._clock()
        self._lines = min(self._lines + (now - self._at) * _LINES_PER_SECOND, _BURST_LINES)
        self._at = now
        if self._lines < 1:
            self._left_out += 1
            return None
        self._lines -= 1
        left_out, self._left_out = self._left_out, 0
        return f"({left_out} lines left out) {line}" if left_out else line


class Tail:
    """A background reader of a stream, to its end, that keeps its last lines. Secrets are removed from its output."""

    def __init__(
        self, stream: IO[str] | None, *, echo: bool, prefix: str = "", on_line: Callable[[str], None] | None = None
    ) -> None:
        """Start to read.

        Args:
            stream: The stream; it has no other reader.
            echo: Copy every line to standard error.
            prefix: Beginning of an echoed line.
            on_line: Gets every line without its line end, in a thread of the tail.
        """
        assert stream is not None  # noqa: S101 - start() made the pipe
        self._echo = echo
        self._prefix = prefix
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._is_closing = threading.Event()
        # A separate descriptor: the stream may be closed while an unknown process still holds the other end.
        self._reader = threading.Thread(target=self._read, args=(os.dup(stream.fileno()),), name="tail", daemon=True)
        self._reader.start()

    def text(self) -> str:
        """Return the last lines; to be called when the process has ended."""
        self.close()
        # Secrets are removed from the whole text, since one may have several lines.
        return without_credentials("".join(f"{line}\n" for line in self._lines))

    def close(self) -> None:
        """Read the available rest, even if a child of the process keeps the stream open."""
        self._is_closing.set()
        self._reader.join(timeout=5)

    def _read(self, file: int) -> None:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
        ready = select.poll()
        ready.register(file, select.POLLIN)
        rest = ""
        data = None
        while data != b"":
            is_closing = self._is_closing.is_set()
            if not ready.poll(0 if is_closing else _POLL_MILLISECONDS):
                if is_closing:
                    break
                continue
            data = os.read(file, _READ_BYTES)
            *lines, rest = (rest + decoder.decode(data, final=not data)).split("\n")
            if len(rest) > _LINE_CHARACTERS:
                lines, rest = [*lines, rest], ""
            for line in lines:
                self._take(line)
        if rest:
            self._take(rest)
        os.close(file)

    def _take(self, line: str) -> None:
        self._lines.append(line)
        if not self._echo and self._on_line is None:
            return
        shown = without_credentials(line)
        if self._echo:
            # A closed standard error must not stop the reader, and with it the process that writes.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{self._prefix}{shown}\n")
        if self._on_line is not None:
            self._on_line(shown)


def take_over(prepare: Callable[[], None] = lambda: None) -> tuple[str, IO[str]]:
    """Return, in the child, the plan and the stream for the answer; from then on, exit when the parent does.

    Args:
        prepare: Called before the plan is waited for.
    """
    # Nothing else may write to the stream of the answer, libraries in C included.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    prepare()
    plan = sys.stdin.readline()
    if not plan:  # The parent has exited without sending one.
        os._exit(EXIT_ABANDONED)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    return plan, answer


def _leave_with_the_parent() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.read()
    os._exit(EXIT_ABANDONED)
