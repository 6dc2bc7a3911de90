"""How the ranks of a ring come together: every rank calls the next one and hears the previous one.

Both sides of a connection prove that they know the run's token without sending it, in messages of fixed size: the
dialling rank says who it is and proves the token; the answering one proves it for the dialler's nonce; the dialler
proves it for the answerer's. Every rank dials before it answers and answers before it confirms, so the circle closes
without anybody waiting for himself.
"""

import contextlib
import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from typing import cast

from mirrorspark.training.protocol.handshake import keep_alive, split_address
from mirrorspark.training.ring.errors import RingConnectError

_SOCKET_BUFFER_BYTES = 4 << 20
_DIAL_PAUSE_SECONDS = 0.02

_NONCE_BYTES = 16
_PROOF_BYTES = 32
_RANK = struct.Struct("<I")
_HELLO = struct.Struct(f"<I{_NONCE_BYTES}s{_PROOF_BYTES}s")
_REPLY = struct.Struct(f"<{_NONCE_BYTES}s{_PROOF_BYTES}s")


def listen(host: str) -> socket.socket:
    """Return what listens on a port of ``host`` that the system chooses: nobody can take it in between.

    Raises:
        OSError: ``host`` is no interface of this machine.
    """
    return _listen(host, 0)


def connect_neighbours(
    rank: int, addresses: Sequence[str], token: str, listener: socket.socket | None, deadline: float
) -> tuple[socket.socket, socket.socket]:
    """Return the connections to the next and from the previous rank; arguments and errors are those of `Ring.connect`.

    Args:
        rank: This rank.
        addresses: ``host:port`` of every rank, in order; two or more.
        token: Secret of the attempt.
        listener: Listens on this rank's address, and is closed.
        deadline: When both have to be there, by ``time.monotonic``.
    """
    after, before = (rank + 1) % len(addresses), (rank - 1) % len(addresses)
    with contextlib.ExitStack() as failed, listener or _listen(*split_address(addresses[rank])) as listener:
        following, dialled = _dial(addresses[after], rank, after, token, deadline)
        failed.callback(following.close)
        preceding, answered = _answer(listener, before, token, deadline)
        failed.callback(preceding.close)
        following.settimeout(max(0.1, deadline - time.monotonic()))
        _confirm(following, after, token, dialled)
        _check_confirmation(preceding, before, token, answered)
        failed.pop_all()
    _tune(following)
    _tune(preceding)
    return following, preceding


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), backlog=128)


def _dial(address: str, rank: int, peer: int, token: str, deadline: float) -> tuple[socket.socket, bytes]:
    """Connect to ``peer``, which may not listen yet, and say who calls; return the nonce that it has to prove."""
    host, port = split_address(address)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    hello = _HELLO.pack(rank, nonce, _proof(token, b"dial", _RANK.pack(rank), nonce))
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
            connection.sendall(hello)
        except OSError as error:
            if time.monotonic() + _DIAL_PAUSE_SECONDS > deadline:
                raise RingConnectError(peer, f"cannot be reached at {address} ({error.strerror or error})") from error
            time.sleep(_DIAL_PAUSE_SECONDS)
        else:
            return connection, nonce


def _answer(listener: socket.socket, peer: int, token: str, deadline: float) -> tuple[socket.socket, bytes]:
    """Wait for ``peer`` to call, and answer. Return the connection, and the nonce that it has to prove.

    Callers are heard side by side, so that strangers who say nothing keep nobody waiting; they are turned away.
    """
    with selectors.DefaultSelector() as waiting:
        listener.setblocking(False)
        waiting.register(listener, selectors.EVENT_READ)
        try:
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    if key.fileobj is listener:
                        caller, _ = listener.accept()
                        caller.setblocking(False)
                        waiting.register(caller, selectors.EVENT_READ, bytearray())
                    elif (hello := _heard(key, waiting)) is not None:
                        caller = cast(socket.socket, key.fileobj)
                        rank, theirs, proof = _HELLO.unpack(hello)
                        if rank == peer and hmac.compare_digest(
                            proof, _proof(token, b"dial", _RANK.pack(rank), theirs)
                        ):
                            return caller, _replied(caller, token, theirs, deadline)
                        caller.close()
        finally:
            for key in list(waiting.get_map().values()):
                if key.fileobj is not listener:
                    cast(socket.socket, key.fileobj).close()
    raise RingConnectError(peer, "has not called in time")


def _heard(key: selectors.SelectorKey, waiting: selectors.BaseSelector) -> bytes | None:
    """Take in what a caller says; return its hello when that is whole, and wait for nothing more from it then."""
    caller, so_far = cast(socket.socket, key.fileobj), key.data
    try:
        more = caller.recv(_HELLO.size - len(so_far))
    except OSError:
        more = b""
    so_far += more
    if more and len(so_far) < _HELLO.size:
        return None
    waiting.unregister(caller)
    if len(so_far) == _HELLO.size:
        return bytes(so_far)
    caller.close()
    return None


def _replied(caller: socket.socket, token: str, theirs: bytes, deadline: float) -> bytes:
    """Prove the token for the caller's nonce, and return the nonce that it has to prove."""
    mine = secrets.token_bytes(_NONCE_BYTES)
    caller.settimeout(max(0.1, deadline - time.monotonic()))
    caller.sendall(_REPLY.pack(mine, _proof(token, b"answer", theirs, mine)))
    return mine


def _confirm(connection: socket.socket, peer: int, token: str, nonce: bytes) -> None:
    """On the dialler's side: check the answer, and prove the token for the answerer's nonce."""
    try:
        theirs, proof = _REPLY.unpack(_read(connection, _REPLY.size))
        if not hmac.compare_digest(proof, _proof(token, b"answer", nonce, theirs)):
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


def _tune(connection: socket.socket) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, buffer, _SOCKET_BUFFER_BYTES)
    keep_alive(connection)
