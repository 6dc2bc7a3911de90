"""Request handling shared by all protocols: limits, checks, batching, and an answer that names the version."""

import asyncio
import json
import logging
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mirrorspark.serving.batching import Batcher, BatchLimits, ComputedBatch
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.http_server import json_value
from mirrorspark.serving.metrics import ServerMetrics
from mirrorspark.serving.rows import MOST_VALUES, Rows, shown, with_texts
from mirrorspark.serving.servable import Outputs, Servable, label_of
from mirrorspark.serving.sources import ServedSources, Source
from mirrorspark.serving.traffic_split import TrafficSplit, Variant, differences

VERSION_HEADER, NAME_HEADER, VARIANT_HEADER = "X-Model-Version", "X-Model-Name", "X-Model-Variant"

T = TypeVar("T")

_LOGGER = logging.getLogger(__name__)
_NOT_KNOWN = ""
# Statuses that may be the version's fault: another one may answer the same request.
_MAY_BE_THE_VERSIONS = (400, 500)
# Status where a model's own code has failed.
_OWN_CODES = 500
# A body that is parsed, and outputs that are written, within a millisecond or two: handing them over takes as long.
_SMALL_BODY_BYTES = 16 * 2**10
_SMALL_OUTPUTS = 4096
# Elements of a list that are written by one call: rows, so that each may be a list itself.
_JSON_ELEMENTS = 32
# Bodies of the largest size that may arrive at the same time; smaller ones share their room.
_MOST_BODIES = 32
# A length with more digits is left to the count of what arrives.
_LENGTH_DIGITS = 19
# Requests that wait for shadows; further ones are left out.
_MOST_SHADOWED = 64


