"""Periodic calls from a separate thread."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

logger = logging.getLogger(__name__)

Every = Callable[[float, Callable[[], None]], AbstractContextManager[None]]


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` every ``seconds`` from a separate thread while the block runs."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            try:
                action()
            except Exception:
                # After an error in one round the ranks still need the next: without leases they would end.
                logger.exception("a round of supervision failed")

    thread = threading.Thread(target=work, name=f"supervision-{action.__name__}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
