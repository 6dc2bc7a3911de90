"""Connections between the coordinator of a training with parameter servers and its workers and servers.

A TensorFlow server runs until its process is killed, and a coordinator without workers waits for another one for ever.
So every worker and parameter server registers with the coordinator: it reports the address of its TensorFlow server,
the coordinator sends the shutdown, and a broken connection shows a lost process.

Both sides prove that they know the attempt's token without sending it. Messages are bounded lines of JSON.
"""

import contextlib
import json
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from queue import Empty
from typing import Any

from mirrorspark.training.protocol import COORDINATOR, Roles
from mirrorspark.training.protocol.messages import Admissions, handshake
from mirrorspark.training.protocol.ring import RingConnectError, RingError

_MESSAGE_BYTES = 1 << 12
_CONNECT_PAUSE_SECONDS = 0.05
_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 5.0
_MOST_UNPROVEN = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registration:
    """The first message of a worker or parameter server.

    Attributes:
        rank: The sender.
        address: ``host:port`` of its TensorFlow server.
        reader: Name of a worker's `BatchSupply`; empty for a parameter server.
    """

    rank: int
    address: str
    reader: str = ""


@dataclass(frozen=True)
class Shutdown:
    """The coordinator's last message to a worker or parameter server.

    Attributes:
        epochs: Completed epochs of a finished training; None for one that was stopped.
        step: Step of the last checkpoint of a training that was stopped; None for a finished one.
        path: That checkpoint.
    """

    epochs: int | None = None
    step: int | None = None
    path: str = ""


class ClusterConnections:
    """The coordinator's connections to all workers and parameter servers; ``registrations`` holds theirs by rank."""

    def __init__(
        self, roles: Roles, connections: "Mapping[int, _MemberConnection]", registrations: Mapping[int, Registration]
    ) -> None:
        """Monitor authenticated connections; :meth:`accept_all` makes them."""
        self.registrations = dict(registrations)
        self._roles = roles
        self._connections = dict(connections)
        self._stop_reason: str | None = None
        # Guards the fields below, and is notified of every loss.
        self._changed = threading.Condition()
        self._lost: dict[int, str] = {}
        self._is_shut_down = False
        self._monitor = threading.Thread(target=self._receive_all, name="cluster", daemon=True)
        self._monitor.start()

    @classmethod
    def accept_all(cls, address: str, roles: Roles, token: str, timeout_seconds: float) -> "ClusterConnections":
        """Listen on ``address`` until every worker and parameter server has registered.

        Raises:
            RingConnectError: A rank did not register in time.
            OSError: The address cannot be listened on, or this machine has no file descriptors for connections.
            RuntimeError: This machine cannot start a thread for a connection.
        """
        deadline = time.monotonic() + timeout_seconds
        connections: dict[int, _MemberConnection] = {}
        registrations: dict[int, Registration] = {}

        def admit(connected: socket.socket) -> tuple[_MemberConnection, Registration]:
            connection = _MemberConnection(connected)
            registration = connection.accept(token)
            if type(registration.rank) is not int or not 0 < registration.rank < roles.ranks:
                raise ValueError(f"it registers as rank {str(registration.rank)[:40]} of {roles.ranks}")
            return connection, registration

        with Admissions(
            socket.create_server(handshake.split_address(address), backlog=roles.ranks),
            admit,
            "a registration",
            most_unproven=_MOST_UNPROVEN,
            discard=lambda admitted: admitted[0].close(),
        ) as admissions:
            try:
                while len(connections) < roles.ranks - 1:
                    missing = next(rank for rank in range(1, roles.ranks) if rank not in connections)
                    try:
                        connection, registration = admissions.next(max(0.01, deadline - time.monotonic()))
                    except Empty as error:
                        what = f"({roles.of(missing)}) has not connected within {timeout_seconds:g} s"
                        raise RingConnectError(missing, what) from error
                    rank = registration.rank
                    if rank in connections:  # Its first connection broke.
                        connections[rank].close()
                    connections[rank], registrations[rank] = connection, registration
            except BaseException:
                for connection in connections.values():
                    connection.close()
                raise
        return cls(roles, connections, registrations)

    @property
    def cluster(self) -> dict[str, list[str]]:
        """The addresses of the TensorFlow servers of workers and parameter servers, by job."""
        addresses = ["", *(self.registrations[rank].address for rank in range(1, self._roles.ranks))]
        return {job: found for job, found in self._roles.cluster(addresses).items() if job != "chief"}

    @property
    def lost(self) -> tuple[int, ...]:
        """The lost ranks."""
        with self._changed:
            return tuple(self._lost)

    def is_stop_requested(self) -> bool:
        """Return True if a rank was asked to stop, for example because its machine is preempted."""
        return self._stop_reason is not None

    def raise_if_lost(self) -> None:
        """Raise ``RingError`` if a server or the last worker is lost, so that the training cannot go on."""
        with self._changed:
            rank = self._roles.missed(self._lost)
            why = "" if rank is None else self._lost[rank]
        if rank is not None:
            raise RingError(rank, f"({self._roles.of(rank)}) disconnected ({why})")

    def wait_for_loss(self, seconds: float = 2.0) -> None:
        """Do :meth:`raise_if_lost` as it raises: TensorFlow may notice a loss before its connection breaks."""
        with self._changed:
            self._changed.wait_for(lambda: self._roles.missed(self._lost) is not None, seconds)
        self.raise_if_lost()

    def shut_down(self, shutdown: Shutdown) -> None:
        """Send the shutdown to all ranks."""
        with self._changed:
            self._is_shut_down = True
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # The rank is lost.
                connection.send(asdict(shutdown))

    def close(self) -> None:
        """Disconnect; for a rank without a shutdown the coordinator is lost."""
        with self._changed:
            self._is_shut_down = True
        for connection in self._connections.values():
            handshake.hang_up(connection.socket)
        self._monitor.join(_CLOSE_SECONDS)

    def _receive_all(self) -> None:
        selector = selectors.DefaultSelector()
        for rank, connection in self._connections.items():
            selector.register(connection.socket, selectors.EVENT_READ, rank)
        while selector.get_map():
            for key, _ in selector.select():
                why = self._receive(key.data)
                if why is not None:
                    selector.unregister(key.fileobj)
                    self._connections[key.data].close()
                    self._note_loss(key.data, why)
        selector.close()

    def _receive(self, rank: int) -> str | None:
        """Receive a rank's stop request; if the rank is lost, return why."""
        try:
            message = self._connections[rank].receive()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            return str(error)
        self._stop_reason = self._stop_reason or str(message.get("stop"))
        return None

    def _note_loss(self, rank: int, why: str) -> None:
        with self._changed:
            if self._is_shut_down:
                return
            self._lost[rank] = why
            self._changed.notify_all()
            left = self._roles.workers - sum(self._roles.is_dispensable(lost) for lost in self._lost)
        if self._roles.is_dispensable(rank):
            logger.warning("%s (rank %d) disconnected: %d go on", self._roles.of(rank), rank, left)


