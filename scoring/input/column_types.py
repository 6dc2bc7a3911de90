"""Types of the columns that models read and return, by their names in Spark."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mirrorspark.data_pipelines.features import raw_columns

_ARRAY, _END = "array<", ">"


@dataclass(frozen=True)
class ElementType:
    """The type of a single value or of an array's elements.

    Attributes:
        numpy: NumPy's type; ``object`` for strings and bytes.
        fits: Predicate for Arrow types that can be cast to it; the cast may only round numbers.
    """

    arrow: pa.DataType
    numpy: type
    fits: Callable[[pa.DataType], bool]
    can_be_nan: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of a value in NumPy; a string counts as a pointer."""
        return np.dtype(self.numpy).itemsize


def _is_whole(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(column_type) or pa.types.is_boolean(column_type))


def _is_text(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))


def _is_bytes(column_type: pa.DataType) -> bool:
    return any(
        check(column_type) for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    )


def array_of(element: str) -> str:
    """Return the name of the type of arrays of ``element``."""
    return f"{_ARRAY}{element}{_END}"


def is_array(column_type: str) -> bool:
    """Return whether a column type is an array."""
    return column_type.startswith(_ARRAY)


def element_name(column_type: str) -> str:
    """Return the name of the value type of a column, for an array the type of its elements."""
    return column_type[len(_ARRAY) : -len(_END)] if column_type.startswith(_ARRAY) else column_type


ELEMENT_TYPES: Mapping[str, ElementType] = {
    "boolean": ElementType(pa.bool_(), np.bool_, pa.types.is_boolean),
    "int": ElementType(pa.int32(), np.int32, _is_whole),
    "bigint": ElementType(pa.int64(), np.int64, _is_whole),
    "float": ElementType(pa.float32(), np.float32, raw_columns.is_number, can_be_nan=True),
    "double": ElementType(pa.float64(), np.float64, raw_columns.is_number, can_be_nan=True),
    "string": ElementType(pa.string(), np.object_, _is_text),
    "binary": ElementType(pa.binary(), np.object_, _is_bytes),
}

_GIVEN = {name: element.arrow for name, element in ELEMENT_TYPES.items() if name != "binary"}

ARROW_TYPES: Mapping[str, pa.DataType] = _GIVEN | {array_of(name): pa.list_(arrow) for name, arrow in _GIVEN.items()}
"""Arrow types of models' outputs."""

COLUMN_TYPES = (*ELEMENT_TYPES, *(name for name in ARROW_TYPES if is_array(name)))
"""Names of input column types, which include bytes."""
