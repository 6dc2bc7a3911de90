"""The server of the event channel, on the driver; see :mod:`training.protocol.events`."""

import functools
import json
import logging
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mirrorspark.training.protocol.events import (
    FOR_RANKS,
    LINE_BYTES,
    RETAINED,
    Command,
    Event,
    EventAddress,
    Sender,
)
from mirrorspark.training.protocol.handshake import (
    HANDSHAKE_SECONDS,
    RefusalLog,
    TokenMismatchError,
    authenticate_client,
    hang_up,
    notice_silence,
    read_line,
)

# An unauthenticated client holds a thread and a socket. Ranks authenticate within milliseconds, so of too many clients
# the one that has taken longest is disconnected.
_MOST_UNPROVEN = 256
# The ranks' last events may still be in transit when the attempt is over.
_LAST_WORDS_SECONDS = 3.0
# Time for the threads whose connections are closed then, all of them together.
_CLOSE_SECONDS = 5.0
# A receiver that hangs must not hold up the end of the attempt.
_RECEIVER_SECONDS = 5.0

logger = logging.getLogger(__name__)


class EventServer:
    """A server for the ranks' events; ``on_event`` gets them one at a time, in the order of arrival.

    Leaving the context ends it: clients that are still connected have a few seconds to finish, then they are
    disconnected, so that ``on_event`` is never called afterwards.
    """

    def __init__(self, host: str, on_event: Callable[[Event], None], advertised: str | None = None) -> None:
        """Listen on a free port of ``host``; ranks get the address ``advertised`` instead if it is given.

        Raises:
            OSError: ``host`` is not an interface of this machine.
        """
        self._on_event = on_event
        self._turn = threading.Lock()
        # The number of each client's last event. Guarded by _turn.
        self._last: dict[str, int] = {}
        # Set with _turn held, unless the receiver hangs.
        self._is_over = False
        self._token = secrets.token_hex(32)
        self._refusals = RefusalLog(logger, "an event connection")
        # Guards the two fields below, so that a client that connects now still gets retained commands.
        self._commanding = threading.Lock()
        # In the order of arrival.
        self._lines: dict[_Line, None] = {}
        self._retained: dict[tuple[str, int | None], Command] = {}
        receive = self._receive

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                receive(self)

        self._server = _ThreadingServer((host, 0), Handler, _MOST_UNPROVEN)
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
        has_turn = self._turn.acquire(timeout=_RECEIVER_SECONDS)
        self._is_over = True
        if has_turn:
            self._turn.release()

    def command(self, command: Command, rank: int | None = None) -> None:
        """Send a command to all ranks, or one, or their tasks; does not wait for them."""
        with self._commanding:
            if command["command"] in RETAINED:
                self._retained[command["command"], rank] = command
            lines = [line for line in self._lines if line.is_meant(command, rank)]
        for line in lines:
            line.say(command)

    def _receive(self, connection: socketserver.StreamRequestHandler) -> None:
        line: _Line | None = None
        try:
            line = self._let_in(connection)
            while received := connection.rfile.readline(LINE_BYTES):
                number, needs_answer, event = json.loads(received)
                self._publish(line.client, int(number), dict(event))
                if needs_answer:
                    line.say({"acknowledged": number})
        except TokenMismatchError:
            self._refusals.add(connection.client_address[0])
        except (OSError, ValueError, TypeError, KeyError) as error:
            # A rank that dies breaks its connection; its task or Spark reports the death.
            logger.debug("event connection ended: %s", error)
        finally:
            if line is not None:
                with self._commanding:
                    self._lines.pop(line, None)

    def _let_in(self, connection: socketserver.StreamRequestHandler) -> "_Line":
        """Return the connection of an authenticated client.

        Raises:
            TokenMismatchError: The client does not know the token.
        """
        connection.connection.settimeout(HANDSHAKE_SECONDS)
        authenticate_client(connection.connection, connection.rfile, self._token, client="client", server="driver")
        self._server.trust(connection.connection)
        hello = json.loads(read_line(connection.rfile))
        connection.connection.settimeout(None)
        notice_silence(connection.connection)
        line = _Line(connection.connection, str(hello["client"]), int(hello["rank"]), hello["sender"])
        with self._commanding:
            self._lines[line] = None
            retained = [command for (_, rank), command in self._retained.items() if line.is_meant(command, rank)]
        # A concurrent command arrives twice, perhaps followed by an older one; retained commands tolerate both.
        for command in retained:
            line.say(command)
        return line

    def _publish(self, client: str, number: int, event: Event) -> None:
        with self._turn:
            if self._is_over:
                return
            if number <= self._last.get(client, 0):
                return  # It arrived before the connection broke, but its acknowledgement was lost.
            self._last[client] = number
            try:
                self._on_event(event)
            except Exception:
                # Go on after a receiver's error (a full disk, for example): the rank's next event may be its error.
                logger.exception("an event of kind %s could not be handled", event.get("event"))


