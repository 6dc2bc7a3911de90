"""The channel from the ranks to the driver: JSON lines over TCP, opened only to who knows the run's token.

The driver listens on one interface (loopback for a local session, the driver's own address for a cluster). A rank
proves that it knows the token without sending it (HMAC of a nonce), then sends events one way. Nothing is unpickled.
A slow or absent driver never blocks training: events wait in a bounded queue, and progress is dropped when it is full.
"""

import contextlib
import functools
import hmac
import json
import logging
import secrets
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NONCE_BYTES = 32
_LINE_BYTES = 1 << 20
_QUEUE_LENGTH = 1000
_HANDSHAKE_SECONDS = 10.0
# What ranks sent last may still be on its way when the attempt is over.
_LAST_WORDS_SECONDS = 3.0

# Events that may be lost: the next one says the same and more.
DROPPABLE = frozenset({"progress", "validation"})

logger = logging.getLogger(__name__)

Event = dict[str, Any]


@dataclass(frozen=True)
class EventAddress:
    """Where the driver listens, and the secret that opens the channel."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        """Leave the token out: this lands in logs."""
        return f"EventAddress({self.host}:{self.port})"


class EventServer:
    """Listens for the ranks' events; ``on_event`` gets them one at a time, in the order of arrival.

    Leaving the context ends it: who is still connected has a few seconds to finish, then the line is cut, so that
    ``on_event`` is never called afterwards.
    """

    def __init__(self, host: str, on_event: Callable[[Event], None], advertised: str | None = None) -> None:
        """Start to listen on a free port of ``host``; ranks are told ``advertised`` where that is another name for it.

        Raises:
            OSError: ``host`` is no interface of this machine.
        """
        self._on_event = on_event
        self._turn = threading.Lock()
        self._token = secrets.token_hex(32)
        receive = self._receive

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                receive(self)

        self._server = _ThreadingServer((host, 0), Handler)
        self.address = EventAddress(advertised or host, self._server.server_address[1], self._token)
        listen = functools.partial(self._server.serve_forever, poll_interval=0.05)
        self._thread = threading.Thread(target=listen, name="events", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EventServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(timeout=10)
        self._server.end_connections(_LAST_WORDS_SECONDS)
        self._server.server_close()

    def _receive(self, connection: socketserver.StreamRequestHandler) -> None:
        try:
            connection.connection.settimeout(_HANDSHAKE_SECONDS)
            nonce = secrets.token_hex(_NONCE_BYTES)
            connection.wfile.write(nonce.encode() + b"\n")
            answer = connection.rfile.readline(_LINE_BYTES).strip().decode("ascii", "replace")
            if not hmac.compare_digest(answer.encode(), _proof(self._token, nonce).encode()):
                logger.warning("refused an event connection from %s: wrong token", connection.client_address[0])
                return
            connection.connection.settimeout(None)
            while line := connection.rfile.readline(_LINE_BYTES):
                self._publish(json.loads(line))
        except (OSError, ValueError) as error:
            # A rank that dies cuts its line; the launcher learns of the death from Spark.
            logger.debug("event connection ended: %s", error)

    def _publish(self, event: Event) -> None:
        try:
            with self._turn:
                self._on_event(event)
        except Exception:
            # Whatever a receiver stumbles over (a full disk, say), the rank's next event may be the error that counts.
            logger.exception("an event of kind %s could not be handled", event.get("event"))


class EventClient:
    """Sends events from one rank; never raises, and only :meth:`close` waits."""

    def __init__(self, address: EventAddress, rank: int, attempt: int) -> None:
        self._address = address
        self._stamp = {"rank": rank, "attempt": attempt}
        # Guards what follows; the sending thread waits on it for something to send.
        self._changed = threading.Condition()
        self._waiting: deque[Event] = deque()
        self._is_closed = False
        self._is_lost = False
        self._has_dropped = False
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._thread.start()

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event; when the queue is full, the oldest progress makes room, or else the event is dropped."""
        stamped = {**event, **self._stamp, "time": time.time()}
        with self._changed:
            if self._is_closed or self._is_lost:
                return
            is_first_drop = False
            if len(self._waiting) >= _QUEUE_LENGTH:
                is_first_drop, self._has_dropped = not self._has_dropped, True
                self._make_room()
            if len(self._waiting) < _QUEUE_LENGTH:
                self._waiting.append(stamped)
                self._changed.notify()
        if is_first_drop:  # outside the lock: a logging handler may send
            logger.warning("the driver at %s does not read events; some are dropped", self._address)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what is queued, for at most ``timeout_seconds``."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _make_room(self) -> None:
        oldest = next((event for event in self._waiting if event.get("event") in DROPPABLE), None)
        if oldest is not None:
            self._waiting.remove(oldest)

    def _work(self) -> None:
        try:
            address = (self._address.host, self._address.port)
            with (
                socket.create_connection(address, _HANDSHAKE_SECONDS) as connection,
                connection.makefile("rwb") as stream,
            ):
                nonce = stream.readline(_LINE_BYTES).strip().decode("ascii", "replace")
                stream.write(_proof(self._address.token, nonce).encode() + b"\n")
                stream.flush()
                while (event := self._next()) is not None:
                    # A value that JSON does not know travels as text: better than an event that does not arrive.
                    stream.write(json.dumps(event, default=str).encode() + b"\n")
                    stream.flush()
        except OSError as error:
            with self._changed:
                self._is_lost = True
                self._waiting.clear()
            logger.warning("lost the event channel to the driver at %s: %s", self._address, error)

    def _next(self) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._waiting.popleft() if self._waiting else None


class _ThreadingServer(socketserver.ThreadingTCPServer):
    # A cluster's ranks connect within the same second.
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler]) -> None:
        self._connections: list[tuple[threading.Thread, socket.socket]] = []
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle the connection in a thread of its own; the base class could end them without a time limit only."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections = [entry for entry in self._connections if entry[0].is_alive()] + [(thread, request)]
        thread.start()

    def end_connections(self, patience_seconds: float) -> None:
        """Wait for the other side to hang up, then do it. For when no connection is accepted any more."""
        deadline = time.monotonic() + patience_seconds
        for thread, _ in self._connections:
            thread.join(max(0.0, deadline - time.monotonic()))
        for thread, connection in self._connections:
            if thread.is_alive():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                thread.join(timeout=5)


def _proof(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()
