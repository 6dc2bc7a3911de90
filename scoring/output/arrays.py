"""Checks of a model's outputs against its description, and their conversion to Arrow."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mirrorspark.scoring.backends import protocol
from mirrorspark.scoring.input import column_types

_CHARACTERS_IN_MESSAGE = 40


def no_values(type_: str) -> np.ndarray:
    """Return an empty output of a type: ``[0]``, or ``[0, 0]`` for lists."""
    arrow_type = column_types.ARROW_TYPES[type_]
    if pa.types.is_list(arrow_type):
        return np.empty((0, 0), arrow_type.value_type.to_pandas_dtype())
    return np.empty(0, arrow_type.to_pandas_dtype())


def checked_output(
    name: str, described: str, values: np.ndarray, rows: int, labels: Sequence[str] | None
) -> np.ndarray:
    """Return an output after a check of its shape; ``[rows, 1]`` becomes ``[rows]``.

    Raises:
        ModelOutputError: The shape does not fit the type or the number of labels.
    """
    dimensions = 2 if pa.types.is_list(column_types.ARROW_TYPES[described]) else 1
    if dimensions == 1 and values.shape == (rows, 1):
        return values[:, 0]
    if values.ndim != dimensions or len(values) != rows:
        raise protocol.ModelOutputError(
            f"output '{name}' has shape {values.shape} for {rows} rows; its type {described} needs "
            f"{'[rows, k]' if dimensions == 2 else '[rows]'}"
        )
    if labels is not None and values.shape[1] != len(labels):
        raise protocol.ModelOutputError(
            f"output '{name}' has {values.shape[1]} elements per row, and the model has {len(labels)} labels for them; "
            f"have its postprocess give one per label"
        )
    return values


def arrow_array(name: str, values: np.ndarray, arrow_type: pa.DataType) -> pa.Array:
    """Return values ``[rows]`` or ``[rows, k]`` of an output as scalars or lists of ``arrow_type``.

    Raises:
        ModelOutputError: A string is not UTF-8.
    """
    is_list = pa.types.is_list(arrow_type)
    try:
        # TensorFlow's strings are bytes, which become binary in pyarrow; the cast checks that they are UTF-8.
        scalars = pa.array(values.ravel()).cast(arrow_type.value_type if is_list else arrow_type)
    except (pa.ArrowInvalid, UnicodeEncodeError):
        _check_texts(name, values)
        raise
    if not is_list:
        return scalars
    rows, length = values.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * length)
    return pa.ListArray.from_arrays(offsets, scalars)


def _check_texts(name: str, values: np.ndarray) -> None:
    """Find the string that is not UTF-8. This is slow, and called only when there is one.

    Raises:
        ModelOutputError: Names the string.
    """
    for (row, *_), value in np.ndenumerate(values):
        if not _is_utf8(value):
            raise protocol.ModelOutputError(
                f"output '{name}' is not UTF-8 in row {row} (of {len(values)} scored together, the first is 0): "
                f"{value[:_CHARACTERS_IN_MESSAGE]!r}; have the model give UTF-8, decode it in a postprocess of its "
                f"hooks, or package the model without that output"
            )


def _is_utf8(value: object) -> bool:
    try:
        if isinstance(value, bytes):
            value.decode()
        elif isinstance(value, str):
            value.encode()
    except UnicodeError:
        return False
    return True
