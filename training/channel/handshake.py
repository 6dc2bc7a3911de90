"""What every connection between our processes begins with: an address, the proof of a token, and keep-alive."""

import hmac
import socket

# After ten seconds of silence three questions, five seconds apart: a host that vanished shows as a cut line.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, the host as sockets take it: without the brackets of IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def proof(token: str, role: str, challenge: str, nonce: str) -> str:
    """Return what only somebody who knows ``token`` can answer to ``challenge``; the token itself is never sent.

    Args:
        token: The secret of both sides.
        role: Of who answers: it keeps one side's proof from being played back to it as the other's.
        challenge: What the other side drew.
        nonce: What this side drew.
    """
    return hmac.new(token.encode(), f"{role}:{challenge}:{nonce}".encode(), "sha256").hexdigest()


def is_proof(answer: str, token: str, role: str, challenge: str, nonce: str) -> bool:
    """Return whether ``answer`` is that proof, in a time that tells nothing of it."""
    # As bytes: of text the comparison takes nothing but ASCII.
    return hmac.compare_digest(answer.encode(), proof(token, role, challenge, nonce).encode())


def keep_alive(connection: socket.socket) -> None:
    """Let a connection whose other host has vanished be cut: that host closes nothing."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
