"""What the driver reads of a store of checkpoints, which may take its time, fail for a while, or hang for ever."""

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from callbacks.checkpoint_store import STORE_ERRORS
from callbacks.commit import CheckpointDamagedError
from training.channel.events import Event
from training.supervision.running_attempt import StopSignal

# How soon a stop is noticed while the store is read, and how long the store may still take to answer then.
_NAP_SECONDS = 0.2
_LAST_ANSWER_SECONDS = 10.0

# A store that takes longer than this is spoken of.
_SLOW_STORE_SECONDS = 10.0

# A store that fails when a finished training is delivered is asked again for so long, with so much time in between.
_RETRY_SECONDS, _RETRY_PAUSE_SECONDS = 300.0, 5.0

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Beat = Callable[[], None]


class StoppedReading(Exception):  # noqa: N818 - no error: somebody asked for it
    """A stop was asked for while the store was read, and nobody waits for its answer any more."""


@dataclass(frozen=True)
class StoreReader:
    """Reads in threads of its own, one after the other, so that whoever waits for an answer can leave.

    Attributes:
        limit_seconds: A store that gives nothing for so long counts as gone.
        stop: Whether the run is to stop.
        tell: Gets the event ``waiting`` for a slow store; does not raise.
        clock: Returns seconds; monotonic.
    """

    limit_seconds: float
    stop: StopSignal
    tell: Callable[[Event], None]
    clock: Callable[[], float] = time.monotonic
    _reading: threading.Lock = field(default_factory=threading.Lock, init=False)

    def read(self, store: str, read: Callable[[Beat], Answer]) -> Answer:
        """Return what ``read`` does; a store may take its time, or hang for ever.

        Args:
            store: Its location.
            read: Is given what to call whenever something has come from the store.

        Raises:
            TimeoutError: Nothing has come for as long as a checkpoint may take.
            StoppedReading: Somebody asked for a stop, and the store has not answered soon.
        """
        begin = moved = asked = self.clock()
        has_told = False

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
                if not has_told and now - begin > _SLOW_STORE_SECONDS:
                    has_told = True
                    self.tell({"event": "waiting", "store": store})
            return answer.result()
        finally:
            answer.cancel()  # if it has not begun; what hangs cannot be ended

    def read_with_retries(
        self, store: str, read: Callable[[Beat], Answer], *, retry_seconds: float = _RETRY_SECONDS
    ) -> Answer:
        """Return what ``read`` does once the training has ended, where a store that fails is asked again.

        Args:
            store: Its location.
            read: Is given what to call whenever something has come from the store.
            retry_seconds: How long it may fail.

        Raises:
            CheckpointDamagedError: Nothing whole has been found for so long.
            OSError: The store has failed for so long, or hangs.
            StorageError: It cannot be opened.
        """
        end = self.clock() + retry_seconds
        has_told = False
        while True:
            try:
                return self.read(store, read)
            except StoppedReading:
                raise TimeoutError(f"{store} did not answer before the run was stopped") from None
            except (*STORE_ERRORS, CheckpointDamagedError) as error:
                if self.clock() + _RETRY_PAUSE_SECONDS > end or self.stop.reason is not None:
                    raise
                if not has_told:
                    has_told = True
                    logger.warning(
                        "the store of checkpoints is asked for %g s, again and again: %s", retry_seconds, error
                    )
            self.stop.wait(_RETRY_PAUSE_SECONDS)

    def _in_turn(self, read: Callable[[], Answer]) -> "concurrent.futures.Future[Answer]":
        """Begin to read in a thread of its own, once all that was begun before is over.

        What hung may still put up the fence of an attempt that was given up, and must not do so after the next one's.
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
