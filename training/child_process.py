"""How a process that owns TensorFlow is started, told what to do, asked for its answer, and ended with its parent.

The plan goes through standard input, because it may hold a secret and arguments and environment are public on a host.
The pipe stays open: when it ends, the parent is gone, and the child leaves. Standard output carries the answer alone.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from typing import IO

EXIT_ABANDONED = 3
_LAST_LINES = 40


def tensorflow_environment(threads: int, *, verbose: bool) -> dict[str, str]:
    """Return the environment of a process that will load TensorFlow.

    TensorFlow reads its thread counts once, when it starts; Spark sets ``OMP_NUM_THREADS`` only, which it ignores.
    """
    return os.environ | {
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "0" if verbose else "3",
        "TF_NUM_INTRAOP_THREADS": str(threads),
        "TF_NUM_INTEROP_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        # Packages that Spark shipped are on this process's path, not on a new one's.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


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


def tell(process: subprocess.Popen[str], plan: str) -> None:
    """Send the plan, one line, and leave the pipe open."""
    assert process.stdin is not None  # noqa: S101 - start() made the pipe
    try:
        process.stdin.write(plan + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        # It died before it could read; its end tells why. The unsent rest must not come up again in close().
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


class Tail:
    """Reads a stream to its end in the background and keeps its last lines."""

    def __init__(self, stream: IO[str] | None, *, echo: bool) -> None:
        """Start to read; ``echo`` passes every line on to standard error."""
        assert stream is not None  # noqa: S101 - start() made the pipe
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._reader = threading.Thread(target=self._read, args=(stream, echo), daemon=True)
        self._reader.start()

    def text(self) -> str:
        """Return the last lines; to be called when the process has ended."""
        self.close()
        return "".join(self._lines)

    def close(self) -> None:
        """Read what is left of a process that has ended."""
        self._reader.join(timeout=5)

    def _read(self, stream: IO[str], echo: bool) -> None:
        for line in stream:
            self._lines.append(line)
            if echo:
                sys.stderr.write(line)


def take_over() -> tuple[str, IO[str]]:
    """In the child: return the plan and the stream for the answer; from now on, leave when the parent does."""
    # Nothing else may write to the stream of the answer, libraries in C included.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    plan = sys.stdin.readline()
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    return plan, answer


def stay_until_dismissed() -> None:
    """In the child: wait for the end of the pipe, which ends this process."""
    threading.Event().wait()


def _leave_with_the_parent() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.read()
    os._exit(EXIT_ABANDONED)
