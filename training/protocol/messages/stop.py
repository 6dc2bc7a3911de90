"""The request that a training stop, on the driver and in a worker."""

import time

# Time in which a stop is noticed between two attempts.
_NAP_SECONDS = 0.2


class StopSignal:
    """A request to stop a training, on the driver or in a worker. Any thread or signal handler may make it repeatedly.

    A signal handler interrupts the main thread anywhere, even while that holds a lock. So this class has plain
    attributes and no lock: ``Event.set`` could wait for ever for the ``Event.wait`` that it interrupts. A signal that
    arrives right before a long sleep is handled after it, so sleeps are short.

    Attributes:
        reason: Reason to stop after a checkpoint; None without a request. In a worker it is ``driver`` for a request of
            the driver, or ``preempted`` for a machine that is taken away.
        is_urgent: Stop without a checkpoint. Only a driver does.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.is_urgent = False

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason counts."""
        self.reason = self.reason or reason

    def request_now(self, reason: str) -> None:
        """Ask for a stop at once, without a checkpoint."""
        self.is_urgent = True
        self.request(reason)

    def is_set(self) -> bool:
        """True if a stop has been requested."""
        return self.reason is not None

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or soon after a stop has been requested."""
        end = time.monotonic() + seconds
        while self.reason is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_SECONDS))
