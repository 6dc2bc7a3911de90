"""What every backend is to scoring: arrays in, arrays out, and what it tells of the model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from scoring.column_types import ELEMENT_TYPES, array_of

DTYPES: Mapping[str, Any] = {name: element.numpy for name, element in ELEMENT_TYPES.items()} | {"uint8": np.uint8}
"""NumPy's types of the elements of arrays, by what Spark calls a column of them; of ``uint8`` there is none."""

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
"""Spark's names of types by what NumPy and other libraries call them, and ``uint8``."""


class ModelOutputError(RuntimeError):
    """A model that does not take or give what its description says."""


class UnsupportedModelError(ValueError):
    """A model of a kind that cannot be scored here; the message says why and what to do."""


@dataclass(frozen=True)
class ArrayType:
    """An array that a model takes or gives; whether a column can hold it is another question.

    Attributes:
        name: As the model has it.
        element: Spark's name of the type of its values, or ``uint8``; None of any other type.
        shape: Length of each dimension, the rows' first; None for any.
        called: What the model calls it, for messages.
        optional: Whether the model says that it takes missing values.
    """

    name: str
    element: str | None
    shape: tuple[int | None, ...] = (None,)
    called: str = "an array"
    optional: bool = False

    @property
    def has_rows(self) -> bool:
        """Whether its first dimension is any number of rows."""
        return len(self.shape) > 0 and self.shape[0] is None

    @property
    def width(self) -> int | None:
        """Values per row where a column holds it, None for any number; ``[rows]`` and ``[rows, 1]`` have one."""
        return 1 if len(self.shape) < 2 else self.shape[1]

    @property
    def column_type(self) -> str:
        """Spark's name of the type of a column that holds it.

        Raises:
            UnsupportedModelError: No column can.
        """
        if self.element is None or self.element not in ELEMENT_TYPES or not self.has_rows or len(self.shape) > 2:
            raise UnsupportedModelError(
                f"'{self.name}' is {self.called} of shape {list(self.shape)}; arrays of one or two dimensions, of "
                f"which the first is the rows (any number, or the same for all inputs), become columns, if they are of "
                f"{sorted(ELEMENT_TYPES)}: export the model so, decode such an input, or leave such an output out"
            )
        return self.element if self.width == 1 else array_of(self.element)


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, as far as its file tells.

    Attributes:
        inputs: In the model's order.
        outputs: In the model's order.
        columns: Names of the columns that make up the one input, where the model knows them.
        texts_are_bytes: Whether its strings may be any bytes, as TensorFlow's are.
        rows: The number of rows that every call has to have; None for any.
        compiles_each_shape: Whether it is compiled anew for every number of rows that it is called with. XLA does so,
            and nothing else here: graphs of TensorFlow and ONNX are made once, for any number, when they are loaded;
            boosters and linear models have none. What the code of an MLflow model does is not known.
    """

    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    columns: tuple[str, ...] | None = None
    texts_are_bytes: bool = False
    rows: int | None = None
    compiles_each_shape: bool = False

    def with_rows(self) -> "Signature":
        """Return it with ``rows``, where the model has a fixed number: the same first dimension in all its inputs.

        Its arrays are then of any number of rows, as those of other models are. A fixed length beside any number of
        rows counts something else, and stays.
        """
        lengths = {array.shape[0] if array.shape else None for array in self.inputs}
        rows = lengths.pop() if len(lengths) == 1 else None
        if not rows:
            return self
        inputs, outputs = _of_any_rows(self.inputs, rows), _of_any_rows(self.outputs, rows)
        return replace(self, inputs=inputs, outputs=outputs, rows=rows)


def _of_any_rows(arrays: tuple[ArrayType, ...], rows: int) -> tuple[ArrayType, ...]:
    """Return arrays of so many rows as arrays of any number; others stay."""
    return tuple(
        replace(array, shape=(None, *array.shape[1:])) if array.shape[:1] == (rows,) else array for array in arrays
    )


class Backend(Protocol):
    """A model that is loaded, ready to be called.

    Attributes:
        signature: What the model takes and gives.
        threads: Threads that it computes with.
    """

    signature: Signature
    threads: int

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs for a batch of at least one row: of the signature's number where it has one.

        Args:
            inputs: All of the signature's, with ``[rows]`` for ``[rows, 1]`` where that is more convenient.
            outputs: Names of outputs of the signature.
        """


def element_of(dtype: np.dtype[Any]) -> str | None:
    """Return Spark's name of a type of NumPy's, ``uint8`` among them; None where it has none."""
    return ELEMENTS.get("string" if dtype.kind in "US" else dtype.name)


def number_outside(values: np.ndarray, dtype: np.dtype[Any]) -> int | None:
    """Return a whole number of ``values`` that a type of whole numbers does not hold, None where it holds all."""
    if dtype.kind not in "iu" or values.dtype.kind not in "iu" or not values.size:
        return None
    if np.can_cast(values.dtype, dtype, "safe"):
        return None
    limits = np.iinfo(dtype)
    ends = int(values.min()), int(values.max())
    return next((number for number in ends if not limits.min <= number <= limits.max), None)


def with_rank(values: np.ndarray, rank: int | None) -> np.ndarray:
    """Return ``[rows]`` as ``[rows, 1]`` where that is what the model takes, and everything else as it is."""
    return values.reshape(-1, 1) if rank == 2 and values.ndim == 1 else values


def thread_count(threads: int | None) -> int:
    """Return how many threads to compute with: ``threads``, or for None one per core that this process may run on."""
    return threads or len(os.sched_getaffinity(0))
