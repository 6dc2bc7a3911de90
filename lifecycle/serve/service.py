"""What a request goes through, whatever its protocol: limits, checks, the batch, an answer with the version."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mirrorspark.lifecycle.serve.batching import Batcher, BatchLimits, ComputedBatch
from mirrorspark.lifecycle.serve.errors import RequestError
from mirrorspark.lifecycle.serve.metrics import Metrics
from mirrorspark.lifecycle.serve.model import Outputs, ServedModel
from mirrorspark.lifecycle.serve.rows import Rows
from mirrorspark.lifecycle.serve.sources import Source, Sources
from mirrorspark.scoring.http_server import json_value

VERSION_HEADER, NAME_HEADER = "X-Model-Version", "X-Model-Name"

_LOGGER = logging.getLogger(__name__)
_NOT_KNOWN = ""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may take.

    Attributes:
        body_bytes: Size of its body.
        rows: Its rows.
        seconds: Time until its answer; the body has to arrive and the model to compute within it.
    """

    body_bytes: int = 4 * 2**20
    rows: int = 1024
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.body_bytes < 1 or self.rows < 1 or not 0 < self.seconds < math.inf:
            raise ValueError(
                f"body_bytes {self.body_bytes}, rows {self.rows} and seconds {self.seconds} must be above 0"
            )

    def check_rows(self, count: int) -> None:
        """Check the number of rows of a request.

        Raises:
            RequestError: They are none, or too many.
        """
        if not 0 < count <= self.rows:
            raise RequestError(400, f"the request has {count} rows; give 1 to {self.rows}")


@dataclass
class Call:
    """A request, and what is known of it so far.

    Attributes:
        request: The request.
        source: The source that its path names.
        model: The version that answers; it stays the same although the source may change.
        deadline: When its time is over, in the seconds of the event loop.
    """

    request: Request
    deadline: float
    source: Source | None = None
    model: ServedModel | None = None

    def bind(self, source: Source) -> ServedModel:
        """Let the version answer that ``source`` has now."""
        self.source, self.model = source, source.model
        return source.model


Handler: TypeAlias = Callable[[Call], Awaitable[dict[str, Any]]]


@dataclass
class Service:
    """The models, and what all requests share.

    Attributes:
        is_draining: Returns whether the server is about to end: it answers, but says that it is not ready.
    """

    sources: Sources
    limits: RequestLimits
    batch_limits: BatchLimits
    is_draining: Callable[[], bool] = lambda: False
    batcher: Batcher = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.batch_limits, self._on_batch)
        self.metrics = Metrics(self.sources.all, lambda: self.batcher.waiting_rows)

    def endpoint(self, protocol: str, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return what answers the requests of a route: with what ``handle`` returns as JSON, or with its error."""

        async def answer(request: Request) -> Response:
            begin = time.perf_counter()
            call = Call(request, asyncio.get_running_loop().time() + self.limits.seconds)
            try:
                response = json_response(await handle(call))
            except RequestError as error:
                response = error_response(error)
            except ClientDisconnect:
                response = error_response(RequestError(400, "the client is gone"))
            except Exception:
                # The model's own code may raise anything, with rows in the message: they go to no client.
                _LOGGER.exception("a request to %s failed", request.url.path)
                response = error_response(RequestError(500, "the model failed; the log of the server says why"))
            model = call.model
            if model is not None:
                response.headers[NAME_HEADER], response.headers[VERSION_HEADER] = model.name, model.version
            name, version = (model.name, model.version) if model else (_NOT_KNOWN, _NOT_KNOWN)
            self.metrics.requests.labels(protocol, name, version, str(response.status_code)).inc()
            self.metrics.request_seconds.labels(protocol).observe(time.perf_counter() - begin)
            return response

        return answer

    async def body(self, call: Call) -> bytes:
        """Return the body of a request, unless the queue is full already.

        Raises:
            RequestError: There is no room in the queue (429), the body is too large (413) or too slow (408).
        """
        self.batcher.check_room()
        length = call.request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout_at(call.deadline):
                async for part in call.request.stream():
                    size += len(part)
                    if size > self.limits.body_bytes:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.limits.seconds:g} s") from None
        return b"".join(parts)

    async def outputs(self, call: Call, model: ServedModel, rows: Rows) -> Outputs:
        """Return the outputs of ``model`` for the rows of a request.

        Raises:
            RequestError: The rows are none, too many, or not what the model reads (400), the queue is full (429), or
                the time of the request is over (504).
            Exception: What the model raised.
        """
        self.limits.check_rows(rows.count)
        checked = model.checked(rows)
        if call.source is not None:
            call.source.example = {name: values[:1] for name, values in rows.columns.items()}
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self.batcher.compute(model, checked)
        except TimeoutError:
            raise RequestError(504, f"there was no answer within {self.limits.seconds:g} s") from None

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the body has more than {self.limits.body_bytes} bytes; send fewer rows at a time")

    def _on_batch(self, batch: ComputedBatch) -> None:
        name = batch.model.name
        self.metrics.batch_rows.labels(name).observe(batch.rows)
        self.metrics.batch_requests.labels(name).observe(batch.requests)
        self.metrics.batch_seconds.labels(name).observe(batch.seconds)


def json_response(content: Any, status: int = 200) -> Response:
    """Return a response with JSON, which has null in place of NaN and infinities."""
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(json_value(content), allow_nan=False, separators=(",", ":"))
    return Response(text, status, media_type="application/json")


def error_response(error: RequestError) -> Response:
    """Return the response of an error, in the form that both protocols have."""
    response = json_response({"error": error.message}, error.status)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
