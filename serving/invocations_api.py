"""The two routes of SageMaker's containers, with the bodies that MLflow's scoring server takes: JSON and CSV.

Sources: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html (``/ping``,
``/invocations``), https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/ (bodies).
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import Route

from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import SPARSE_VECTOR, Field
from mirrorspark.serving.inference_api import check_ready
from mirrorspark.serving.rows import (
    MOST_VALUES,
    Rows,
    check_values,
    check_vectors,
    document_of,
    lacking,
    of_columns,
    predicted_rows,
    problems_text,
    record_rows,
    shown,
    vector_of,
)
from mirrorspark.serving.service import Call, Service

PROTOCOL = "invocations"
PING = "/ping"
HEALTH = "/health"
"""Both are answered without a token, because probes have none; MLflow's server has both."""

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
# pandas writes whole numbers and booleans as floats where one of their column is missing.
_WHOLE_END = re.compile(r"(?<=\d)\.0+$")
# How a cell of CSV is read, by the type of its column. Python would read 1_000 as a number, too.
_READERS: Mapping[str, Callable[[str], Any]] = {
    "boolean": lambda text: _BOOLEANS[text.lower()],
    **dict.fromkeys(("int", "bigint"), lambda text: int(_WHOLE_END.sub("", text.replace("_", "?")))),
    **dict.fromkeys(("float", "double"), lambda text: float(text.replace("_", "?"))),
    "string": str,
    SPARSE_VECTOR: vector_of,
}


def routes(service: Service) -> list[Route]:
    """Return the routes."""
    api = _Api(service)
    return [
        *(Route(path, service.endpoint(PROTOCOL, api.ping), methods=["GET"]) for path in (PING, HEALTH)),
        Route("/invocations", service.endpoint(PROTOCOL, api.invoke), methods=["POST"]),
    ]


@dataclass(frozen=True)
class _Api:
    service: Service

    async def ping(self, call: Call) -> dict[str, Any]:
        return check_ready(self.service)

    async def invoke(self, call: Call) -> dict[str, Any]:
        model = self.service.bind(call, self.service.only_name())
        given = call.request.headers.get("content-type", "")
        media_type = given.partition(";")[0].strip().lower()
        if media_type not in ("application/json", "text/csv"):
            raise RequestError(415, f"the content type is {shown(given)}; send application/json or text/csv")
        limits = self.service.limits

        def read(body: bytes) -> Rows:
            if media_type == "text/csv":
                return csv_rows(body, model.inputs, limits.check_rows, limits.values)
            return json_rows(document_of(body, limits.values), model.columns)

        rows = await self.service.rows(call, read)
        outputs = await self.service.outputs(call, model, rows)
        names = [field.name for field in model.outputs]
        return {"predictions": [{name: outputs[name][row] for name in names} for row in range(rows.count)]}


def json_rows(document: Mapping[str, Any], columns: Sequence[str]) -> Rows:
    """Return the rows of a request in JSON.

    Args:
        document: The request.
        columns: The columns that the model reads.

    Raises:
        RequestError: They are not what the model reads.
    """
    if document.get("params"):
        raise RequestError(400, "no model here takes 'params'; leave them out")
    if len(found := [form for form in _FORMS if form in document]) != 1:
        raise RequestError(400, f"give one of {list(_FORMS)}; the body has {found or 'none'}")
    if found == ["dataframe_records"]:
        return record_rows(document, "dataframe_records", columns)
    if found == ["dataframe_split"]:
        return _split_rows(document["dataframe_split"], columns)
    return predicted_rows(document, columns)


def csv_rows(
    body: bytes, fields: Sequence[Field], check_rows: Callable[[int], None], most_values: int = MOST_VALUES
) -> Rows:
    """Return the rows of CSV in UTF-8, whose first line has the columns; an empty cell is a missing value.

    Args:
        body: The request.
        fields: The inputs of the model.
        check_rows: Raises unless a request may have this number of rows.
        most_values: Most cells, and entries of the vectors in them.

    Raises:
        RequestError: The body is not CSV, has too many cells, lacks a column, or has a cell that is not of its column's
            type.
    """
    if odd := [field.name for field in fields if field.type not in _READERS]:
        raise RequestError(400, f"the columns {odd} have values that CSV cannot hold; send JSON")
    check_values(body.count(b",") + body.count(b"\n") + body.count(b"\r") + 1, most_values)
    try:
        head, *lines = [
            line for line in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if line
        ]
    except (ValueError, csv.Error) as error:
        raise RequestError(400, f"the body is not CSV in UTF-8 with a line of columns: {error}") from None
    if missing := [field.name for field in fields if field.name not in head]:
        raise RequestError(400, lacking("the first line", missing, head, [field.name for field in fields]))
    check_rows(len(lines))
    wrong = [row for row, line in enumerate(lines) if len(line) != len(head)]
    problems = [f"row[{row}] has {len(lines[row])} cells, and the first line {len(head)} columns" for row in wrong]
    if not problems:
        places = {field: head.index(field.name) for field in fields}
        cells = {field: [line[place] for line in lines] for field, place in places.items()}
        columns = {field.name: _values(field, texts, problems) for field, texts in cells.items()}
    if problems:
        raise RequestError(400, problems_text(problems))
    check_vectors(columns, most_values)
    return Rows(columns, len(lines), "row")


def _values(field: Field, texts: Sequence[str], problems: list[str]) -> list[Any]:
    """Return the values of a column, and add to ``problems`` those that are not of its type."""
    read, values = _READERS[field.type], []
    for number, text in enumerate(texts):
        try:
            values.append(read(text) if text else None)
        except (ValueError, KeyError, RequestError):
            problems.append(f"row[{number}]: column '{field.name}' is {shown(text)}, which is not of type {field.type}")
    return values


def _split_rows(table: Any, columns: Sequence[str]) -> Rows:
    names, lines = (table.get("columns"), table.get("data")) if isinstance(table, dict) else (None, None)
    if not isinstance(names, list) or not isinstance(lines, list):
        raise RequestError(400, "'dataframe_split' is not an object with the lists 'columns' and 'data'")
    if wrong := [row for row, line in enumerate(lines) if not isinstance(line, list) or len(line) != len(names)]:
        raise RequestError(400, problems_text([f"data[{row}] is not a list of {len(names)} values" for row in wrong]))
    # The first of two equal names, as in CSV; columns that the model does not read are ignored.
    places = {str(name): place for place, name in reversed([*enumerate(names)])}
    if missing := [name for name in columns if name not in places]:
        raise RequestError(400, lacking("'data'", missing, places, columns))
    given = {name: [line[places[name]] for line in lines] for name in columns}
    return of_columns(given, columns, "data")
