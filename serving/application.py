"""The ASGI application: routes, token, Host header, metrics, and the tasks that run next to the requests."""

import asyncio
import contextlib
import hmac
import logging
import os
import signal
from collections.abc import AsyncIterator, Collection, Iterable, Iterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mirrorspark.serving import inference_api, invocations_api, tensorflow_api
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.front_page import FrontPage, in_json, path_of
from mirrorspark.serving.http_connections import is_probe
from mirrorspark.serving.http_server import HostCheck
from mirrorspark.serving.metrics import CONTENT_TYPE
from mirrorspark.serving.service import Service, error_response

PROBES = (invocations_api.PING, invocations_api.HEALTH, f"{inference_api.HEALTH}/")
"""Paths of probes, which have no token (:func:`serving.http_connections.is_probe`)."""

# Forms of the same routes with a version or a label are in docs/serving.md.
_FRONT_PAGE_ROUTES = {
    "POST /v1/models/NAME:predict": "rows as instances, or columns as inputs: TensorFlow Serving's REST API",
    "POST /v1/models/NAME:classify": "rows as examples; also :regress",
    "GET /v1/models/NAME": "states of the versions",
    "GET /v1/models/NAME/metadata": "columns that the model reads and returns",
    "POST /v2/models/NAME/infer": "a tensor for each column: the Open Inference Protocol",
    "GET /v2/models/NAME": "columns of that protocol",
    "GET /v2/health/ready": "readiness; also /ping and /health",
    "POST /invocations": "JSON or CSV as MLflow's server and SageMaker take it",
    "GET /metrics": "Prometheus metrics",
}

_LOGGER = logging.getLogger(__name__)


def application(
    service: Service, *, poll_seconds: float, tokens: Collection[str] = (), allowed_hosts: Iterable[str] = ()
) -> Starlette:
    """Return the application, for an ASGI server that sends lifespan events.

    Args:
        service: The models and their limits.
        poll_seconds: How often each URI is looked up for another version; 0 never looks.
        tokens: One of these is asked of each request but those for the server's health; without any, none is.
        allowed_hosts: As in :class:`serving.http_server.HostCheck`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(service.batcher.run(), name="batches"),
            asyncio.create_task(service.shadow_batcher.run(), name="batches of shadows"),
        ]
        tasks += [asyncio.create_task(one.watch(), name=one.name) for one in service.traffics.values()]
        if poll_seconds:
            tasks += [asyncio.create_task(one.follow(poll_seconds), name=one.uri) for one in service.sources.all]
        for task in tasks:
            task.add_done_callback(end_if_failed)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end_if_failed(task: "asyncio.Task[None]") -> None:
        """End the server with a task that should not end: without it, it would answer nobody, and look sound."""
        if not task.cancelled() and (error := task.exception()):
            _LOGGER.critical("the task '%s' has failed, so the server ends", task.get_name(), exc_info=error)
            service.has_failed = True
            os.kill(os.getpid(), signal.SIGTERM)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def front(request: Request) -> Response:
        served = service.sources.served
        first = served[0]
        # Of a model that is just loaded, the row is computed here.
        row = await asyncio.to_thread(lambda: first.example)
        page = FrontPage(
            serves={one.name: one.version for one in served},
            routes=_FRONT_PAGE_ROUTES,
            path="" if row is None else path_of("v1", "models", first.name) + ":predict",
            body=None if row is None else {"instances": [in_json(row)]},
            has_token=bool(tokens),
        )
        return page.answer(request)

    middleware = [Middleware(HostCheck, allowed_hosts=allowed_hosts, refusal=_refusal)]
    if tokens:
        middleware.append(Middleware(TokenCheck, tokens=tokens))
    return Starlette(
        routes=[
            *tensorflow_api.routes(service),
            *inference_api.routes(service),
            *invocations_api.routes(service),
            Route("/metrics", metrics),
            Route("/", front),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


class TokenCheck:
    """Refuses requests without one of the tokens in ``Authorization: Bearer TOKEN``, except probes of health."""

    def __init__(self, app: ASGIApp, tokens: Collection[str]) -> None:
        """Wrap an application.

        Raises:
            ValueError: A token is blank, so that an empty header would have it.
        """
        if not all(token.strip() for token in tokens):
            raise ValueError("a token is blank; give each at least one character")
        # Clients write what ASCII lacks into a header as UTF-8 (curl) or as Latin-1 (Python's http.client, Java).
        self._app, self._tokens = app, [form for token in tokens for form in _in_a_header(token.strip())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if (
            scope["type"] != "http"
            or is_probe(scope["path"], PROBES)
            or self._knows(dict(scope["headers"]).get(b"authorization", b""))
        ):
            await self._app(scope, receive, send)
            return
        refusal = error_response(RequestError(401, "send one of the server's tokens as Authorization: Bearer TOKEN"))
        refusal.headers["WWW-Authenticate"] = "Bearer"
        await refusal(scope, receive, send)

    def _knows(self, header: bytes) -> bool:
        # As bytes: as text, a space of Unicode may be a part of a token's last character.
        scheme, _, token = header.partition(b" ")
        given = token.strip()
        # All are compared, so that the time does not show which one is close.
        return scheme.lower() == b"bearer" and sum(hmac.compare_digest(given, one) for one in self._tokens) > 0


def _in_a_header(token: str) -> Iterator[bytes]:
    yield token.encode()
    if not token.isascii() and all(ord(character) < 256 for character in token):
        yield token.encode("latin-1")


def _refusal(message: str, status: int) -> Response:
    return error_response(RequestError(status, message))


async def _http_error(request: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    response = _refusal(f"{request.method} {request.url.path}: {detail}", status)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response
