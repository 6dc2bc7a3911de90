"""HTTP server for a store of precomputed rows: ``mirrorspark lookup --store FILE``.

=====================  =============================================================================================
GET /                  these routes, as JSON or for a browser as a page
GET /rows/KEY          ``{"is_fallback": false, "row": {...}}``; status 404 where the key is unknown and the store has
                       no fallback
GET /rows?key=A&key=B  ``{"rows": [...]}`` with one of these for each of up to 256 keys, in their order; null where
                       there is none
GET /health            rows, versions of the models, when the store was written, and in ``refused`` why a newer file is
                       not in use, or null; status 503 where the store is damaged
=====================  =============================================================================================

JSON has no NaN and no infinity; they become null. A store file that is replaced is noticed within a second and used
once its checksum has been verified. A row whose checksum does not match is answered with status 503;
so is an unknown key once the file has been found damaged.

An error is ``{"error": MESSAGE}``, without the store's path, which the log has. The Host header is checked
(:class:`serving.http_server.HostCheck`), and connections have limits (:mod:`serving.http_connections`).
"""

import argparse
import logging
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mirrorspark.serving.front_page import FrontPage
from mirrorspark.serving.http_connections import ConnectionLimits
from mirrorspark.serving.http_server import HostCheck, json_value, listening, server
from mirrorspark.serving.precomputed import INTEGER, DamagedStoreError, PrecomputedScores, Row, StoreError

# A 64-bit integer has 19 digits. A longer number cannot be a key, and parsing it would take long.
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
# Rows are read in the event loop, which other requests wait for.
_MOST_KEYS = 256
_ANSWER_SECONDS = 30.0
_FRONT_PAGE_ROUTES = {
    "GET /rows/KEY": "the row of a key",
    "GET /rows?key=A&key=B": "the rows of several keys",
    "GET /health": "rows, versions of the models, when the store was written",
}


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
        allowed_hosts: Names in the Host header that are accepted in addition to this machine's; ``*`` accepts all.
    """
    answers = _Answers(scores)
    return Starlette(
        routes=[
            Route("/", answers.front),
            Route("/rows/{key:path}", answers.row),
            Route("/rows", answers.rows),
            Route("/health", answers.health),
        ],
        middleware=[Middleware(HostCheck, allowed_hosts=allowed_hosts, refusal=_refusal)],
        exception_handlers={DamagedStoreError: answers.damaged, HTTPException: _failed},
    )


def _refusal(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _failed(request: Request, error: Any) -> JSONResponse:
    return _refusal(error.detail, error.status_code)


@dataclass(frozen=True)
class _Answers:
    """The request handlers. They read the store directly: a look-up is faster than the hand-over to a thread."""

    scores: PrecomputedScores

    async def front(self, request: Request) -> Response:
        rows = {"rows": f"{self.scores.metadata.rows:,}"}
        return FrontPage(rows, _FRONT_PAGE_ROUTES, path="/rows/KEY").answer(request)

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
        if len(keys) > _MOST_KEYS:
            raise HTTPException(400, f"{len(keys)} keys are given; ask for at most {_MOST_KEYS} at a time")
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
                "refused": self._without_path(self.scores.refused),
            }
        )

    async def damaged(self, request: Request, error: Exception) -> JSONResponse:
        logging.getLogger(__name__).error("%s", error)
        return _refusal(self._without_path(str(error)) or "", 503)

    def _without_path(self, reason: str | None) -> str | None:
        """Return a reason for clients, without the path of the store, which only the log has."""
        return reason and reason.replace(str(self.scores.path), "the store")

    def _key(self, text: str) -> int | str:
        metadata = self.scores.metadata
        if metadata.key_type != INTEGER:
            return text
        if not _WHOLE_NUMBER.fullmatch(text):
            raise HTTPException(400, f"key {text!r} is not a whole number, as column '{metadata.key}' holds")
        return int(text)


def _row_json(row: Row) -> dict[str, Any]:
    return {"is_fallback": row.is_fallback, "row": json_value(dict(row))}


def _serve(scores: PrecomputedScores, host: str, port: int, allowed_hosts: Sequence[str]) -> None:
    with listening(host, port) as listener:
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"listening on {address} with {scores.metadata.rows:,} rows", flush=True)
        limits = ConnectionLimits(_ANSWER_SECONDS, probes=("/health",))
        server(application(scores, [host, *allowed_hosts]), limits).run(sockets=[listener])


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
