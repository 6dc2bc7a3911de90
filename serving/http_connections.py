"""The connections of an HTTP server: their number, the size of a head, and how long a client may keep one waiting."""

import asyncio
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.responses import JSONResponse
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 16 * 2**10
"""Most bytes of a request's head: its line and its headers."""

HEAD_SECONDS = 10.0
"""Longest time from a connection, or from the first byte of its next request, to the end of the request's head."""

IDLE_SECONDS = 75.0
"""Longest time between two requests. Load balancers keep unused connections for a minute, and fail a request on one
that the server closes meanwhile.
"""

_MOST_CONNECTIONS = 2048
# Connections beyond the limit, in which probes alone are answered.
_SPARE = 32
# Bytes of a chunked body in addition to its content: a chunk of one byte takes six.
_BYTES_BESIDE, _BYTES_BESIDE_EACH = 2**16, 8


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the connections of a server.

    Attributes:
        answer_seconds: Longest time from a request's head to its answer, which includes the arrival of its body.
        probes: Paths that are answered also where all connections are in use, as in :func:`is_probe`.
        most: Number of connections. Of those that wait for their clients, the oldest is closed for the next one.
    """

    answer_seconds: float
    probes: tuple[str, ...] = ()
    most: int = field(default_factory=lambda: most_connections(_open_files()))

    @property
    def backlog(self) -> int:
        """Connections that the system holds for the server, which accepts as many at once before it can close any."""
        return max(8, self.most // 4)


def most_connections(open_files: int) -> int:
    """Return the number of connections that a process with ``open_files`` open files at most accepts.

    Half of the files stay for models, stores, logs, and connections that are accepted and not yet counted.
    """
    return max(1, min(_MOST_CONNECTIONS, open_files // 2))


def is_probe(path: str, probes: Iterable[str]) -> bool:
    """Return whether a path is one of the probes; a probe that ends in ``/`` includes all paths below it."""
    return any(path.startswith(one) if one.endswith("/") else path == one for one in probes)


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2 * _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else soft


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within limits; :func:`protocol_with` makes the class of one server.

    Attributes:
        limits: The limits.
        waiting: The connections that wait for their clients, the longest first.
    """

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict["LimitedProtocol", None]]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Create the protocol for uvicorn."""
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._is_in_head = True
        # Bytes since the message began: all, those of the body, and those of the head and of trailers.
        self._bytes = self._body_bytes = self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; where there are too many, close the one that has waited longest."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.most:
            oldest = next(iter(self.waiting), None)
            if oldest is not None:
                oldest.drop()
            elif len(self.connections) > self.limits.most + _SPARE:
                transport.abort()
                return
        self._wait(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._no_longer_wait()
        self._set_deadline(None)
        # uvicorn keeps the timer of a connection that was reset, and with it all that belongs to the connection.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close the connection, even if data is still to be sent."""
        self._no_longer_wait()
        self._set_deadline(None)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, while the head and the framing of the body are within their limits."""
        if self.transport.is_closing():
            return
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            if max(self._bytes, self._head_bytes) > HEAD_BYTES:
                self._send_refusal()
        elif (
            self._head_bytes > HEAD_BYTES
            or self._bytes > HEAD_BYTES + _BYTES_BESIDE + _BYTES_BESIDE_EACH * self._body_bytes
        ):
            self.drop()  # trailers and chunks without an end

    def on_message_begin(self) -> None:
        """Begin a request, whose head has to arrive in time."""
        self._is_in_head, self._head_bytes, self._body_bytes = True, 0, 0
        if not self._is_answering:
            self._set_deadline(HEAD_SECONDS)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a part of the address."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or one of those after a chunked body, which nobody reads."""
        self._head_bytes += len(name) + len(value)
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the request answered, or refused for its head or for the number of connections."""
        is_next = self.cycle is None or self.cycle.response_complete
        self._is_in_head, self._bytes = False, 0
        application = self.app
        if self._head_bytes > HEAD_BYTES:
            self.app = _refusal(431, f"the head of the request has more than {HEAD_BYTES} bytes")
        elif len(self.connections) > self.limits.most and not self._is_probe:
            self.app = _refusal(503, "all connections are in use; ask again")
        try:
            super().on_headers_complete()
        finally:
            self.app = application
        if is_next:
            self._set_deadline(self.limits.answer_seconds)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; the connection no longer waits for its client."""
        super().on_message_complete()
        self._is_in_head, self._bytes, self._head_bytes = True, 0, 0
        if self._is_answering:
            self._no_longer_wait()

    def on_response_complete(self) -> None:
        """Begin the next request that has come, or wait for it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._set_deadline(HEAD_SECONDS)  # the client may not take its answer
        elif self._is_answering:
            self._set_deadline(self.limits.answer_seconds)
        else:
            self._wait(IDLE_SECONDS)

    @property
    def _is_answering(self) -> bool:
        """True while a request has arrived and its answer has not been sent."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def _is_probe(self) -> bool:
        return is_probe(self.url.partition(b"?")[0].decode("latin-1"), self.limits.probes)

    def _wait(self, seconds: float) -> None:
        self._no_longer_wait()
        self.waiting[self] = None
        self._set_deadline(seconds)

    def _no_longer_wait(self) -> None:
        self.waiting.pop(self, None)

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.drop)

    def _send_refusal(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()
        self._set_deadline(HEAD_SECONDS)


def protocol_with(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """Return the protocol of one server, which has the limits and the connections that wait."""
    return type("ServerProtocol", (LimitedProtocol,), {"limits": limits, "waiting": {}})


def _refusal(status: int, message: str) -> ASGIApp:
    return JSONResponse({"error": message}, status, headers={"connection": "close"})
