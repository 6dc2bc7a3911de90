"""The server of the event channel, on the driver; see :mod:`training.protocol.messages.events`."""

import json
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mirrorspark.training.protocol.messages.admissions import Admissions
from mirrorspark.training.protocol.messages.events import (
    FOR_RANKS,
    LINE_BYTES,
    RETAINED,
    Command,
    Event,
    EventAddress,
    OddLineError,
    Sender,
    event_of,
)
from mirrorspark.training.protocol.messages.handshake import (
    HANDSHAKE_SECONDS,
    authenticate_client,
    hang_up,
    notice_silence,
    read_line,
)

# A cluster's ranks connect within the same second.
_MOST_UNPROVEN = 256
# The ranks' last events may still be in transit when the attempt is over.
_LAST_WORDS_SECONDS = 3.0
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
        # Guards the two fields below, so that a client that connects now still gets retained commands.
        self._commanding = threading.Lock()
        # In the order of arrival.
        self._clients: dict[_ClientConnection, None] = {}
        self._retained: dict[str, Command] = {}
        listener = socket.create_server((host, 0), backlog=_MOST_UNPROVEN)
        self._admissions: Admissions[None] = Admissions(
            listener, self._receive, "an event connection", most_unproven=_MOST_UNPROVEN
        )
        self.address = EventAddress(advertised or host, self._admissions.port, self._token)

    def __enter__(self) -> "EventServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._admissions.end(_LAST_WORDS_SECONDS)
        has_turn = self._turn.acquire(timeout=_RECEIVER_SECONDS)
        self._is_over = True
        if has_turn:
            self._turn.release()

    def command(self, command: Command) -> None:
        """Send a command to all ranks, or to their tasks; does not wait for them."""
        with self._commanding:
            if command["command"] in RETAINED:
                self._retained[command["command"]] = command
            clients = [client for client in self._clients if client.is_addressed_by(command)]
        for client in clients:
            client.send(command)

    def _receive(self, connection: socket.socket) -> None:
        client: _ClientConnection | None = None
        try:
            # A rank that dies breaks its connection; its task or Spark reports the death.
            with connection, connection.makefile("rb") as stream:
                client = self._admit(connection, stream)
                while received := stream.readline(LINE_BYTES):
                    number, needs_answer, event = event_of(received)
                    self._publish(client.client_id, number, event)
                    if needs_answer:
                        client.send({"acknowledged": number})
        except OddLineError as error:
            # Only this connection ends, and the events before the line count. The client sends the line again over the
            # next connection.
            logger.warning("%s; its connection was closed", error)
        finally:
            if client is not None:
                with self._commanding:
                    self._clients.pop(client, None)

    def _admit(self, connection: socket.socket, stream: BinaryIO) -> "_ClientConnection":
        """Return the connection of an authenticated client.

        Raises:
            TokenMismatchError: The client does not know the token.
        """
        connection.settimeout(HANDSHAKE_SECONDS)
        authenticate_client(connection, stream, self._token, client="client", server="driver")
        self._admissions.trust(connection)
        hello = json.loads(read_line(stream))
        connection.settimeout(None)
        notice_silence(connection)
        client = _ClientConnection(connection, str(hello["client"]), hello["sender"])
        with self._commanding:
            self._clients[client] = None
            retained = [command for command in self._retained.values() if client.is_addressed_by(command)]
        # A concurrent command arrives twice, perhaps followed by an older one; retained commands tolerate both.
        for command in retained:
            client.send(command)
        return client

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
class _ClientConnection:
    """A connection to an authenticated client."""

    connection: socket.socket
    client_id: str
    sender: Sender
    # Looked up for each connection, so that a simulation can put its own lock in the place of the module's.
    _turn: threading.Lock = field(default_factory=lambda: threading.Lock())

    def is_addressed_by(self, command: Command) -> bool:
        """Return True if the command is for clients of this kind."""
        return self.sender == ("rank" if command["command"] in FOR_RANKS else "task")

    def send(self, message: Mapping[str, Any]) -> None:
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
