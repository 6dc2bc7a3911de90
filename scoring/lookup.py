"""HTTP server for a store of precomputed rows: ``mirrorspark lookup --store FILE``.

=====================  =============================================================================================
GET /rows/KEY          ``{"is_fallback": false, "row": {...}}``; status 404 where the key is unknown and the store has
                       no fallback
GET /rows?key=A&key=B  ``{"rows": [...]}`` with one of these for each key, in their order; null where there is none
GET /health            rows, versions of the models, when the store was written, and in ``refused`` why a newer file is
                       not in use, or null; status 503 where the store is damaged
=====================  =============================================================================================

JSON has no NaN and no infinity; they become null. A store file that is replaced is noticed within a second and used
once its checksum has been verified. A row whose checksum does not match is answered with status 503;
so is an unknown key once the file has been found damaged.

The name in the Host header must be this machine's, ``localhost``, or one given by ``--allow-host``; otherwise a web
page could point a name of its own at this server and read rows through its visitor's browser (DNS rebinding). Addresses
are always accepted, because no page can have those as its own name; so are requests without the header, such as probes
by HTTP/1.0, because browsers always send it.
"""

import argparse
import ipaddress
import logging
import math
import re
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config, Server

from mirrorspark.scoring.precomputed.store import PrecomputedScores, Row
from mirrorspark.scoring.precomputed.store_file import INTEGER, DamagedStoreError, StoreError

# A 64-bit integer has 19 digits. A longer number cannot be a key, and parsing it would take long.
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
_SECONDS_FOR_LAST_ANSWERS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the first line of standard output has the address.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 after a signal; 1 when the address cannot be listened on; 2 when there is no store.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        with PrecomputedScores.open(options.store) as scores:
            _serve(scores, options.host, options.port, options.allow_host)
    except (FileNotFoundError, StoreError) as error:
        print(f"mirrorspark: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"mirrorspark: {options.host}:{options.port} cannot be listened on: {error}", file=sys.stderr)
        return 1
    return 0


def application(scores: PrecomputedScores, allowed_hosts: Iterable[str] = ()) -> Starlette:
    """Return an application that serves ``scores``, for any ASGI server.

    Args:
        scores: The store.
        allowed_hosts: Names in the Host header that are accepted beside this machine's; ``*`` accepts all.
    """
    answers = _Answers(scores)
    return Starlette(
        routes=[
            Route("/rows/{key:path}", answers.row),
            Route("/rows", answers.rows),
            Route("/health", answers.health),
        ],
        middleware=[Middleware(_HostCheck, allowed_hosts=frozenset(map(str.lower, allowed_hosts)))],
        exception_handlers={DamagedStoreError: _damaged},
    )


class _HostCheck:
    """Refuses requests whose Host header has a name that is not expected; see the module."""

    def __init__(self, app: ASGIApp, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._allows_all = "*" in allowed_hosts
        self._allowed = allowed_hosts | {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allows(host := Request(scope).headers.get("host")):
            await self._app(scope, receive, send)
            return
        refusal = f"the Host header {host!r} is not a name of this server; start it with --allow-host to accept it"
        await PlainTextResponse(refusal, 421)(scope, receive, send)

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


async def _damaged(request: Request, error: Exception) -> PlainTextResponse:
    logging.getLogger(__name__).error("%s", error)
    return PlainTextResponse(str(error), 503)


@dataclass(frozen=True)
class _Answers:
    """The request handlers. They read the store directly: a look-up is faster than the hand-over to a thread."""

    scores: PrecomputedScores

    async def row(self, request: Request) -> JSONResponse:
        key = self._key(request.path_params["key"])
        found = self.scores.get(key)
        if found is None:
            raise HTTPException(404, f"key {key!r} is unknown, and the store has no fallback")
        return JSONResponse(_row_json(found))

    async def rows(self, request: Request) -> JSONResponse:
        keys = [self._key(text) for text in request.query_params.getlist("key")]
        if not keys:
            raise HTTPException(400, "no key is given; ask for /rows?key=A&key=B")
        found = self.scores.get_many(keys)
        return JSONResponse({"rows": [None if row is None else _row_json(row) for row in found]})

    async def health(self, request: Request) -> JSONResponse:
        self.scores.check()
        metadata = self.scores.metadata
        return JSONResponse(
            {
                "rows": metadata.rows,
                "model_versions": metadata.model_versions,
                "created": metadata.created,
                "refused": self.scores.refused,
            }
        )

    def _key(self, text: str) -> int | str:
        metadata = self.scores.metadata
        if metadata.key_type != INTEGER:
            return text
        if not _WHOLE_NUMBER.fullmatch(text):
            raise HTTPException(400, f"key {text!r} is no whole number, and column '{metadata.key}' holds such")
        return int(text)


def _row_json(row: Row) -> dict[str, Any]:
    return {"is_fallback": row.is_fallback, "row": _json_value(dict(row))}


def _json_value(value: Any) -> Any:
    """Return ``value`` with None in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(element) for element in value]
    if isinstance(value, dict):
        return {name: _json_value(element) for name, element in value.items()}
    return value


def _serve(scores: PrecomputedScores, host: str, port: int, allowed_hosts: Sequence[str]) -> None:
    with socket.create_server((host, port)) as listener:
        # The head and the body of a response are separate packets. Without this option the body waits 40 ms for the
        # client to acknowledge the head. asyncio sets it on its own listeners; connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"listening on {address} with {scores.metadata.rows:,} rows", flush=True)
        config = Config(
            application(scores, [host, *allowed_hosts]),
            log_config=None,
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_SECONDS_FOR_LAST_ANSWERS,
        )
        Server(config).run(sockets=[listener])


def _end(*_: object) -> NoReturn:
    """Exit. While it serves, uvicorn delays this until open requests are answered."""
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mirrorspark lookup", description="Serve precomputed rows by key over HTTP.")
    parser.add_argument("--store", required=True, help="the file that precompute wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default local only")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; by default one that is free")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept requests to this name too, such as that of a load balancer; may be repeated; * accepts all",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