@dataclass(frozen=True, eq=False)
class _Line:
    """A connection to an authenticated client."""

    connection: socket.socket
    client: str
    rank: int
    sender: Sender
    # Looked up for each connection, so that a simulation can put its own lock in the place of the module's.
    _turn: threading.Lock = field(default_factory=lambda: threading.Lock())

    def is_meant(self, command: Command, rank: int | None) -> bool:
        """Return True if a command to ``rank``, None for all, is for this client."""
        audience = "rank" if command["command"] in FOR_RANKS else "task"
        return self.sender == audience and rank in (None, self.rank)

    def say(self, message: Mapping[str, Any]) -> None:
        """Send without waiting; a client that leaves a whole socket buffer of these short lines unread is disconnected.

        When it is back, it connects again and gets the retained commands.
        """
        line = json.dumps(message).encode() + b"\n"
        with self._turn:
            try:
                if self.connection.send(line, socket.MSG_DONTWAIT) < len(line):
                    hang_up(self.connection)
            except OSError:
                hang_up(self.connection)


class _ThreadingServer(socketserver.ThreadingTCPServer):
    # A cluster's ranks connect within the same second.
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler], most_unproven: int
    ) -> None:
        self._connections: list[tuple[threading.Thread, socket.socket]] = []
        self._most_unproven = most_unproven
        self._proving = threading.Lock()
        # In the order of arrival.
        self._unproven: dict[socket.socket, None] = {}
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle the connection in its own thread; the base class could only join the threads without a time limit."""
        with self._proving:
            self._unproven[request] = None
            surplus = next(iter(self._unproven)) if len(self._unproven) > self._most_unproven else None
        if surplus is not None:
            self.trust(surplus)
            hang_up(surplus)
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        # Listed once it runs: a thread that the machine refuses to start could not be joined.
        thread.start()
        self._connections = [entry for entry in self._connections if entry[0].is_alive()] + [(thread, request)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of a connection that this machine cannot serve now; its client connects again."""
        logger.warning("an event connection from %s could not be served: %s", client_address[0], sys.exception())

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and remove it from the lists."""
        self.trust(request)
        super().shutdown_request(request)

    def trust(self, connection: socket.socket) -> None:
        """Remove ``connection`` from the unauthenticated ones."""
        with self._proving:
            self._unproven.pop(connection, None)

    def end_connections(self, patience_seconds: float) -> None:
        """Wait for the clients to disconnect, then close the rest. To be called once no connection is accepted."""
        deadline = time.monotonic() + patience_seconds
        for thread, _ in self._connections:
            thread.join(max(0.0, deadline - time.monotonic()))
        for thread, connection in self._connections:
            if thread.is_alive():
                hang_up(connection)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread, _ in self._connections:
            thread.join(max(0.0, deadline - time.monotonic()))
