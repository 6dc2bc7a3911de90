"""The client of the event channel, in a rank or its task; see :mod:`training.protocol.messages.events`."""

import itertools
import json
import logging
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from mirrorspark.training.protocol.messages import folder_stream
from mirrorspark.training.protocol.messages.events import DROPPABLE, LINE_BYTES, Command, Event, EventAddress, Sender
from mirrorspark.training.protocol.messages.handshake import (
    HANDSHAKE_SECONDS,
    TokenMismatchError,
    authenticate_to_server,
    hang_up,
    notice_silence,
)

_QUEUE_LENGTH = 1000
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# The texts of an event whose line would be too long are cut to this length.
_SHORT_TEXT = 4000

logger = logging.getLogger(__name__)


class EventClient:
    """A sender of events from one rank or its task; it never raises, and only :meth:`close` waits."""

    def __init__(
        self,
        address: EventAddress,
        rank: int,
        attempt: int,
        *,
        on_command: Callable[[Command], None] | None = None,
        sender: Sender = "rank",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start to connect.

        Args:
            address: Address of the driver's event server.
            rank: Added to every event.
            attempt: Added to every event.
            on_command: Gets the driver's commands to this sender, one at a time, in a thread of the client.
            sender: ``task`` marks every event with ``from``.
            clock: Returns seconds; monotonic.
        """
        self._address = address
        self._stamp = {"rank": rank, "attempt": attempt} | ({"from": sender} if sender != "rank" else {})
        self._hello = {"client": secrets.token_hex(8), "sender": sender}
        self._on_command = on_command
        self._numbers = itertools.count(1)
        self._clock = clock
        self._last_message_at = clock()
        # Guards the fields below; the sending thread waits on it for events.
        self._changed = threading.Condition()
        self._waiting: deque[_Message] = deque()
        self._unacknowledged: deque[_Message] = deque()
        self._connection: socket.socket | None = None
        self._is_closed = False
        self._is_over = False
        self._has_dropped = False
        self._has_reported_loss = False
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._thread.start()

    @property
    def silent_seconds(self) -> float:
        """Seconds since the driver's last message, or since the start if there was none."""
        return self._clock() - self._last_message_at

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event; if the queue is full, the oldest progress event is dropped, or else this event."""
        stamped = {**event, **self._stamp, "time": time.time()}
        with self._changed:
            if self._is_closed or self._is_over:
                return
            is_first_drop = False
            if self._is_full():
                is_first_drop, self._has_dropped = not self._has_dropped, True
                self._make_room(stamped.get("event"))
            if not self._is_full():
                self._waiting.append(_Message(next(self._numbers), stamped))
                self._changed.notify_all()
        if is_first_drop:  # Outside the lock, since a logging handler may send an event.
            logger.warning("the driver at %s does not read events; some are dropped", self._address)

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until the driver has all events so far; return False if it has not after ``timeout_seconds``."""

        def is_done() -> bool:
            return self._is_over or not (self._waiting or self._unacknowledged)

        with self._changed:
            return self._changed.wait_for(is_done, timeout_seconds) and not self._is_over

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send the queued events and wait until the driver has them, for at most ``timeout_seconds``."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            if self._connection is not None:  # Wakes the threads that wait on it.
                hang_up(self._connection)

    def _is_full(self) -> bool:
        return len(self._waiting) + len(self._unacknowledged) >= _QUEUE_LENGTH

    def _make_room(self, kind: object) -> None:
        oldest = next((message for message in self._waiting if message.is_droppable), None)
        if oldest is not None:
            self._waiting.remove(oldest)
        elif kind != "log":  # Many log lines must not keep an error from being sent.
            # First those that have been sent: they are kept only in case the connection breaks.
            for messages in (self._unacknowledged, self._waiting):
                oldest_log = next((message for message in messages if message.event.get("event") == "log"), None)
                if oldest_log is not None:
                    messages.remove(oldest_log)
                    return

    def _work(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            was_closed = self._is_closed
            try:
                if self._converse():
                    return
                pause = _FIRST_PAUSE_SECONDS
                error: Exception = ConnectionResetError("the line was cut")
            except TokenMismatchError as refusal:
                self._end()
                what = f"{refusal}; this is not the driver of this run"
                logger.warning("lost the event channel to the driver at %s: %s", self._address, what)
                return
            except (OSError, RuntimeError) as failure:  # RuntimeError: the machine has no thread left.
                error = failure
            if not self._has_reported_loss:
                self._has_reported_loss = True
                logger.warning("lost the event channel to the driver at %s, will try again: %s", self._address, error)
            with self._changed:
                # `close` waits for queued events, but not for a driver that is out of reach.
                if was_closed or self._is_over:
                    break
                self._changed.wait_for(lambda: self._is_closed or self._is_over, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        self._end()

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._waiting.clear()
            self._unacknowledged.clear()

    def _converse(self) -> bool:
        """Connect, send and listen until the connection ends; return True if everything has been sent.

        Raises:
            TokenMismatchError: One side does not know the token, and nothing is sent to the other.
            OSError: The driver cannot be reached, or the connection broke.
            RuntimeError: The machine has no thread left.
        """
        with (
            self._connected() as connection,
            connection.makefile("rb") as stream,
        ):
            authenticate_to_server(connection, stream, self._address.token, client="client", server="driver")
            self._last_message_at = self._clock()
            connection.sendall(json.dumps(self._hello).encode() + b"\n")
            connection.settimeout(None)
            if self._address.folder is None:
                notice_silence(connection)
            is_cut = threading.Event()
            with self._changed:
                if self._is_over:
                    return True
                self._connection = connection
                self._waiting.extendleft(reversed(self._unacknowledged))
                self._unacknowledged.clear()
            listener = threading.Thread(target=self._listen, args=(stream, is_cut), name="event answers", daemon=True)
            listener.start()
            try:
                while (message := self._next(is_cut)) is not None:
                    connection.sendall(message.line())
                if not is_cut.is_set():
                    # The driver reads to the end and then disconnects. If this side closed with unread data, the system
                    # would reset the connection and lose events that the driver has not read.
                    connection.shutdown(socket.SHUT_WR)
                    is_cut.wait()
            finally:
                hang_up(connection)
                listener.join()
                with self._changed:
                    self._connection = None
            with self._changed:
                return self._is_over or (self._is_closed and not self._waiting and not self._unacknowledged)

    def _connected(self) -> socket.socket:
        if self._address.folder is not None:
            return folder_stream.connect(self._address)
        return socket.create_connection((self._address.host, self._address.port), HANDSHAKE_SECONDS)

    def _listen(self, stream: BinaryIO, is_cut: threading.Event) -> None:
        try:
            while line := stream.readline(LINE_BYTES):
                message = json.loads(line)
                self._last_message_at = self._clock()
                if "acknowledged" in message:
                    self._forget(int(message["acknowledged"]))
                elif self._on_command is not None:
                    self._on_command(message)
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            logger.debug("the driver's line ended: %s", error)
        finally:
            is_cut.set()
            with self._changed:
                self._changed.notify_all()

    def _forget(self, number: int) -> None:
        with self._changed:
            while self._unacknowledged and self._unacknowledged[0].number <= number:
                self._unacknowledged.popleft()
            self._changed.notify_all()

    def _next(self, is_cut: threading.Event) -> "_Message | None":
        """Return the next event to send; None if the connection is broken, or everything is sent and acknowledged."""

        def is_to_wake() -> bool:
            is_done = self._is_closed and not self._unacknowledged
            return bool(self._waiting) or is_done or self._is_over or is_cut.is_set()

        with self._changed:
            self._changed.wait_for(is_to_wake)
            if self._is_over or is_cut.is_set() or not self._waiting:
                return None
            message = self._waiting.popleft()
            if not message.is_droppable:
                self._unacknowledged.append(message)
            return message


@dataclass(frozen=True)
class _Message:
    """An event and its number among those of its client."""

    number: int
    event: Event

    @property
    def is_droppable(self) -> bool:
        return self.event.get("event") in DROPPABLE

    def line(self) -> bytes:
        """Return the event as a line; if it is too long, its long values are cut or left out."""
        line = self._encode(self.event)
        if len(line) <= LINE_BYTES:
            return line
        short = {key: value[:_SHORT_TEXT] if isinstance(value, str) else value for key, value in self.event.items()}
        fitting = {key: value for key, value in short.items() if len(str(value)) <= _SHORT_TEXT}
        return self._encode({**fitting, "is_shortened": True})

    def _encode(self, event: Event) -> bytes:
        try:
            # A value that JSON does not support is sent as text, so that the event arrives.
            text = json.dumps([self.number, not self.is_droppable, event], default=str)
        except (TypeError, ValueError):  # A key that is not text, or a value that contains itself.
            plain = {
                str(key): value if isinstance(value, str | int | float | None) else str(value)
                for key, value in event.items()
            }
            text = json.dumps([self.number, not self.is_droppable, plain])
        return text.encode() + b"\n"
