"""What a request goes through, whatever its protocol: limits, checks, the batch, an answer with the version."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mirrorspark.lifecycle.serve.batching import Batcher, BatchLimits, ComputedBatch
from mirrorspark.lifecycle.serve.errors import RequestError
from mirrorspark.lifecycle.serve.metrics import Metrics
from mirrorspark.lifecycle.serve.rows import Rows
from mirrorspark.lifecycle.serve.servable import Outputs, Servable
from mirrorspark.lifecycle.serve.sources import Source, Sources
from mirrorspark.lifecycle.serve.traffic import Traffic, Variant, differences
from mirrorspark.scoring.http_server import json_value

VERSION_HEADER, NAME_HEADER, VARIANT_HEADER = "X-Model-Version", "X-Model-Name", "X-Model-Variant"

_LOGGER = logging.getLogger(__name__)
_NOT_KNOWN = ""
# Statuses that may be the version's fault: another one may answer the same request.
_MAY_BE_THE_VERSIONS = (400, 500)
# Shadows compute only while this share of the queue is free, and so many requests at once.
_SHADOW_QUEUE_SHARE, _MOST_SHADOWED = 0.9, 64


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
        deadline: When its time is over, in the seconds of the event loop.
        is_fixed: Whether ``source`` was chosen in advance, whatever the path names.
        source: The source that answers.
        model: The version that answers; it stays the same although the source may change.
        traffic: What divides the requests for the name that the path has, or None.
        variant: The variant that the request's unit has, or None.
        content: The body, once it has arrived.
        outputs: What was computed, or None.
    """

    request: Request
    deadline: float
    is_fixed: bool = False
    source: Source | None = None
    model: Servable | None = None
    traffic: Traffic | None = None
    variant: Variant | None = None
    content: bytes | None = None
    outputs: Outputs | None = None

    @property
    def unit(self) -> str | None:
        """The unit in the header that the traffic asks for."""
        return self.request.headers.get(self.traffic.file.settings.unit_header) if self.traffic else None

    def again(self, source: Source, deadline: float) -> "Call":
        """Return the same request, to be answered by a certain source."""
        return Call(self.request, deadline, is_fixed=True, source=source, content=self.content)


Handler: TypeAlias = Callable[[Call], Awaitable[dict[str, Any]]]


