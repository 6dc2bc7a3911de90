"""The channel between the ranks and the driver: JSON lines over TCP, open only to who knows the run's token.

The driver listens on one interface (loopback for a local session, the driver's own address for a cluster). Both sides
prove that they know the token without sending it (HMAC over both sides' nonces): the ranks before they are heard, the
driver before it is told anything or obeyed. Nothing is unpickled. Lines are bounded.

What is promised: sending never waits. An event arrives at most once, a client's events in the order they were sent.
An event that the driver has not acknowledged when the line is cut is sent again over the next one, except those of
:data:`DROPPABLE`, of which the next one says the same and more. A client whose queue is full drops these first.
Commands go to the tasks, ``peers`` alone to the ranks themselves. Those of :data:`_STANDING` reach also who connects
later, or again; the others who is there.
"""

import contextlib
import functools
import itertools
import json
import logging
import secrets
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from training.channel.handshake import is_proof, keep_alive, proof

_NONCE_BYTES = 32
_LINE_BYTES = 1 << 20
_HELLO_BYTES = 1 << 12
_QUEUE_LENGTH = 1000
_HANDSHAKE_SECONDS = 10.0
# Who connects, and does not prove that it knows the token, holds a thread and a socket. Ranks take milliseconds for it,
# so of too many the one that has taken longest is cut off.
_MOST_UNPROVEN = 256
# What ranks sent last may still be on its way when the attempt is over.
_LAST_WORDS_SECONDS = 3.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# What was sent is to be taken in as soon as a host that vanished without a word is noticed.
_TAKEN_IN_MILLISECONDS = 25_000
# Text of an event whose line would be too long is cut to this.
_SHORT_TEXT = 4000

# Events that may be lost: the next one says the same and more.
DROPPABLE = frozenset({"progress", "validation", "alive", "system"})

# Commands that who connects later, or again, must learn of. Of each the last one counts.
_STANDING = frozenset({"stop", "abort", "peers"})
# Commands for the ranks themselves: what they wait for need not pass through their tasks.
_FOR_RANKS = frozenset({"peers"})

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Command = dict[str, Any]
Sender = Literal["rank", "task"]


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
        # Per client the number of its last event. Guarded by _turn.
        self._last: dict[str, int] = {}
        self._token = secrets.token_hex(32)
        # Guards the two below, so that nobody misses a standing command between his arrival and the next.
        self._commanding = threading.Lock()
        self._lines: set[_Line] = set()
        self._standing: dict[tuple[str, int | None], Command] = {}
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

    def command(self, command: Command, rank: int | None = None) -> None:
        """Tell all ranks, or one, what to do, or their tasks; does not wait for them."""
        with self._commanding:
            if command["command"] in _STANDING:
                self._standing[command["command"], rank] = command
            lines = [line for line in self._lines if line.is_meant(command, rank)]
        for line in lines:
            line.say(command)

    def _receive(self, connection: socketserver.StreamRequestHandler) -> None:
        line: _Line | None = None
        try:
            line = self._let_in(connection)
            if line is None:
                return
            while received := connection.rfile.readline(_LINE_BYTES):
                number, needs_answer, event = json.loads(received)
                self._publish(line.client, int(number), dict(event))
                if needs_answer:
                    line.say({"acknowledged": number})
        except (OSError, ValueError, TypeError, KeyError) as error:
            # A rank that dies cuts its line; its task or Spark tells of the death.
            logger.debug("event connection ended: %s", error)
        finally:
            if line is not None:
                with self._commanding:
                    self._lines.discard(line)

    def _let_in(self, connection: socketserver.StreamRequestHandler) -> "_Line | None":
        """Return who is on the line, or None for somebody who does not know the token."""
        connection.connection.settimeout(_HANDSHAKE_SECONDS)
        mine = secrets.token_hex(_NONCE_BYTES)
        connection.wfile.write(mine.encode() + b"\n")
        theirs, _, answer = connection.rfile.readline(_HELLO_BYTES).decode("ascii", "replace").strip().partition(" ")
        if not is_proof(answer, self._token, "client", mine, theirs):
            logger.warning("refused an event connection from %s: wrong token", connection.client_address[0])
            connection.wfile.write(b"refused\n")
            return None
        self._server.trust(connection.connection)
        connection.wfile.write(proof(self._token, "driver", theirs, mine).encode() + b"\n")
        hello = json.loads(connection.rfile.readline(_HELLO_BYTES))
        connection.connection.settimeout(None)
        _notice_silence(connection.connection)
        line = _Line(connection.connection, str(hello["client"]), int(hello["rank"]), hello["sender"])
        with self._commanding:
            self._lines.add(line)
            standing = [command for (_, rank), command in self._standing.items() if line.is_meant(command, rank)]
        # A command given meanwhile arrives twice, and perhaps an older one behind it; the standing ones bear both.
        for command in standing:
            line.say(command)
        return line

    def _publish(self, client: str, number: int, event: Event) -> None:
        with self._turn:
            if number <= self._last.get(client, 0):
                return  # came before the line was cut, its acknowledgement did not
            self._last[client] = number
            try:
                self._on_event(event)
            except Exception:
                # Whatever a receiver stumbles over (a full disk, say), the rank's next event may be the error.
                logger.exception("an event of kind %s could not be handled", event.get("event"))


