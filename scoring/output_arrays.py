"""What a model gives, checked against its description, and made Arrow's."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from scoring.backends.protocol import ModelOutputError
from scoring.column_types import ARROW_TYPES

_CHARACTERS_IN_MESSAGE = 40


def no_values(type_: str) -> np.ndarray:
    """Return an output of the type of this name for no rows: ``[0]``, or ``[0, 0]`` of a type of lists."""
    arrow_type = ARROW_TYPES[type_]
    if pa.types.is_list(arrow_type):
        return np.empty((0, 0), arrow_type.value_type.to_pandas_dtype())
    return np.empty(0, arrow_type.to_pandas_dtype())


def checked_output(
    name: str, described: str, values: np.ndarray, rows: int, labels: Sequence[str] | None
) -> np.ndarray:
    """Return an output of the model, if it is of the shape that its type says; ``[rows, 1]`` as ``[rows]``.

    Raises:
        ModelOutputError: It is not, or has not an element for each label.
    """
    dimensions = 2 if pa.types.is_list(ARROW_TYPES[described]) else 1
    if dimensions == 1 and values.shape == (rows, 1):
        return values[:, 0]
    if values.ndim != dimensions or len(values) != rows:
        raise ModelOutputError(
            f"output '{name}' has shape {values.shape} for {rows} rows; its type {described} needs "
            f"{'[rows, k]' if dimensions == 2 else '[rows]'}"
        )
    if labels is not None and values.shape[1] != len(labels):
        raise ModelOutputError(
            f"output '{name}' has {values.shape[1]} elements per row, and the model has {len(labels)} labels for them; "
            f"have its postprocess give one per label"
        )
    return values


def arrow_array(name: str, values: np.ndarray, arrow_type: pa.DataType) -> pa.Array:
    """Return ``[rows]`` or ``[rows, k]`` values of an output as an array of ``arrow_type``: a scalar, or k in a list.

    Raises:
        ModelOutputError: A text is not UTF-8.
    """
    is_list = pa.types.is_list(arrow_type)
    try:
        # TensorFlow's strings are bytes, which pyarrow takes for binary; the cast checks that they are UTF-8.
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
    """Check that the texts of an output are UTF-8, one by one: slow, and only asked once one is known not to be.

    Raises:
        ModelOutputError: One is not.
    """
    for (row, *_), value in np.ndenumerate(values):
        if not _is_utf8(value):
            raise ModelOutputError(
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
