"""The connections of a ring: every rank connects to the next one and accepts the previous one.

Both sides of a connection prove that they know the run's token without sending it, in messages of fixed size: the
client sends its rank and a proof of the token, the server a proof for the client's nonce, the client a proof for the
server's. Every rank connects before it accepts and accepts before it confirms, so the ring cannot deadlock. (That
order is why it does not use the lines of `training.protocol.handshake`.)
"""

import contextlib
import hmac
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from queue import Empty

from mirrorspark.training.protocol.messages import Admissions, TokenMismatchError, keep_alive, split_address
from mirrorspark.training.protocol.ring.errors import RingConnectError

_SOCKET_BUFFER_BYTES = 4 << 20
_CONNECT_PAUSE_SECONDS = 0.02
_MOST_UNPROVEN = 64

_NONCE_BYTES = 16
_PROOF_BYTES = 32
_RANK = struct.Struct("<I")
_HELLO = struct.Struct(f"<I{_NONCE_BYTES}s{_PROOF_BYTES}s")
_REPLY = struct.Struct(f"<{_NONCE_BYTES}s{_PROOF_BYTES}s")


def open_listener(host: str) -> socket.socket:
    """Return a listening socket on a free port of ``host``, so that no other program can take the port.

    Raises:
        OSError: ``host`` is not an interface of this machine.
    """
    return _listen(host, 0)


def connect_neighbours(
    rank: int, addresses: Sequence[str], token: str, listener: socket.socket | None, deadline: float
) -> tuple[socket.socket, socket.socket]:
    """Return the connections to the next and from the previous rank; see `Ring.connect` for arguments and errors.

    ``deadline`` is in seconds of ``time.monotonic``. There are two ``addresses`` or more.
    """
    next_rank, previous_rank = (rank + 1) % len(addresses), (rank - 1) % len(addresses)
    with contextlib.ExitStack() as failed, listener or _listen(*split_address(addresses[rank])) as listener:
        to_next, client_nonce = _connect(addresses[next_rank], rank, next_rank, token, deadline)
        failed.callback(to_next.close)
        from_previous, server_nonce = _accept(listener, previous_rank, token, deadline)
        failed.callback(from_previous.close)
        to_next.settimeout(max(0.1, deadline - time.monotonic()))
        _confirm(to_next, next_rank, token, client_nonce)
        _check_confirmation(from_previous, previous_rank, token, server_nonce)
        failed.pop_all()
    for connection in (to_next, from_previous):
        _configure(connection)
    return to_next, from_previous


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), backlog=128)


def _connect(address: str, rank: int, peer: int, token: str, deadline: float) -> tuple[socket.socket, bytes]:
    """Connect to ``peer``, which may not listen yet, and send a hello; return the nonce that the peer must prove."""
    host, port = split_address(address)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    hello = _HELLO.pack(rank, nonce, _proof(token, b"connect", _RANK.pack(rank), nonce))
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
            connection.sendall(hello)
        except OSError as error:
            if time.monotonic() + _CONNECT_PAUSE_SECONDS > deadline:
                raise RingConnectError(peer, f"cannot be reached at {address} ({error.strerror or error})") from error
            time.sleep(_CONNECT_PAUSE_SECONDS)
        else:
            return connection, nonce


def _accept(listener: socket.socket, peer: int, token: str, deadline: float) -> tuple[socket.socket, bytes]:
    """Accept ``peer``, and reply. Return the connection, and the nonce that the peer must prove."""

    def admit(client: socket.socket) -> tuple[socket.socket, bytes]:
        client.settimeout(max(0.1, deadline - time.monotonic()))
        rank, theirs, proof = _HELLO.unpack(_read(client, _HELLO.size))
        if not hmac.compare_digest(proof, _proof(token, b"connect", _RANK.pack(rank), theirs)):
            raise TokenMismatchError("it does not know the token")
        if rank != peer:
            raise ValueError(f"it is rank {rank}, not {peer}")
        return client, theirs

    with Admissions(
        listener,
        admit,
        "a connection of the ring",
        most_unproven=_MOST_UNPROVEN,
        discard=lambda admitted: admitted[0].close(),
    ) as admissions:
        try:
            client, theirs = admissions.next(max(0.0, deadline - time.monotonic()))
        except Empty:
            raise RingConnectError(peer, "has not connected in time") from None
    return client, _reply(client, token, theirs, deadline)


def _reply(client: socket.socket, token: str, theirs: bytes, deadline: float) -> bytes:
    """Prove the token for the client's nonce, and return the nonce that the client must prove."""
    mine = secrets.token_bytes(_NONCE_BYTES)
    client.settimeout(max(0.1, deadline - time.monotonic()))
    client.sendall(_REPLY.pack(mine, _proof(token, b"accept", theirs, mine)))
    return mine


def _confirm(connection: socket.socket, peer: int, token: str, nonce: bytes) -> None:
    """Check the server's proof, as the client, and prove the token for the server's nonce."""
    try:
        theirs, proof = _REPLY.unpack(_read(connection, _REPLY.size))
        if not hmac.compare_digest(proof, _proof(token, b"accept", nonce, theirs)):
            raise RingConnectError(peer, "answers with another token: it belongs to another run")
        connection.sendall(_proof(token, b"confirm", theirs))
    except OSError as error:
        if isinstance(error, RingConnectError):
            raise
        raise RingConnectError(peer, f"has not answered ({error.strerror or error})") from error


def _check_confirmation(connection: socket.socket, peer: int, token: str, nonce: bytes) -> None:
    try:
        proof = _read(connection, _PROOF_BYTES)
    except OSError as error:
        raise RingConnectError(peer, f"has not confirmed ({error.strerror or error})") from error
    if not hmac.compare_digest(proof, _proof(token, b"confirm", nonce)):
        raise RingConnectError(peer, "confirms with another token: it belongs to another run")


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        if not more:
            raise ConnectionResetError("it closed the connection")
        content += more
    return content


def _proof(token: str, *parts: bytes) -> bytes:
    return hmac.new(token.encode(), b"\0".join(parts), "sha256").digest()


def _configure(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, buffer, _SOCKET_BUFFER_BYTES)
    keep_alive(connection)