class EventClient:
    """Sends events from one rank or its task; never raises, and only :meth:`close` waits."""

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
            address: Where the driver listens.
            rank: Stamped on every event.
            attempt: Likewise.
            on_command: Gets the driver's commands to this sender, one at a time, in a thread of the client.
            sender: ``task`` marks every event with ``from``.
            clock: Returns seconds; monotonic.
        """
        self._address = address
        self._stamp = {"rank": rank, "attempt": attempt} | ({"from": sender} if sender != "rank" else {})
        self._hello = {"client": secrets.token_hex(8), "rank": rank, "sender": sender}
        self._on_command = on_command
        self._numbers = itertools.count(1)
        self._clock = clock
        self._last_heard = clock()
        # Guards what follows; the sending thread waits on it for something to send.
        self._changed = threading.Condition()
        self._waiting: deque[_Letter] = deque()
        self._unacknowledged: deque[_Letter] = deque()
        self._connection: socket.socket | None = None
        self._is_closed = False
        self._is_over = False
        self._has_dropped = False
        self._has_told_of_loss = False
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._thread.start()

    @property
    def silent_seconds(self) -> float:
        """How long the driver has said nothing; from the start on where it never has."""
        return self._clock() - self._last_heard

    def send(self, event: Mapping[str, Any]) -> None:
        """Queue an event; when the queue is full, the oldest progress makes room, or else the event is dropped."""
        stamped = {**event, **self._stamp, "time": time.time()}
        with self._changed:
            if self._is_closed or self._is_over:
                return
            is_first_drop = False
            if self._is_full():
                is_first_drop, self._has_dropped = not self._has_dropped, True
                self._make_room(stamped.get("event"))
            if not self._is_full():
                self._waiting.append(_Letter(next(self._numbers), stamped))
                self._changed.notify_all()
        if is_first_drop:  # outside the lock: a logging handler may send
            logger.warning("the driver at %s does not read events; some are dropped", self._address)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what is queued and wait until the driver has it, for at most ``timeout_seconds``."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            if self._connection is not None:  # frees the threads that wait on it
                _hang_up(self._connection)

    def _is_full(self) -> bool:
        return len(self._waiting) + len(self._unacknowledged) >= _QUEUE_LENGTH

    def _make_room(self, kind: object) -> None:
        oldest = next((letter for letter in self._waiting if letter.is_droppable), None)
        if oldest is not None:
            self._waiting.remove(oldest)
        elif kind != "log":  # many lines of a log must not keep an error from being told
            # Those that have been sent first: they are kept only for a line that is cut.
            for letters in (self._unacknowledged, self._waiting):
                line = next((letter for letter in letters if letter.event.get("event") == "log"), None)
                if line is not None:
                    letters.remove(line)
                    return

    def _work(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            was_closed = self._is_closed
            try:
                if self._converse():
                    return
                pause = _FIRST_PAUSE_SECONDS
                error: OSError = ConnectionResetError("the line was cut")
            except _RefusedError as refusal:
                self._end()
                logger.warning("lost the event channel to the driver at %s: %s", self._address, refusal)
                return
            except OSError as failure:
                error = failure
            if not self._has_told_of_loss:
                self._has_told_of_loss = True
                logger.warning("lost the event channel to the driver at %s, will try again: %s", self._address, error)
            with self._changed:
                # Who closes waits for what is queued, but not for a driver that is gone.
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
        """Connect, send and listen until the line is cut; return whether everything is said.

        Raises:
            _RefusedError: One side does not know the token; nothing is sent to the other then.
            OSError: The driver cannot be reached, or the line was cut in the middle.
        """
        with (
            socket.create_connection((self._address.host, self._address.port), _HANDSHAKE_SECONDS) as connection,
            connection.makefile("rb") as stream,
        ):
            self._shake_hands(connection, stream)
            connection.settimeout(None)
            _notice_silence(connection)
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
                while (letter := self._next(is_cut)) is not None:
                    connection.sendall(letter.line())
                if not is_cut.is_set():
                    # The driver reads to the end and hangs up. Hanging up with its words unread would cut ours short.
                    connection.shutdown(socket.SHUT_WR)
                    is_cut.wait()
            finally:
                _hang_up(connection)
                listener.join()
                with self._changed:
                    self._connection = None
            with self._changed:
                return self._is_over or (self._is_closed and not self._waiting and not self._unacknowledged)

    def _shake_hands(self, connection: socket.socket, stream: BinaryIO) -> None:
        theirs = stream.readline(_HELLO_BYTES).decode("ascii", "replace").strip()
        if not theirs:
            raise ConnectionResetError("the driver said nothing")
        mine = secrets.token_hex(_NONCE_BYTES)
        connection.sendall(f"{mine} {proof(self._address.token, 'client', theirs, mine)}\n".encode())
        answer = stream.readline(_HELLO_BYTES).decode("ascii", "replace").strip()
        if not answer:
            raise ConnectionResetError("the driver hung up")
        if not is_proof(answer, self._address.token, "driver", mine, theirs):
            raise _RefusedError("the two sides do not share a token; this is not the driver of this run")
        self._last_heard = self._clock()
        connection.sendall(json.dumps(self._hello).encode() + b"\n")

    def _listen(self, stream: BinaryIO, is_cut: threading.Event) -> None:
        try:
            while line := stream.readline(_LINE_BYTES):
                message = json.loads(line)
                self._last_heard = self._clock()
                if "acknowledged" in message:
                    self._forget(int(message["acknowledged"]))
                elif self._on_command is not None:
                    self._on_command(message)
        except (OSError, ValueError, TypeError) as error:
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

    def _next(self, is_cut: threading.Event) -> "_Letter | None":
        """Return what to send next; None when the line is cut, or when all is said and the driver has it."""

        def is_to_wake() -> bool:
            is_done = self._is_closed and not self._unacknowledged
            return bool(self._waiting) or is_done or self._is_over or is_cut.is_set()

        with self._changed:
            self._changed.wait_for(is_to_wake)
            if self._is_over or is_cut.is_set() or not self._waiting:
                return None
            letter = self._waiting.popleft()
            if not letter.is_droppable:
                self._unacknowledged.append(letter)
            return letter


class _RefusedError(ConnectionError):
    """The other side is not who it should be; there is no use in trying again."""


@dataclass(frozen=True)
class _Letter:
    """An event and its number among those of its client."""

    number: int
    event: Event

    @property
    def is_droppable(self) -> bool:
        return self.event.get("event") in DROPPABLE

    def line(self) -> bytes:
        """Return the line that travels; of an event that makes it too long, the long values are cut or left out."""
        line = self._encode(self.event)
        if len(line) <= _LINE_BYTES:
            return line
        short = {key: value[:_SHORT_TEXT] if isinstance(value, str) else value for key, value in self.event.items()}
        fitting = {key: value for key, value in short.items() if len(str(value)) <= _SHORT_TEXT}
        return self._encode({**fitting, "is_shortened": True})

    def _encode(self, event: Event) -> bytes:
        try:
            # A value that JSON does not know travels as text: better than an event that does not arrive.
            text = json.dumps([self.number, not self.is_droppable, event], default=str)
        except (TypeError, ValueError):  # a key that is no text, or a value that holds itself
            plain = {
                str(key): value if isinstance(value, str | int | float | None) else str(value)
                for key, value in event.items()
            }
            text = json.dumps([self.number, not self.is_droppable, plain])
        return text.encode() + b"\n"


@dataclass(frozen=True, eq=False)
class _Line:
    """A connection to a client that has proved itself."""

    connection: socket.socket
    client: str
    rank: int
    sender: Sender
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def is_meant(self, command: Command, rank: int | None) -> bool:
        """Whether a command to ``rank``, None for all, is for this client."""
        audience = "rank" if command["command"] in _FOR_RANKS else "task"
        return self.sender == audience and rank in (None, self.rank)

    def say(self, message: Mapping[str, Any]) -> None:
        """Send without waiting: who leaves a whole socket buffer of these short lines unread is cut off.

        It connects again when it is back, and learns what still stands.
        """
        line = json.dumps(message).encode() + b"\n"
        with self._turn:
            try:
                if self.connection.send(line, socket.MSG_DONTWAIT) < len(line):
                    _hang_up(self.connection)
            except OSError:
                _hang_up(self.connection)


class _ThreadingServer(socketserver.ThreadingTCPServer):
    # A cluster's ranks connect within the same second.
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler], most_unproven: int
    ) -> None:
        self._connections: list[tuple[threading.Thread, socket.socket]] = []
        self._most_unproven = most_unproven
        self._proving = threading.Lock()
        # In the order in which they came.
        self._unproven: dict[socket.socket, None] = {}
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle the connection in a thread of its own; the base class could end them without a time limit only."""
        with self._proving:
            self._unproven[request] = None
            surplus = next(iter(self._unproven)) if len(self._unproven) > self._most_unproven else None
        if surplus is not None:
            self.trust(surplus)
            _hang_up(surplus)
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._connections = [entry for entry in self._connections if entry[0].is_alive()] + [(thread, request)]
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and forget it."""
        self.trust(request)
        super().shutdown_request(request)

    def trust(self, connection: socket.socket) -> None:
        """Count ``connection`` no longer among those that have to prove themselves."""
        with self._proving:
            self._unproven.pop(connection, None)

    def end_connections(self, patience_seconds: float) -> None:
        """Wait for the other side to hang up, then do it. For when no connection is accepted any more."""
        deadline = time.monotonic() + patience_seconds
        for thread, _ in self._connections:
            thread.join(max(0.0, deadline - time.monotonic()))
        for thread, connection in self._connections:
            if thread.is_alive():
                _hang_up(connection)
                thread.join(timeout=5)


def _notice_silence(connection: socket.socket) -> None:
    """Let a host that vanished without a word, or a path that was dropped, show as a cut line within half a minute."""
    keep_alive(connection)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TAKEN_IN_MILLISECONDS)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
