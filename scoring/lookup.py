"""Answer by key over HTTP, from a store of precomputed rows: ``python -m scoring.lookup --store FILE``.

=====================  =============================================================================================
GET /rows/KEY          ``{"is_fallback": false, "row": {...}}``; status 404 where the key is unknown and the store has
                       no fallback
GET /rows?key=A&key=B  ``{"rows": [...]}`` with one of these for each key, in their order; null where there is none
GET /health            rows, versions of the models, and when the store was written
=====================  =============================================================================================

JSON knows no NaN and no infinity; they are null here. Whatever takes the store's name is served within a second.
"""

import argparse
import logging
import math
import re
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn import Config, Server

from scoring.precomputed import INTEGER, PrecomputedScores, Row, StoreError

# 64 bits are 19 digits; a longer number is no key of any store, and takes long to read.
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
_SECONDS_FOR_LAST_ANSWERS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal (SIGTERM, SIGINT) ends it; the first line of standard output says where.

    Args:
        arguments: Command-line arguments; by default those of the process.

    Returns:
        0 when it was ended; 1 when the address cannot be had; 2 when there is no store.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        with PrecomputedScores.open(options.store) as scores:
            _serve(scores, options.host, options.port)
    except (FileNotFoundError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {options.host}:{options.port} cannot be listened on: {error}", file=sys.stderr)
        return 1
    return 0


def application(scores: PrecomputedScores) -> Starlette:
    """Return what answers requests from ``scores``, for any ASGI server."""
    answers = _Answers(scores)
    return Starlette(
        routes=[
            Route("/rows/{key:path}", answers.row),
            Route("/rows", answers.rows),
            Route("/health", answers.health),
        ]
    )


@dataclass(frozen=True)
class _Answers:
    """Answers requests. A look into the store takes less than to hand it to a thread would."""

    scores: PrecomputedScores

    async def row(self, request: Request) -> JSONResponse:
        key = self._key(request.path_params["key"])
        found = self.scores.get(key)
        if found is None:
            raise HTTPException(404, f"key {key!r} is unknown, and the store has no fallback")
        return JSONResponse(_told(found))

    async def rows(self, request: Request) -> JSONResponse:
        keys = [self._key(text) for text in request.query_params.getlist("key")]
        if not keys:
            raise HTTPException(400, "no key is given; ask for /rows?key=A&key=B")
        found = self.scores.get_many(keys)
        return JSONResponse({"rows": [None if row is None else _told(row) for row in found]})

    async def health(self, request: Request) -> JSONResponse:
        metadata = self.scores.metadata
        return JSONResponse(
            {"rows": metadata.rows, "model_versions": metadata.model_versions, "created": metadata.created}
        )

    def _key(self, text: str) -> int | str:
        metadata = self.scores.metadata
        if metadata.key_type != INTEGER:
            return text
        if not _WHOLE_NUMBER.fullmatch(text):
            raise HTTPException(400, f"key {text!r} is no whole number, and column '{metadata.key}' holds such")
        return int(text)


def _told(row: Row) -> dict[str, Any]:
    return {"is_fallback": row.is_fallback, "row": _of_json(dict(row))}


def _of_json(value: Any) -> Any:
    """Return ``value`` with None for each number that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_of_json(element) for element in value]
    if isinstance(value, dict):
        return {name: _of_json(element) for name, element in value.items()}
    return value


def _serve(scores: PrecomputedScores, host: str, port: int) -> None:
    with socket.create_server((host, port)) as listener:
        # Head and body of an answer are packets of their own. The body would wait until the client confirms the head,
        # which takes 40 ms. asyncio sets this on listeners that it makes; connections take it from theirs.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = f"http://{host}:{listener.getsockname()[1]}"
        print(f"listening on {address} with {scores.metadata.rows:,} rows", flush=True)
        config = Config(
            application(scores),
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
    """Leave; while it serves, uvicorn has this wait until the last answers are given."""
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoring.lookup", description="Answer by key over HTTP, from a store of precomputed rows."
    )
    parser.add_argument("--store", required=True, help="the file that scoring.precompute wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default this machine alone asks")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; by default one that is free")
    return parser


if __name__ == "__main__":
    sys.exit(main())
