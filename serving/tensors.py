"""Tensors of the Open Inference Protocol, version 2, as JSON has them.

Source: https://github.com/open-inference/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mirrorspark.scoring.input import column_types
from mirrorspark.serving.errors import RequestError
from mirrorspark.serving.fields import SPARSE_VECTOR, DataType, Field
from mirrorspark.serving.rows import (
    MOST_VALUES,
    Rows,
    bytes_of,
    check_vectors,
    lacking,
    problems_text,
    shown,
    vector_of,
)

_BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64, "UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64}
_NUMBERS = ("FP16", "FP32", "FP64", "BF16")
_LARGEST = int(sys.float_info.max)
_MOST_DIMENSIONS = 8
_MOST_SIZE = 2**63


def _is_whole(datatype: DataType) -> Callable[[Any], bool]:
    bits = _BITS[datatype]
    least, most = (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return lambda value: type(value) is int and least <= value <= most


def _is_whole_float(value: Any) -> bool:
    """Return whether a whole number is one that a float can be near to."""
    return type(value) is int and abs(value) <= _LARGEST


_FITS: Mapping[DataType, Callable[[Any], bool]] = {
    "BOOL": lambda value: type(value) is bool,
    "BYTES": lambda value: type(value) is str,
    **{name: lambda value: type(value) is float or _is_whole_float(value) for name in _NUMBERS},
    **{name: _is_whole(name) for name in _BITS},
}


def tensor_rows(
    document: Mapping[str, Any],
    fields: Sequence[Field],
    check_rows: Callable[[int], None],
    most_values: int = MOST_VALUES,
) -> Rows:
    """Return the rows of an ``infer`` request; null in ``data`` is a missing value, and further inputs are ignored.

    Bytes that the model reads as they are, such as images, are sent as base64.

    Args:
        document: The request.
        fields: The inputs of the model.
        check_rows: Raises unless a request may have these rows. It is asked before there is a list of them, since
            rows without elements cost their sender nothing.
        most_values: Most entries of sparse vectors.

    Raises:
        RequestError: An input is missing or malformed, or has an element that is not of its datatype.
    """
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise RequestError(400, "'inputs' is not a list of tensors, each with name, shape, datatype and data")
    by_name = {name: one for one in inputs if isinstance(name := one.get("name"), str)}
    if missing := [field.name for field in fields if field.name not in by_name]:
        raise RequestError(400, lacking("'inputs'", missing, by_name, [field.name for field in fields]))
    counts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {}
    for field in fields:
        counts[field.name], columns[field.name] = _values(field, by_name[field.name], check_rows)
    if len(set(counts.values())) > 1:
        raise RequestError(400, f"the inputs have different numbers of rows (first dimension of shape): {counts}")
    check_vectors(columns, most_values)
    return Rows(columns, next(iter(counts.values()), 0), "row")


def output_tensor(field: Field, values: Sequence[Any]) -> dict[str, Any]:
    """Return an output as a tensor; lists of different lengths are filled up with null."""
    if not column_types.is_array(field.type):
        return {"name": field.name, "datatype": field.datatype, "shape": [len(values)], "data": list(values)}
    width = max((len(one or ()) for one in values), default=0)
    flat = [element for one in values for element in [*(one or ()), *[None] * (width - len(one or ()))]]
    return {"name": field.name, "datatype": field.datatype, "shape": [len(values), width], "data": flat}


def wanted_outputs(document: Mapping[str, Any], fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the outputs that an ``infer`` request asks for, in its order; all if it names none.

    Raises:
        RequestError: It names one that the model does not have.
    """
    asked = document.get("outputs")
    if not asked:
        return tuple(fields)
    known = {field.name: field for field in fields}
    objects = asked if isinstance(asked, list) else [asked]
    names = [name for one in objects if isinstance(one, dict) and isinstance(name := one.get("name"), str)]
    if len(names) < len(objects) or not known.keys() >= set(names) or not isinstance(asked, list):
        raise RequestError(400, f"'outputs' is {shown(asked)}; name some of {list(known)}, each as an object with name")
    return tuple(known[name] for name in dict.fromkeys(names))


def _values(field: Field, tensor: Mapping[str, Any], check_rows: Callable[[int], None]) -> tuple[int, list[Any]]:
    """Return the number of rows of a tensor, and the value of each."""
    shape, datatype, data = tensor.get("shape"), tensor.get("datatype"), tensor.get("data")
    if (
        not isinstance(shape, list)
        or not 0 < len(shape) <= _MOST_DIMENSIONS
        or not all(type(size) is int and 0 <= size < _MOST_SIZE for size in shape)
    ):
        raise RequestError(
            400,
            f"input '{field.name}' has the shape {shown(shape)}; give [rows] or [rows, elements], and at most "
            f"{_MOST_DIMENSIONS} dimensions",
        )
    check_rows(shape[0])
    if not isinstance(datatype, str) or datatype not in _FITS:
        raise RequestError(400, f"input '{field.name}' has the datatype {shown(datatype)}; use one of {list(_FITS)}")
    if not isinstance(data, list):
        raise RequestError(400, f"input '{field.name}' has no list as data; binary data is not supported")
    elements, needed = _flat(field.name, data, shape), math.prod(shape)
    if len(elements) != needed:
        raise RequestError(
            400, f"input '{field.name}' has {len(elements)} elements, and its shape {shape} needs {needed}"
        )
    width = math.prod(shape[1:])
    _check_elements(field.name, datatype, elements, max(width, 1))
    if datatype in _NUMBERS:
        elements = [None if one is None else float(one) for one in elements]
    elif field.type == SPARSE_VECTOR:
        elements = _each(field.name, vector_of, elements, max(width, 1))
    elif column_types.element_name(field.type) == "binary":
        elements = _each(field.name, bytes_of, elements, max(width, 1))
    if not column_types.is_array(field.type) and len(shape) <= 2 and width == 1:
        return shape[0], elements
    if len(shape) == 1:
        raise RequestError(400, f"input '{field.name}' has the shape {shape}; its values are lists: [rows, elements]")
    return shape[0], [elements[row * width : (row + 1) * width] for row in range(shape[0])]


def _check_elements(name: str, datatype: DataType, elements: Sequence[Any], width: int) -> None:
    fits = _FITS[datatype]
    problems = [
        f"row[{place // width}]: input '{name}' has {shown(value)}, which is not of type {datatype}"
        for place, value in enumerate(elements)
        if value is not None and not fits(value)
    ]
    if problems:
        raise RequestError(400, problems_text(problems))


def _each(name: str, read: Callable[[Any], Any], elements: Sequence[Any], width: int) -> list[Any]:
    """Return the results of ``read`` on the elements that exist."""
    found = []
    for place, one in enumerate(elements):
        try:
            found.append(None if one is None else read(one))
        except RequestError as error:
            raise RequestError(400, f"row[{place // width}]: input '{name}': {error}") from None
    return found


def _flat(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return the elements of ``data``, which may be nested as the shape says, in row-major order.

    Raises:
        RequestError: It is nested more deeply.
    """
    for _ in shape:
        if not any(isinstance(one, list) for one in data):
            return data
        data = [element for one in data for element in (one if isinstance(one, list) else [one])]
    if any(isinstance(one, list) for one in data):
        raise RequestError(400, f"input '{name}' has lists on more levels than its shape {list(shape)} has dimensions")
    return data
