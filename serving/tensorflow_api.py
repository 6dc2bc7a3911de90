"""TensorFlow Serving's REST API: status, metadata, predict, classify and regress.

Source: https://www.tensorflow.org/tfx/serving/api_rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route

from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import Field
from mirrorspark.serving.rows import SIGNATURE, Rows, document_of, example_rows, predicted_rows
from mirrorspark.serving.servable import Outputs, Servable, has_numbers_only
from mirrorspark.serving.service import Call, Service

PROTOCOL = "tensorflow"

_MODEL = "/v1/models/{name:str}"
# The usual one first: routes are tried in this order.
_PLACES = (_MODEL, f"{_MODEL}/versions/{{version:str}}", f"{_MODEL}/labels/{{label:str}}")
_VERBS = ("predict", "classify", "regress")
# Names of the two classes of a binary model, as TensorFlow's estimators have them.
_BINARY = ("0", "1")


def routes(service: Service) -> list[Route]:
    """Return the routes of the API."""
    api = _Api(service)
    found: list[Route] = []
    for place in _PLACES:
        for path, handle, method in (
            *((f"{place}:{verb}", getattr(api, verb), "POST") for verb in _VERBS),
            (f"{place}/metadata", api.metadata, "GET"),
            (place, api.status, "GET"),
        ):
            found.append(Route(path, service.endpoint(PROTOCOL, handle), methods=[method]))
    return found


def predictions(outputs: Outputs, fields: Sequence[Field], rows: int) -> list[Any]:
    """Return outputs as a list of rows: objects, or bare values where there is one output."""
    if len(fields) == 1:
        return outputs[fields[0].name]
    return [{field.name: outputs[field.name][row] for field in fields} for row in range(rows)]


def classes(model: Servable, outputs: Outputs) -> list[list[tuple[str, float]]]:
    """Return the classes of each row with their scores.

    Raises:
        RequestError: The model's outputs are not scores of classes.
    """
    if model.task == "binary":
        # A float32 of 0.9 has 0.1 as its counterpart, not 0.09999999999999998.
        return [list(zip(_BINARY, (round(1 - score, 9), score), strict=True)) for score in outputs["score"]]
    if not model.labels:
        raise RequestError(400, f"model '{model.name}' has no classes with names; ask it with :predict")
    name, labels = next(iter(model.labels.items()))
    return [list(zip(labels, scores, strict=True)) for scores in outputs[name]]


@dataclass(frozen=True)
class _Api:
    service: Service

    async def predict(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)

        def read(body: bytes) -> tuple[bool, Rows]:
            document = document_of(body, self.service.limits.values)
            return "instances" in document, predicted_rows(document, model.columns)

        has_instances, rows = await self.service.rows(call, read)
        outputs = await self.service.outputs(call, model, rows)
        if has_instances:
            return {"predictions": predictions(outputs, model.outputs, rows.count)}
        only = len(model.outputs) == 1
        return {"outputs": outputs[model.outputs[0].name] if only else dict(outputs)}

    async def classify(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)
        if model.task != "binary" and not model.labels:
            classes(model, {})  # raises before a row is computed
        outputs = await self._of_examples(call, model)
        return {"result": await self.service.made(call, classes, model, outputs)}

    async def regress(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)
        if not has_numbers_only(model):
            raise RequestError(400, f"model '{model.name}' has not one number per row; ask it with :predict")
        return {"result": (await self._of_examples(call, model))[model.outputs[0].name]}

    async def status(self, call: Call) -> dict[str, Any]:
        parameters = call.request.path_params
        if (verb := call.request.url.path.rpartition(":")[2]) in _VERBS:
            raise RequestError(405, f":{verb} answers to POST alone")
        self.service.bind(call)
        assert call.source is not None  # noqa: S101 - bind chose it
        if "version" in parameters or "label" in parameters:
            states = [state for state in call.source.states if state[1] == "AVAILABLE"]
        else:
            states = list(dict.fromkeys(state for source in self.service.named(call) for state in source.states))
        return {"model_version_status": [_status(*state) for state in states]}

    async def metadata(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call)
        signature = {
            "inputs": {field.name: _tensor(field) for field in model.inputs},
            "outputs": {field.name: _tensor(field) for field in model.outputs},
            "method_name": "tensorflow/serving/predict",
        }
        return {
            "model_spec": {"name": model.name, "signature_name": "", "version": model.version},
            "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
        }

    async def _of_examples(self, call: Call, model: Servable) -> Outputs:
        most_values = self.service.limits.values
        rows = await self.service.rows(call, lambda body: example_rows(document_of(body, most_values), model.columns))
        return await self.service.outputs(call, model, rows)


def _status(version: str, state: str, error: str) -> dict[str, Any]:
    code = "UNKNOWN" if error else "OK"
    return {"version": version, "state": state, "status": {"error_code": code, "error_message": error}}


def _tensor(field: Field) -> dict[str, Any]:
    dimensions = [{"size": str(size), "name": ""} for size in field.shape]
    return {
        "dtype": field.tensorflow_type,
        "tensor_shape": {"dim": dimensions, "unknown_rank": False},
        "name": field.name,
    }
