"""Work to do before a process ends, even if it ends without Python's own exit.

The process of a rank is ended from outside, because TensorFlow's threads may hang in it for ever; `finish` is called
before.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

Work = Callable[..., Any]

# Time limit for a server; less than the time that a rank has for all such work (`training.protocol.timing`).
SERVER_SECONDS = 3.0

logger = logging.getLogger(__name__)

_LOCK = threading.Lock()
_WAITING: list[tuple[Work, tuple[Any, ...]]] = []


def register(work: Work, *arguments: Any) -> None:
    """Register ``work`` to be called with the arguments before the process ends, in reverse order of registration."""
    with _LOCK:
        _WAITING.append((work, arguments))
        # Registered again so that it runs first, before the exit handlers of libraries that the work needs.
        atexit.unregister(_finish_in_turn)
        atexit.register(_finish_in_turn)


def unregister(work: Work) -> None:
    """Remove all registrations of ``work``."""
    with _LOCK:
        _WAITING[:] = [entry for entry in _WAITING if entry[0] != work]


def finish(timeout_seconds: float) -> None:
    """Run all registered work, each in its own thread, and return when it is done or the time is over."""
    end = time.monotonic() + timeout_seconds
    threads = [threading.Thread(target=_do, args=entry, name="work before the exit", daemon=True) for entry in _taken()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


def _finish_in_turn() -> None:
    for work, arguments in _taken():
        _do(work, arguments)


def _taken() -> list[tuple[Work, tuple[Any, ...]]]:
    with _LOCK:
        taken = _WAITING[::-1]
        _WAITING.clear()
    return taken


def _do(work: Work, arguments: tuple[Any, ...]) -> None:
    try:
        work(*arguments)
    except Exception:
        logger.exception("work before the end of the process has failed")
