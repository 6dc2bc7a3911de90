"""The Open Inference Protocol, version 2: health, metadata and inference on typed tensors.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from starlette.routing import Route

from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import Field
from mirrorspark.serving.rows import Rows, document_of, shown
from mirrorspark.serving.service import Call, Service
from mirrorspark.serving.tensors import output_tensor, tensor_rows, wanted_outputs

PROTOCOL = "v2"
HEALTH = "/v2/health"
"""The paths below it are answered without a token, because probes have none."""

_MODEL = "/v2/models/{name:str}"


def routes(service: Service) -> list[Route]:
    """Return the routes of the protocol."""
    api = _Api(service)
    found = [
        ("/v2", api.server, "GET"),
        (f"{HEALTH}/live", api.live, "GET"),
        (f"{HEALTH}/ready", api.ready, "GET"),
    ]
    for place in (f"{_MODEL}/versions/{{version:str}}", _MODEL):
        found += [
            (f"{place}/ready", api.model_ready, "GET"),
            (f"{place}/infer", api.infer, "POST"),
            (place, api.model, "GET"),
        ]
    return [Route(path, service.endpoint(PROTOCOL, handle), methods=[method]) for path, handle, method in found]


def check_ready(service: Service) -> dict[str, Any]:
    """Return the answer to a probe.

    Raises:
        RequestError: The server is about to end.
    """
    if service.is_draining():
        raise RequestError(503, "the server is about to end")
    return {"ready": True}


@dataclass(frozen=True)
class _Api:
    service: Service

    async def server(self, call: Call) -> dict[str, Any]:
        return {"name": "mirrorspark", "version": version("mirrorspark"), "extensions": []}

    async def live(self, call: Call) -> dict[str, Any]:
        return {"live": True}

    async def ready(self, call: Call) -> dict[str, Any]:
        return check_ready(self.service)

    async def model_ready(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)
        await self.ready(call)
        return {"name": model.name, "ready": True}

    async def model(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)
        versions = [one.model.version for one in self.service.named(call)]
        return {
            "name": model.name,
            "versions": list(dict.fromkeys(versions)),
            "platform": f"mirrorspark_{model.task}" if model.task else "mirrorspark_package",
            "inputs": [_tensor(field) for field in model.inputs],
            "outputs": [_tensor(field) for field in model.outputs],
        }

    async def infer(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)
        if "inference-header-content-length" in call.request.headers:
            raise RequestError(400, "binary data is not supported; send the tensors as JSON")
        limits = self.service.limits

        def read(body: bytes) -> tuple[str | None, tuple[Field, ...], Rows]:
            document = document_of(body, limits.values)
            asked = document.get("id")
            if asked is not None and not isinstance(asked, str):
                raise RequestError(400, f"'id' is {shown(asked)}, not a text")
            rows = tensor_rows(document, model.inputs, limits.check_rows, limits.values)
            return asked, wanted_outputs(document, model.outputs), rows

        asked, fields, rows = await self.service.rows(call, read)
        outputs = await self.service.outputs(call, model, rows)
        answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
        if asked is not None:
            answer["id"] = asked

        def tensors() -> list[dict[str, Any]]:
            return [output_tensor(field, outputs[field.name]) for field in fields]

        return answer | {"outputs": await self.service.made(call, tensors)}


def _tensor(field: Field) -> dict[str, Any]:
    return {"name": field.name, "datatype": field.datatype, "shape": field.shape}
