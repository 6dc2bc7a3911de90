"""What is to be done before a process ends, also before one that ends without Python's own exit.

The process of a rank is ended from outside, since TensorFlow's threads may hang in it for ever: whoever ends it calls
`finish` before.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

Work = Callable[..., Any]

# How long such work waits for a server; less than a rank has for all of it (`training.supervision.timing`).
SERVER_SECONDS = 3.0

logger = logging.getLogger(__name__)

_LOCK = threading.Lock()
_WAITING: list[tuple[Work, tuple[Any, ...]]] = []


def register(work: Work, *arguments: Any) -> None:
    """Have ``work`` called with the arguments before the process ends; what was registered last is called first."""
    with _LOCK:
        _WAITING.append((work, arguments))
        # Moved to the front of Python's own: libraries that the work needs have put theirs there when imported.
        atexit.unregister(_finish_in_turn)
        atexit.register(_finish_in_turn)


def unregister(work: Work) -> None:
    """Forget what was registered of ``work``."""
    with _LOCK:
        _WAITING[:] = [entry for entry in _WAITING if entry[0] != work]


def finish(timeout_seconds: float) -> None:
    """Do all that waits, each in a thread of its own, and return when it is done or the time is over."""
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
        logger.exception("what was to be done before the process ends has failed")