@dataclass(frozen=True)
class RequestLimits:
    """Limits of a request.

    Attributes:
        body_bytes: Size of its body.
        rows: Its rows.
        seconds: Time until its answer; the body has to arrive and the model to compute within it.
        values: Numbers, texts, lists and objects in its JSON, or cells in its CSV.
    """

    body_bytes: int = 4 * 2**20
    rows: int = 1024
    seconds: float = 10.0
    values: int = MOST_VALUES

    def __post_init__(self) -> None:
        if min(self.body_bytes, self.rows, self.values) < 1 or not 0 < self.seconds < math.inf:
            raise ValueError(
                f"body_bytes {self.body_bytes}, rows {self.rows}, seconds {self.seconds} and values {self.values} must "
                f"be above 0"
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
    """A request and its state so far.

    Attributes:
        request: The request.
        deadline: When its time is over, in the seconds of the event loop.
        is_fixed: Whether ``source`` was chosen in advance, whatever the path names.
        is_shadow: Whether nobody waits for the answer.
        source: The source that answers.
        model: The version that answers; it stays the same although the source may change.
        traffic: The division of the requests for the name in the path, or None.
        unit: The unit in the request's header, or None.
        variant: The variant of the unit, or None.
        content: The body, once it has arrived and is unpacked.
        arrived: When it had, in the seconds of ``time.perf_counter``.
        outputs: The model's outputs, or None.
    """

    request: Request
    deadline: float
    is_fixed: bool = False
    is_shadow: bool = False
    source: Source | None = None
    model: Servable | None = None
    traffic: TrafficSplit | None = None
    unit: str | None = None
    variant: Variant | None = None
    content: bytes | None = None
    arrived: float = 0.0
    outputs: Outputs | None = None

    def again(self, source: Source, deadline: float, *, is_shadow: bool = False) -> "Call":
        """Return the same request, to be answered by a certain source."""
        return Call(self.request, deadline, is_fixed=True, is_shadow=is_shadow, source=source, content=self.content)


Handler: TypeAlias = Callable[[Call], Awaitable[dict[str, Any]]]


@dataclass
class Service:
    """The models, and state that all requests share.

    Attributes:
        traffics: How the requests for some names are divided between versions.
        is_draining: Returns whether the server is about to end: it answers, but says that it is not ready.
        has_tokens: Whether each request has a token, so that all callers are trusted with what they say of units.
        has_failed: Whether the server ends because a part of it has failed.
    """

    sources: ServedSources
    limits: RequestLimits
    batch_limits: BatchLimits
    is_draining: Callable[[], bool] = lambda: False
    traffics: Mapping[str, TrafficSplit] = field(default_factory=dict)
    has_tokens: bool = False
    has_failed: bool = False
    batcher: Batcher = field(init=False)
    shadow_batcher: Batcher = field(init=False)
    metrics: ServerMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.batch_limits, self._on_batch)
        self.metrics = ServerMetrics(self.sources.all, self.traffics.values(), lambda: self.batcher.waiting_rows)
        # A thread of their own: a slow shadow must not delay an answer.
        self.shadow_batcher = Batcher(BatchLimits(self.batch_limits.most_rows), lambda batch: None)
        self._shadowed: set[asyncio.Task[None]] = set()
        self._arriving_bytes = 0
        # One thread: several that parse would take the interpreter in turn, and the event loop would wait for all.
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large requests")

    def endpoint(self, protocol: str, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of a route: it answers with the result of ``handle`` as JSON, or with its error."""

        async def answer(request: Request) -> Response:
            begin = time.perf_counter()
            call = Call(request, asyncio.get_running_loop().time() + self.limits.seconds)
            response = await self._response(call, handle)
            if call.traffic is not None:
                response = await self._as_divided(call, handle, response)
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
            return await self.made(call, json_response, await handle(call))
        except RequestError as error:
            return error_response(error)
        except ClientDisconnect:
            return error_response(RequestError(400, "the client has disconnected"))
        except Exception:
            # The model's own code may raise anything, with rows in the message: they go to no client.
            _LOGGER.exception("%s has failed with a request", label_of(call.model) if call.model else "the server")
            return error_response(RequestError(500, "the model failed; the log of the server says why"))

    def only_name(self) -> str:
        """Return the model that answers requests without a model name: the one under experiment, or the only one.

        Raises:
            RequestError: There are several.
        """
        names = [*self.traffics] or self.sources.names
        if len(names) > 1:
            raise RequestError(400, f"the path names none of the models {names}; ask for /v1/models/NAME:predict")
        return names[0]

    def bind(self, call: Call, name: str | None = None) -> Servable:
        """Choose the model for a request: by its path, and by its unit if the requests for a name are divided.

        Args:
            call: The request.
            name: Requested model; by default the path has it.

        Raises:
            RequestError: Nothing has the name, version or label of the path.
        """
        if not call.is_fixed:
            path = call.request.path_params
            name, version, label = name or path["name"], path.get("version"), path.get("label")
            if name in self.traffics and version is None and label is None:
                call.traffic = self.traffics[name]
                call.unit = _unit_of(call.request, call.traffic)
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

    async def _as_divided(self, call: Call, handle: Handler, response: Response) -> Response:
        """Return the response of a request for a divided name, and count its variant's outcome.

        Where a variant fails and the control does not, the control's answer is returned. Of callers who are not
        trusted, errors of a model's own code alone count, and the control's do not: a caller could refuse, delay or
        fail requests of a variant of its choice by their rows, or keep the checks blind by those of the control.
        """
        traffic, variant, model = call.traffic, call.variant, call.model
        if traffic is None or model is None or call.content is None:
            return response  # nothing was asked of a model
        seconds, status, is_trusted = time.perf_counter() - call.arrived, response.status_code, self.trusts(traffic)
        has_failed = status >= 500
        is_others = variant is not None and variant is not traffic.control
        if is_others and status in _MAY_BE_THE_VERSIONS:
            again = call.again(traffic.control.source, call.deadline)
            response = await self._response(again, handle)
            if again.outputs is None:
                return response  # whose fault it was is not known
            call.model, call.outputs, has_failed = again.model, again.outputs, True
        counts_as_failed = is_trusted or (is_others and status == _OWN_CODES)
        if variant is not None and (counts_as_failed if has_failed else call.outputs is not None):
            self._add(traffic, variant, model, seconds, None if has_failed else call.outputs)
        if response.status_code == 200 and call.outputs is not None:
            self._log_exposure(call, response)
            for shadow in traffic.shadows.values():
                self._begin_shadow(call, handle, shadow, traffic)
        return response

    def trusts(self, traffic: TrafficSplit) -> bool:
        """Return whether only trusted callers can choose their unit."""
        return self.has_tokens or traffic.trusts_callers

    def _log_exposure(self, call: Call, response: Response) -> None:
        """Write down that the request's unit has its variant, and say so in the answer's head."""
        if call.traffic is None or call.variant is None or call.unit is None or call.model is None:
            return
        if not call.traffic.log_exposure(call.unit, call.variant, call.model):
            self.metrics.exposures_lost.labels(call.traffic.name).inc()
        response.headers[VARIANT_HEADER] = call.variant.name

    def _add(
        self, traffic: TrafficSplit, variant: Variant, model: Servable, seconds: float, outputs: Outputs | None
    ) -> None:
        """Count a request of a variant; without outputs it has failed."""
        traffic.add(variant, model, seconds, outputs, is_trusted=self.trusts(traffic))
        outcome = "failed" if outputs is None else "answered"
        self.metrics.variant_requests.labels(traffic.name, variant.name, model.version, outcome).inc()

    def _begin_shadow(self, call: Call, handle: Handler, shadow: Variant, traffic: TrafficSplit) -> None:
        if len(self._shadowed) >= _MOST_SHADOWED:
            self.metrics.shadow_skipped.labels(traffic.name).inc()
            return
        task = asyncio.create_task(self._shadow(call, handle, shadow, traffic))
        self._shadowed.add(task)
        task.add_done_callback(self._shadowed.discard)

    async def _shadow(self, call: Call, handle: Handler, shadow: Variant, traffic: TrafficSplit) -> None:
        begin = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        again = call.again(shadow.source, deadline, is_shadow=True)
        response = await self._response(again, handle)
        if response.status_code == 429 or again.model is None:
            return
        self._add(traffic, shadow, again.model, time.perf_counter() - begin, again.outputs)
        for difference in differences(call.outputs or {}, again.outputs or {}):
            self.metrics.shadow_difference.labels(shadow.name).observe(difference)

    async def rows(self, call: Call, read: Callable[[bytes], T]) -> T:
        """Return the result of ``read`` on a request's body; large ones are read outside the event loop.

        Raises:
            RequestError: There is no room for the request (429), its body is too large (413), too slow (408) or packed
                in an unknown way (415), or its time is over (504); others are those of ``read``.
        """
        if call.content is None:
            call.content = await self._body(call)
            call.arrived = time.perf_counter()
        if len(call.content) <= _SMALL_BODY_BYTES:
            return read(call.content)
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self._in_thread(read, call.content)
        except TimeoutError:
            raise self._too_late() from None

    async def _body(self, call: Call) -> bytes:
        """Return the body of a request, unpacked, unless the queue is full already."""
        self.batcher.check_room()
        encoding = call.request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise RequestError(415, f"the content encoding is {shown(encoding)}; send gzip, or none")
        length = call.request.headers.get("content-length", "")
        if length.isdigit() and len(length) < _LENGTH_DIGITS and int(length) > self.limits.body_bytes:
            raise self._too_large()
        body = await self._arrived(call)
        if encoding == "identity":
            return body
        try:
            async with asyncio.timeout_at(call.deadline):
                return await self._in_thread(self._unpacked, body)
        except TimeoutError:
            raise self._too_late() from None

    async def _arrived(self, call: Call) -> bytes:
        parts, size = [], 0
        try:
            async with asyncio.timeout_at(call.deadline):
                async for part in call.request.stream():
                    size += len(part)
                    self._arriving_bytes += len(part)
                    if size > self.limits.body_bytes:
                        raise self._too_large()
                    if self._arriving_bytes > _MOST_BODIES * self.limits.body_bytes:
                        raise RequestError(429, "too many large requests arrive at once; ask again in 1 s", 1)
                    parts.append(part)
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self.limits.seconds:g} s") from None
        finally:
            self._arriving_bytes -= size
        return b"".join(parts)

    def _unpacked(self, body: bytes) -> bytes:
        """Return the content of a gzip body, and stop if it is larger than a body may be."""
        found, most = bytearray(), self.limits.body_bytes
        try:
            while body:
                gzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
                found += gzip.decompress(body, most + 1 - len(found))
                if len(found) > most:
                    raise self._too_large()
                if not gzip.eof:
                    raise RequestError(400, "the body is not a whole gzip file")
                body = gzip.unused_data
        except zlib.error as error:
            raise RequestError(400, f"the body is not a gzip file: {error}") from None
        return bytes(found)

    async def made(self, call: Call, make: Callable[..., T], *arguments: Any) -> T:
        """Return the result of ``make`` on a request's outputs; of large ones outside the event loop."""
        if call.outputs is not None and _size(call.outputs) > _SMALL_OUTPUTS:
            return await self._in_thread(make, *arguments)
        return make(*arguments)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._large, function, *arguments)

    async def outputs(self, call: Call, model: Servable, rows: Rows) -> Outputs:
        """Return the outputs of ``model`` for the rows of a request.

        Raises:
            RequestError: The rows are none, too many, or not what the model reads (400), the queue is full (429), or
                the time of the request is over (504).
            Exception: The model's error.
        """
        self.limits.check_rows(rows.count)
        rows = with_texts(rows, model.inputs)
        try:
            async with asyncio.timeout_at(call.deadline):
                batcher = self.shadow_batcher if call.is_shadow else self.batcher
                call.outputs = await batcher.compute(model, rows)
        except TimeoutError:
            raise self._too_late() from None
        if call.source is not None:
            call.source.example = {name: values[:1] for name, values in rows.columns.items()}
        return call.outputs

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the body has more than {self.limits.body_bytes} bytes; send fewer rows at a time")

    def _too_late(self) -> RequestError:
        return RequestError(504, f"there was no answer within {self.limits.seconds:g} s")

    def _on_batch(self, batch: ComputedBatch) -> None:
        name = batch.model.name
        self.metrics.batch_rows.labels(name).observe(batch.rows)
        self.metrics.batch_requests.labels(name).observe(batch.requests)
        self.metrics.batch_seconds.labels(name).observe(batch.seconds)


