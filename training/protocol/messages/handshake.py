"""The start of every connection between our processes: an address, the proof of a token, and keep-alive."""

import contextlib
import hmac
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable
from io import BufferedIOBase, RawIOBase
from typing import IO, TypeAlias

from mirrorspark.clear_error import ClearError

# A caller has this long for each line of a handshake: a process that starts on a loaded machine may take seconds. A
# shorter time would let nobody start sooner, since servers read all callers at once and, of too many that have proved
# nothing, disconnect the oldest.
HANDSHAKE_SECONDS = 10.0
HANDSHAKE_LINE_BYTES = 1 << 12
_Stream: TypeAlias = RawIOBase | BufferedIOBase | IO[bytes]
_NONCE_BYTES = 32
_REFUSALS_SECONDS = 60.0

# After ten seconds of silence three probes, five seconds apart: a vanished host breaks the connection.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
# Data must be acknowledged within the time in which the probes notice a vanished host.
_ACKNOWLEDGED_IN_MILLISECONDS = 25_000


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, the host as sockets take it: without the brackets of IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class TokenMismatchError(ClearError, ConnectionRefusedError):
    """The other side failed to authenticate; a retry is useless."""


def authenticate_to_server(connection: socket.socket, stream: _Stream, token: str, *, client: str, server: str) -> None:
    """Prove the token to the server, and check the server's proof: the client's side of a connection by lines.

    Args:
        connection: To the server; lines are written to it.
        stream: Reads the same connection.
        token: The secret of both sides.
        client: This side's role in its proof.
        server: The server's role in its proof.

    Raises:
        TokenMismatchError: The server does not know the token.
        ConnectionResetError: It closed the connection.
    """
    theirs, mine = read_line(stream), secrets.token_hex(_NONCE_BYTES)
    connection.sendall(f"{mine} {proof(token, client, theirs, mine)}\n".encode())
    if not is_proof(read_line(stream), token, server, mine, theirs):
        raise TokenMismatchError("the two sides do not share a token")


def authenticate_client(connection: socket.socket, stream: _Stream, token: str, *, client: str, server: str) -> None:
    """Check a client's proof of the token, and prove it in turn; the server's side of :func:`authenticate_to_server`.

    Raises:
        TokenMismatchError: The client does not know the token; it got a refusal.
        ConnectionResetError: It closed the connection.
    """
    mine = secrets.token_hex(_NONCE_BYTES)
    connection.sendall(mine.encode() + b"\n")
    theirs, _, answer = read_line(stream).partition(" ")
    if not is_proof(answer, token, client, mine, theirs):
        connection.sendall(b"refused\n")
        raise TokenMismatchError("it does not know the token")
    connection.sendall(proof(token, server, theirs, mine).encode() + b"\n")


def read_line(stream: _Stream, clock: Callable[[], float] = time.monotonic) -> str:
    """Return the next line of a handshake.

    Raises:
        ConnectionResetError: The other side closed the connection.
        TimeoutError: The line is not complete in :data:`HANDSHAKE_SECONDS`, although each byte came in time.
    """
    deadline = clock() + HANDSHAKE_SECONDS
    line = b""
    # By bytes: `readline` would begin the socket's timeout anew with each one.
    while not line.endswith(b"\n") and len(line) < HANDSHAKE_LINE_BYTES:
        if clock() > deadline:
            raise TimeoutError(f"it has not sent a line within {HANDSHAKE_SECONDS:g} s")
        byte = stream.read(1)
        if not byte:
            raise ConnectionResetError("it closed the connection")
        line += byte
    return line.decode("ascii", "replace").strip()


def proof(token: str, role: str, challenge: str, nonce: str) -> str:
    """Return the answer to ``challenge`` that proves knowledge of ``token``; the token itself is never sent.

    Args:
        token: The secret of both sides.
        role: Role of the answering side, so that one side's proof cannot be replayed to it as the other's.
        challenge: Random text from the other side.
        nonce: Random text from this side.
    """
    return hmac.new(token.encode(), f"{role}:{challenge}:{nonce}".encode(), "sha256").hexdigest()


def is_proof(answer: str, token: str, role: str, challenge: str, nonce: str) -> bool:
    """Return True if ``answer`` is that proof; the comparison takes constant time."""
    # As bytes, since the comparison accepts only ASCII text.
    return hmac.compare_digest(answer.encode(), proof(token, role, challenge, nonce).encode())


def keep_alive(connection: socket.socket) -> None:
    """Make the system close a connection whose other host has vanished, since that host closes nothing itself."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def notice_silence(connection: socket.socket) -> None:
    """Make a vanished host or a lost network path break the connection within half a minute."""
    keep_alive(connection)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _ACKNOWLEDGED_IN_MILLISECONDS)


class RefusalLog:
    """Logs callers that failed to authenticate: the first at once, the others counted in one line a minute."""

    def __init__(self, logger: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Log to ``logger``; ``what`` is the purpose of the callers."""
        self._logger = logger
        self._what = what
        self._clock = clock
        self._turn = threading.Lock()
        self._unlogged = 0
        self._next = -math.inf

    def add(self, host: str) -> None:
        """Count a refused caller from ``host``."""
        with self._turn:
            self._unlogged += 1
            if (now := self._clock()) < self._next:
                return
            self._next = now + _REFUSALS_SECONDS
            count, self._unlogged = self._unlogged, 0
        others = f" and {count - 1} more since the last such line" if count > 1 else ""
        self._logger.warning("refused %s from %s%s: wrong token", self._what, host, others)


def hang_up(connection: socket.socket) -> None:
    """Close a connection, even while another thread waits on it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
