"""What Ctrl-C and SIGTERM mean for a run on the driver: first to save and stop, then to stop at once, then to leave."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_stop_signals(request_stop: Callable[[str], None], stop_now: Callable[[], None]) -> Iterator[None]:
    """While the block runs, let signals stop it; afterwards they mean what they meant before.

    PySpark has a handler of its own for SIGINT, which cancels every job of the session: no rank could save.

    Args:
        request_stop: Called at the first signal with its name. Runs between two bytecodes of the main thread, so it
            must not wait, nor take a lock that the main thread may hold.
        stop_now: Called at the second one; may raise.

    Who asks a third time does not want to wait for Spark or a store either: ``KeyboardInterrupt`` leaves the block, and
    from then on a signal ends the process, wherever that stands.

    Outside the main thread Python has no signal handlers, and this does nothing: whoever owns the main thread, a
    notebook's kernel say, decides what Ctrl-C means.
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

    # None stands for a handler that was not set from Python, which cannot be put back; the default can.
    before = {number: signal.signal(number, handle) or signal.SIG_DFL for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