def _unit_of(request: Request, traffic: TrafficSplit) -> str | None:
    """Return the unit in a header, which is a text in UTF-8.

    Raises:
        RequestError: It is not, or lacks the signature that it should have.
    """
    header = traffic.unit_header
    value = request.headers.get(header)
    if value is None:
        return None
    try:
        # Headers are read as Latin-1, which keeps all bytes.
        text = value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise RequestError(400, f"the header {header} is not text in UTF-8") from None
    return traffic.unit_of(text)


def json_response(content: Any, status: int = 200) -> Response:
    """Return a response with JSON, which has null in place of NaN and infinities."""
    return Response("".join(_json_parts(content)), status, media_type="application/json")


def _json_parts(content: Any) -> Iterator[str]:
    """Yield JSON in parts: one call for a long list would keep other threads from the interpreter for too long."""
    if isinstance(content, dict):
        for place, (name, value) in enumerate(content.items()):
            yield f"{',' if place else '{'}{json.dumps(name)}:"
            yield from _json_parts(value)
        yield "}" if content else "{}"
    elif isinstance(content, list) and len(content) > _JSON_ELEMENTS:
        for start in range(0, len(content), _JSON_ELEMENTS):
            yield "," if start else "["
            yield _json(content[start : start + _JSON_ELEMENTS])[1:-1]
        yield "]"
    else:
        yield _json(content)


def _json(content: Any) -> str:
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(json_value(content), allow_nan=False, separators=(",", ":"))


def _size(outputs: Outputs) -> int:
    """Return about how many values outputs have; the lists of one are mostly equally long."""
    firsts = (values[0] if values else None for values in outputs.values())
    return sum(
        len(values) * (len(first) if isinstance(first, list) else 1)
        for values, first in zip(outputs.values(), firsts, strict=True)
    )


def error_response(error: RequestError) -> Response:
    """Return the response of an error, in the form that both protocols have."""
    response = json_response({"error": error.message}, error.status)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response
