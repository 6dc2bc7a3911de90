"""Interface of all backends: arrays in, arrays out, and the signature of the model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.input import column_types

DTYPES: Mapping[str, Any] = {name: element.numpy for name, element in column_types.ELEMENT_TYPES.items()} | {
    "uint8": np.uint8
}
"""NumPy types of arrays by Spark's name of the column type, and ``uint8``, which no column has."""

ELEMENTS: Mapping[str, str] = {
    "bool": "boolean",
    "int32": "int",
    "int64": "bigint",
    "float32": "float",
    "float64": "double",
    "uint8": "uint8",
    "object": "string",
    "string": "string",
}
"""Spark's names of types, and ``uint8``, by their names in NumPy and other libraries."""


class ModelOutputError(ClearError, RuntimeError):
    """Raised when inputs or outputs of a model differ from its description."""


class UnsupportedModelError(ClearError, ValueError):
    """Raised for a model that cannot be scored; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class ArrayType:
    """Type of an input or output array of a model; not every such array fits into a column.

    Attributes:
        name: Name in the model.
        element: Spark's name for the type of its values, or ``uint8``; None for any other type.
        shape: Length of each dimension, rows first; None for any length.
        called: Description of the type for messages.
        optional: Whether the model accepts missing values.
    """

    name: str
    element: str | None
    shape: tuple[int | None, ...] = (None,)
    called: str = "an array"
    optional: bool = False

    @property
    def has_rows(self) -> bool:
        """True if the first dimension can have any length."""
        return len(self.shape) > 0 and self.shape[0] is None

    @property
    def width(self) -> int | None:
        """Values per row, None for any number; ``[rows]`` and ``[rows, 1]`` have one."""
        return 1 if len(self.shape) < 2 else self.shape[1]

    @property
    def column_type(self) -> str:
        """Spark's name for the type of a column of such values.

        Raises:
            UnsupportedModelError: No column can hold them.
        """
        if (
            self.element is None
            or self.element not in column_types.ELEMENT_TYPES
            or not self.has_rows
            or len(self.shape) > 2
        ):
            raise UnsupportedModelError(
                f"'{self.name}' is {self.called} of shape {list(self.shape)}; arrays of one or two dimensions, of "
                f"which the first is the rows (any number, or the same for all inputs), become columns, if they are of "
                f"{sorted(column_types.ELEMENT_TYPES)}: export the model so, decode such an input, or leave such an "
                f"output out"
            )
        return self.element if self.width == 1 else column_types.array_of(self.element)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model according to its file.

    Attributes:
        inputs: Inputs in the model's order.
        outputs: Outputs in the model's order.
        columns: Names of the columns of a single input array, if the model knows them.
        texts_are_bytes: Whether its strings may be any bytes, as in TensorFlow.
        rows: Fixed number of rows of a call; None for any.
        compiles_each_shape: Whether the model is compiled for every new number of rows. Only XLA does so: graphs of
            TensorFlow and ONNX are built once at loading, for any number of rows, and boosters and linear models have
            no graph. The code of MLflow models is unknown.
    """

    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    columns: tuple[str, ...] | None = None
    texts_are_bytes: bool = False
    rows: int | None = None
    compiles_each_shape: bool = False

    def with_rows(self) -> "Signature":
        """Return the signature with ``rows`` set if all inputs have the same fixed first dimension.

        This dimension then becomes open in its arrays, as in other models. A fixed first dimension is kept if other
        inputs have an open one, because it does not count rows.
        """
        lengths = {array.shape[0] if array.shape else None for array in self.inputs}
        rows = lengths.pop() if len(lengths) == 1 else None
        if not rows:
            return self
        inputs, outputs = _of_any_rows(self.inputs, rows), _of_any_rows(self.outputs, rows)
        return replace(self, inputs=inputs, outputs=outputs, rows=rows)


def _of_any_rows(arrays: tuple[ArrayType, ...], rows: int) -> tuple[ArrayType, ...]:
    """Return arrays with a first dimension of ``rows`` as arrays of any number of rows, and others unchanged."""
    return tuple(
        replace(array, shape=(None, *array.shape[1:])) if array.shape[:1] == (rows,) else array for array in arrays
    )


class Backend(Protocol):
    """A loaded model."""

    signature: Signature
    threads: int

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs for a batch of at least one row, or of the signature's number of rows.

        Args:
            inputs: All inputs of the signature; ``[rows]`` is accepted for ``[rows, 1]``.
            outputs: Names of outputs.
        """


def element_of(dtype: np.dtype[Any]) -> str | None:
    """Return Spark's name or ``uint8`` for a NumPy type, or None."""
    return ELEMENTS.get("string" if dtype.kind in "US" else dtype.name)


def number_outside(values: np.ndarray, dtype: np.dtype[Any]) -> int | None:
    """Return an integer of ``values`` outside the range of the integer type ``dtype``, or None."""
    if dtype.kind not in "iu" or values.dtype.kind not in "iu" or not values.size:
        return None
    if np.can_cast(values.dtype, dtype, "safe"):
        return None
    limits = np.iinfo(dtype)
    ends = int(values.min()), int(values.max())
    return next((number for number in ends if not limits.min <= number <= limits.max), None)


def with_rank(values: np.ndarray, rank: int | None) -> np.ndarray:
    """Return ``[rows]`` as ``[rows, 1]`` if ``rank`` is 2, and other arrays unchanged."""
    return values.reshape(-1, 1) if rank == 2 and values.ndim == 1 else values


def thread_count(threads: int | None) -> int:
    """Return ``threads``, or for None the number of cores that this process may use."""
    return threads or len(os.sched_getaffinity(0))
