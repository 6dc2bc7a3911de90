"""What every backend is to scoring: arrays in, arrays out, and what it tells of the model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NUMPY_TYPES: Mapping[str, str] = {
    "bool": "boolean",
    "int32": "int",
    "int64": "bigint",
    "float32": "float",
    "float64": "double",
    "object": "string",
    "str": "string",
}
"""Types of arrays by NumPy's name, and what Spark calls a column of them."""


class ModelOutputError(RuntimeError):
    """A model that does not take or give what its description says."""


class UnsupportedModelError(ValueError):
    """A model of a kind that cannot be scored here; the message says why and what to do."""


@dataclass(frozen=True)
class ArrayType:
    """An array that a model takes or gives.

    Attributes:
        name: As the model has it.
        element: Spark's name of the type of its values.
        width: Values per row, None for any number. One value per row is ``[rows]`` or ``[rows, 1]``.
        optional: Whether the model says that it takes missing values.
    """

    name: str
    element: str
    width: int | None = 1
    optional: bool = False

    @property
    def column_type(self) -> str:
        """Spark's name of the type of a column that holds it."""
        return self.element if self.width == 1 else f"array<{self.element}>"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, as far as its file tells.

    Attributes:
        inputs: In the model's order.
        outputs: In the model's order.
        columns: Names of the columns that make up the one input, where the model knows them.
    """

    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    columns: tuple[str, ...] | None = None


class Backend(Protocol):
    """A model that is loaded, ready to be called.

    Attributes:
        signature: What the model takes and gives.
        threads: Threads that it computes with.
    """

    signature: Signature
    threads: int

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs for a batch of at least one row.

        Args:
            inputs: All of the signature's, ``[rows]`` or ``[rows, k]``.
            outputs: Names of outputs of the signature.
        """


def array_type(subject: str, name: str, element: str | None, shape: Sequence[int | None], what: str) -> ArrayType:
    """Return the type of an array whose rows come first in ``shape``.

    Args:
        subject: What the model is, for the message.
        name: Name of the array.
        element: Spark's name of its values' type; None where it has none.
        shape: Length of each dimension; None for any.
        what: How the model calls its type, for the message.

    Raises:
        UnsupportedModelError: A column cannot hold the array.
    """
    if element is None or not 1 <= len(shape) <= 2 or shape[0] is not None:
        raise UnsupportedModelError(
            f"{subject}: '{name}' is {what} of shape {list(shape)}; arrays of one or two dimensions, of which the "
            f"first is any number of rows, become columns, if they are of {sorted(set(NUMPY_TYPES.values()))}: export "
            f"the model so"
        )
    return ArrayType(name, element, 1 if len(shape) == 1 else shape[1])


def with_rank(values: np.ndarray, rank: int | None) -> np.ndarray:
    """Return ``[rows]`` as ``[rows, 1]`` where that is what the model takes, and everything else as it is."""
    return values.reshape(-1, 1) if rank == 2 and values.ndim == 1 else values


def thread_count(threads: int | None) -> int:
    """Return how many threads to compute with where ``threads`` are allowed: None allows one per core."""
    return threads or len(os.sched_getaffinity(0))
