"""The driver's reads of a store of checkpoints, which may be slow, fail for a while, or hang for ever."""

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from mirrorspark.callbacks.checkpoints import CheckpointDamagedError, checkpoint_store
from mirrorspark.training.protocol.messages import Event, StopSignal

# Time in which a stop is noticed during a read, and the time that the store may then still take to answer.
_NAP_SECONDS = 0.2
_LAST_ANSWER_SECONDS = 10.0

# A read that takes longer than this is reported.
_SLOW_STORE_SECONDS = 10.0

# Total time of the retries, and the pause between two, when the store fails after a finished training.
_RETRY_SECONDS, _RETRY_PAUSE_SECONDS = 300.0, 5.0

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Beat = Callable[[], None]


class StoppedReading(Exception):  # noqa: N818 - a requested stop is not an error
    """A stop was requested during a read of the store, and its answer is no longer awaited."""


@dataclass(frozen=True)
class StoreReader:
    """A reader that works in its own threads, one read after the other, so that callers can stop waiting.

    Attributes:
        limit_seconds: A store that sends nothing for this time counts as gone.
        stop: Request that the run stop.
        on_event: Gets the event ``waiting`` for a slow store; does not raise.
        clock: Returns seconds; monotonic.
    """

    limit_seconds: float
    stop: StopSignal
    on_event: Callable[[Event], None]
    clock: Callable[[], float] = time.monotonic
    _reading: threading.Lock = field(default_factory=threading.Lock, init=False)

    def read(self, store: str, read: Callable[[Beat], Answer]) -> Answer:
        """Return the result of ``read``, even if the store is slow; give up when it hangs.

        Args:
            store: Its location.
            read: The read; it calls its argument whenever data has arrived from the store.

        Raises:
            TimeoutError: No data has arrived for as long as a checkpoint may take.
            StoppedReading: A stop was requested, and the store has not answered soon.
        """
        begin = moved = asked = self.clock()
        is_reported = False

        def beat() -> None:
            nonlocal moved
            moved = self.clock()

        answer = self._in_turn(lambda: read(beat))
        try:
            while not concurrent.futures.wait((answer,), _NAP_SECONDS).done:
                now = self.clock()
                if self.stop.reason is None:
                    asked = now
                if self.stop.is_urgent or now - asked > _LAST_ANSWER_SECONDS:
                    raise StoppedReading
                if now - moved > self.limit_seconds:
                    raise TimeoutError(
                        f"{store} has not answered for {now - moved:.0f} s; make the store available again"
                    )
                if not is_reported and now - begin > _SLOW_STORE_SECONDS:
                    is_reported = True
                    self.on_event({"event": "waiting", "store": store})
            return answer.result()
        finally:
            answer.cancel()  # Only a read that has not begun; a hanging read cannot be ended.

    def read_with_retries(
        self, store: str, read: Callable[[Beat], Answer], *, retry_seconds: float = _RETRY_SECONDS
    ) -> Answer:
        """Return the result of ``read`` after the training has ended; a store that fails is retried.

        Args:
            store: Its location.
            read: The read; it calls its argument whenever data has arrived from the store.
            retry_seconds: Total time of the retries.

        Raises:
            CheckpointDamagedError: No whole checkpoint has been found within this time.
            OSError: The store has failed for all of this time, or hangs.
            StorageError: It cannot be opened.
        """
        end = self.clock() + retry_seconds
        is_reported = False
        while True:
            try:
                return self.read(store, read)
            except StoppedReading:
                raise TimeoutError(f"{store} did not answer before the run was stopped") from None
            except (*checkpoint_store.STORE_ERRORS, CheckpointDamagedError) as error:
                if self.clock() + _RETRY_PAUSE_SECONDS > end or self.stop.reason is not None:
                    raise
                if not is_reported:
                    is_reported = True
                    logger.warning("the read of the store of checkpoints is retried for %g s: %s", retry_seconds, error)
            self.stop.wait(_RETRY_PAUSE_SECONDS)

    def _in_turn(self, read: Callable[[], Answer]) -> "concurrent.futures.Future[Answer]":
        """Read in a new thread, after all earlier reads have ended.

        A read that hung may still put up the fence of an abandoned attempt, which must not follow the next one's fence.
        """
        answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()

        def work() -> None:
            with self._reading:
                if not answer.set_running_or_notify_cancel():
                    return
                try:
                    answer.set_result(read())
                except BaseException as error:
                    answer.set_exception(error)

        threading.Thread(target=work, name="reading the store", daemon=True).start()
        return answer
