"""Ctrl-C and SIGTERM for a run on the driver: the first saves and stops, the second stops at once, the third leaves."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from mirrorspark.training.protocol import woken_main_thread

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_stop_signals(request_stop: Callable[[str], None], stop_now: Callable[[], None]) -> Iterator[None]:
    """Let signals stop the block, and restore their handlers afterwards.

    PySpark's own handler for SIGINT cancels every job of the session, so that no worker could save.

    Args:
        request_stop: Called at the first signal with its name. Runs between two bytecodes of the main thread, so it
            must not wait, nor take a lock that the main thread may hold.
        stop_now: Called at the second one; may raise.

    A third signal means not to wait for Spark or a store either: ``KeyboardInterrupt`` leaves the block, and from then
    on a signal ends the process at once.

    Outside the main thread Python has no signal handlers, and this does nothing: the owner of the main thread, a
    notebook's kernel for example, decides the effect of Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal count
        count += 1
        name = signal.Signals(number).name
        if count == 1:
            request_stop(name)
        elif count == 2:
            stop_now()
        else:
            for each in _STOP_SIGNALS:
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt(f"{name}, for the third time")

    # None means a handler that was not set from Python and cannot be restored; the default is set in its place.
    before = {number: signal.signal(number, handle) or signal.SIG_DFL for number in _STOP_SIGNALS}
    try:
        with woken_main_thread(_STOP_SIGNALS):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