class CoordinatorConnection:
    """The connection of a worker or parameter server to the coordinator."""

    def __init__(self, connection: "_MemberConnection") -> None:
        """Use an authenticated connection; :meth:`register` makes one."""
        self._connection = connection

    @classmethod
    def register(
        cls, address: str, registration: Registration, token: str, timeout_seconds: float
    ) -> "CoordinatorConnection":
        """Connect to the coordinator, which may not listen yet, and register this rank.

        Raises:
            RingConnectError: The coordinator does not answer, or belongs to another attempt.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            connection: _MemberConnection | None = None
            try:
                connection = _MemberConnection(
                    socket.create_connection(handshake.split_address(address), max(0.01, deadline - time.monotonic()))
                )
                connection.register(registration, token)
                return cls(connection)
            except OSError as error:
                if connection is not None:
                    connection.close()
                if isinstance(error, handshake.TokenMismatchError):
                    what = "answers with another token: it belongs to another attempt"
                    raise RingConnectError(COORDINATOR, what) from error
                if time.monotonic() + _CONNECT_PAUSE_SECONDS > deadline:
                    what = f"(the coordinator) cannot be reached at {address} ({error.strerror or error})"
                    raise RingConnectError(COORDINATOR, what) from error
            time.sleep(_CONNECT_PAUSE_SECONDS)

    def wait_for_shutdown(self, stop_reason: Callable[[], str | None]) -> Shutdown:
        """Wait for the coordinator's shutdown; forward a stop request of this rank meanwhile.

        Raises:
            RingError: The coordinator is lost.
        """
        has_forwarded = False
        try:
            while True:
                if not has_forwarded and (reason := stop_reason()) is not None:
                    has_forwarded = True
                    self._connection.send({"stop": reason})
                if self._connection.is_readable(_POLL_SECONDS):
                    return Shutdown(**self._connection.receive())
        except OSError as error:
            raise RingError(COORDINATOR, f"(the coordinator) disconnected ({error.strerror or error})") from error

    def close(self) -> None:
        """Disconnect; without a shutdown before, this rank is lost to the coordinator."""
        self._connection.close()


class _MemberConnection:
    """One authenticated connection. Each direction is used by one thread at a time."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.settimeout(handshake.HANDSHAKE_SECONDS)
        # Unbuffered, so that `is_readable` can ask the socket.
        self._stream = connected.makefile("rb", buffering=0)

    def register(self, registration: Registration, token: str) -> None:
        """Authenticate to the coordinator, and send the registration."""
        handshake.authenticate_to_server(self.socket, self._stream, token, client="member", server="coordinator")
        self.send(asdict(registration))
        self._end_handshake()

    def accept(self, token: str) -> Registration:
        """Authenticate a rank, and return its registration.

        Raises:
            TokenMismatchError: The client does not know the token.
        """
        handshake.authenticate_client(self.socket, self._stream, token, client="member", server="coordinator")
        registration = Registration(**json.loads(handshake.read_line(self._stream)))
        self._end_handshake()
        return registration

    def send(self, message: Mapping[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def is_readable(self, seconds: float) -> bool:
        """Return True if a message or the end of the connection arrives within ``seconds``."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            ConnectionResetError: The other side closed the connection.
        """
        line = self._stream.readline(_MESSAGE_BYTES)
        if not line:
            raise ConnectionResetError("it closed the connection")
        return dict(json.loads(line))

    def close(self) -> None:
        handshake.hang_up(self.socket)
        self._stream.close()
        self.socket.close()

    def _end_handshake(self) -> None:
        """Allow silence, which is normal from here on; a vanished host is still noticed."""
        self.socket.settimeout(None)
        handshake.keep_alive(self.socket)


def reader_of_all_workers(registrations: Iterable[Registration]) -> str:
    """Return the name under which all workers supply batches; the coordinator's graphs use it on every worker."""
    names = sorted({registration.reader for registration in registrations if registration.reader})
    if len(names) != 1:
        raise RuntimeError(f"workers give batches under the names {names}; they have to run the same program")
    return names[0]