@dataclass
class Service:
    """The models, and what all requests share.

    Attributes:
        traffics: What divides the requests for some names.
        is_draining: Returns whether the server is about to end: it answers, but says that it is not ready.
    """

    sources: Sources
    limits: RequestLimits
    batch_limits: BatchLimits
    is_draining: Callable[[], bool] = lambda: False
    traffics: Mapping[str, Traffic] = field(default_factory=dict)
    batcher: Batcher = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.batch_limits, self._on_batch)
        self.metrics = Metrics(self.sources.all, self.traffics.values(), lambda: self.batcher.waiting_rows)
        self._shadowed: set[asyncio.Task[None]] = set()

    def endpoint(self, protocol: str, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return what answers the requests of a route: with what ``handle`` returns as JSON, or with its error."""

        async def answer(request: Request) -> Response:
            begin = time.perf_counter()
            call = Call(request, asyncio.get_running_loop().time() + self.limits.seconds)
            response = await self._response(call, handle)
            if call.traffic is not None:
                response = await self._as_divided(call, handle, response, begin)
            model = call.model
            if model is not None:
                response.headers[NAME_HEADER], response.headers[VERSION_HEADER] = model.name, model.version
            name, version = (model.name, model.version) if model else (_NOT_KNOWN, _NOT_KNOWN)
            self.metrics.requests.labels(protocol, name, version, str(response.status_code)).inc()
            self.metrics.request_seconds.labels(protocol).observe(time.perf_counter() - begin)
            return response

        return answer

    async def _response(self, call: Call, handle: Handler) -> Response:
        try:
            return json_response(await handle(call))
        except RequestError as error:
            return error_response(error)
        except ClientDisconnect:
            return error_response(RequestError(400, "the client is gone"))
        except Exception:
            # The model's own code may raise anything, with rows in the message: they go to no client.
            _LOGGER.exception("a request to %s failed", call.request.url.path)
            return error_response(RequestError(500, "the model failed; the log of the server says why"))

    def bind(self, call: Call) -> Servable:
        """Choose what answers a request: by its path, and by its unit where the requests for a name are divided.

        Raises:
            RequestError: Nothing has the name, version or label of the path.
        """
        if not call.is_fixed:
            path = call.request.path_params
            name, version, label = path["name"], path.get("version"), path.get("label")
            if name in self.traffics and version is None and label is None:
                call.traffic = self.traffics[name]
                call.variant = call.traffic.variant_of(call.unit)
                call.source = (call.variant or call.traffic.control).source
            else:
                call.source = self.sources.find(name, version, label)
        assert call.source is not None  # noqa: S101 - chosen above, or in advance
        call.model = call.source.model
        return call.model

    def named(self, call: Call) -> list[Source]:
        """Return all that may answer for the name of a bound request."""
        return list(call.traffic.sources) if call.traffic else self.sources.of(call.request.path_params["name"])

    async def _as_divided(self, call: Call, handle: Handler, response: Response, begin: float) -> Response:
        """Return the response of a request for a divided name, and take note of what the variant did.

        Where a variant fails and the control does not, the control's answer is returned.
        """
        traffic, model = call.traffic, call.model
        if traffic is None or model is None:
            return response
        variant = call.variant or traffic.control
        status = response.status_code
        if variant is not traffic.control and status in _MAY_BE_THE_VERSIONS:
            again = call.again(traffic.control.source, call.deadline)
            response = await self._response(again, handle)
            if status == 400 and response.status_code == 400:
                return response  # the request's own fault
            call.model, call.outputs = again.model, again.outputs
        if call.outputs is None and status < 500:
            return response  # nothing was asked of the model
        seconds = time.perf_counter() - begin
        has_failed = status >= 500 or (status == 400 and response.status_code == 200)
        self._add(traffic, variant, model, seconds, None if has_failed else call.outputs)
        if response.status_code == 200 and call.outputs is not None:
            if call.variant is not None and call.unit is not None and call.model is not None:
                traffic.log_exposure(call.unit, call.variant, call.model)
                response.headers[VARIANT_HEADER] = call.variant.name
            for shadow in traffic.shadows.values():
                self._begin_shadow(call, handle, shadow, traffic)
        return response

    def _add(
        self, traffic: Traffic, variant: Variant, model: Servable, seconds: float, outputs: Outputs | None
    ) -> None:
        """Count a request of a variant; without outputs it has failed."""
        variant.add(model, seconds, outputs)
        outcome = "failed" if outputs is None else "answered"
        self.metrics.variant_requests.labels(traffic.name, variant.name, model.version, outcome).inc()

    def _begin_shadow(self, call: Call, handle: Handler, shadow: Variant, traffic: Traffic) -> None:
        most = self.batch_limits.most_waiting_rows * (1 - _SHADOW_QUEUE_SHARE)
        if len(self._shadowed) >= _MOST_SHADOWED or self.batcher.waiting_rows > most:
            self.metrics.shadow_skipped.labels(traffic.name).inc()
            return
        task = asyncio.create_task(self._shadow(call, handle, shadow, traffic))
        self._shadowed.add(task)
        task.add_done_callback(self._shadowed.discard)

    async def _shadow(self, call: Call, handle: Handler, shadow: Variant, traffic: Traffic) -> None:
        begin = time.perf_counter()
        again = call.again(shadow.source, asyncio.get_running_loop().time() + self.limits.seconds)
        response = await self._response(again, handle)
        if response.status_code == 429 or again.model is None:
            return
        self._add(traffic, shadow, again.model, time.perf_counter() - begin, again.outputs)
        for difference in differences(call.outputs or {}, again.outputs or {}):
            self.metrics.shadow_difference.labels(shadow.name).observe(difference)

    async def body(self, call: Call) -> bytes:
        """Return the body of a request, unless the queue is full already.

        Raises:
            RequestError: There is no room in the queue (429), the body is too large (413) or too slow (408).
        """
        self.batcher.check_room()
        if call.content is not None:
            return call.content
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
        call.content = b"".join(parts)
        return call.content

    async def outputs(self, call: Call, model: Servable, rows: Rows) -> Outputs:
        """Return the outputs of ``model`` for the rows of a request.

        Raises:
            RequestError: The rows are none, too many, or not what the model reads (400), the queue is full (429), or
                the time of the request is over (504).
            Exception: What the model raised.
        """
        self.limits.check_rows(rows.count)
        checked = model.checked(rows)
        try:
            async with asyncio.timeout_at(call.deadline):
                call.outputs = await self.batcher.compute(model, checked)
        except TimeoutError:
            raise RequestError(504, f"there was no answer within {self.limits.seconds:g} s") from None
        if call.source is not None:
            call.source.example = {name: values[:1] for name, values in rows.columns.items()}
        return call.outputs

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
