"""Signals that the main thread handles although it waits, and another thread has received them."""

import contextlib
import signal
import socket
import threading
from collections.abc import Collection, Iterator

# By default it is ignored, and nothing in Spark, TensorFlow or Jupyter uses it.
_WAKING = signal.SIGURG

# More than once, since the thread may just be about to wait.
_WAKING_TIMES = 5
_WAKING_EVERY_SECONDS = 0.1


@contextlib.contextmanager
def woken_main_thread(numbers: Collection[signal.Signals]) -> Iterator[None]:
    """Wake the main thread for these signals while the block runs in it.

    Python runs their handlers in the main thread, but the system delivers a signal to any thread: of two in quick
    succession often both to another one. A main thread that waits for a lock or a socket, as it does for a Spark job,
    would handle them only after its wait. So a helper thread learns of each signal and interrupts that wait.

    In other threads this does nothing.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    has_ended = threading.Event()

    def interrupt_waits() -> None:
        while number := reader.recv(1):
            if number[0] not in numbers:
                continue
            for _ in range(_WAKING_TIMES):
                if has_ended.is_set():
                    return
                signal.pthread_kill(main.ident or 0, _WAKING)
                has_ended.wait(_WAKING_EVERY_SECONDS)

    handler_before = signal.signal(_WAKING, lambda *_: None) or signal.SIG_DFL
    # Python writes the numbers of all signals to it, in whichever thread they arrive.
    descriptor_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=interrupt_waits, name="waking the main thread", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor_before)
        has_ended.set()
        writer.close()
        thread.join()
        reader.close()
        signal.signal(_WAKING, handler_before)
