"""Parts that the HTTP servers share: the check of the Host header, JSON without NaN, serving until a signal."""

import ipaddress
import math
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server

from mirrorspark.serving.http_connections import IDLE_SECONDS, ConnectionLimits, protocol_with

SECONDS_FOR_LAST_ANSWERS = 5


class HostCheck:
    """Refuses requests whose Host header has a name that is not expected.

    The name must be this machine's, ``localhost``, or one that is allowed; otherwise a web page could point a name of
    its own at the server and read answers through its visitor's browser (DNS rebinding). Addresses are always accepted,
    because no page can have those as its own name; so are requests without the header, such as probes by HTTP/1.0,
    because browsers always send it.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed_hosts: Iterable[str],
        refusal: Callable[[str, int], Response] = PlainTextResponse,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            allowed_hosts: Names that are accepted in addition to this machine's; ``*`` accepts all.
            refusal: Makes the response to a refused request, of a message and the status 421.
        """
        names = frozenset(map(str.lower, allowed_hosts))
        self._app, self._refusal = app, refusal
        self._allows_all = "*" in names
        self._allowed = names | {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or self._allows(host := Request(scope).headers.get("host")):
            await self._app(scope, receive, send)
            return
        refusal = f"the Host header {host!r} is not a name of this server; start it with --allow-host to accept it"
        await self._refusal(refusal, 421)(scope, receive, send)

    def _allows(self, host: str | None) -> bool:
        if host is None:
            return True
        name = re.sub(r":[0-9]*$", "", host).lower().rstrip(".")
        return self._allows_all or name in self._allowed or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def json_value(value: Any) -> Any:
    """Return ``value`` with None in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [json_value(element) for element in value]
    if isinstance(value, dict):
        return {name: json_value(element) for name, element in value.items()}
    return value


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes one that is free.

    Raises:
        OSError: The address cannot be listened on.
    """
    listener = socket.create_server((host, port))
    # The head and the body of a response are separate packets. Without this option the body waits 40 ms for the
    # client to acknowledge the head. asyncio sets it on its own listeners; connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def server(application: ASGIApp, limits: ConnectionLimits) -> Server:
    """Return a server, whose ``run(sockets=[...])`` ends after a signal and the last answers."""
    return Server(server_config(application, limits))


def server_config(
    application: ASGIApp,
    limits: ConnectionLimits,
    *,
    has_lifespan: bool = False,
    last_seconds: int = SECONDS_FOR_LAST_ANSWERS,
) -> Config:
    """Return the settings of a server.

    Args:
        application: The application that it serves.
        limits: Limits of its connections.
        has_lifespan: Whether the application starts and stops with the server.
        last_seconds: How long open requests may take after a signal.
    """
    return Config(
        application,
        log_config=None,
        # A warning for each client that speaks no HTTP would let anybody fill the log.
        log_level="error",
        access_log=False,
        http=protocol_with(limits),
        ws="none",
        lifespan="on" if has_lifespan else "off",
        proxy_headers=False,
        server_header=False,
        backlog=limits.backlog,
        timeout_graceful_shutdown=last_seconds,
        timeout_keep_alive=int(IDLE_SECONDS),
    )
