"""Columns of lists: their check, their lengths and their values."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import raw_columns


def check_lists(columns: Sequence[str], names: Iterable[str]) -> None:
    """Check that a table of lists has some columns, each of them once.

    Raises:
        ColumnError: One is missing, or there twice.
    """
    for name in names:
        if (count := list(columns).count(name)) != 1:
            problem = f"has the column '{name}' {count} times"
            if not count:
                problem = f"has no column '{name}'{raw_columns.meant(name, columns)}"
            raise raw_columns.ColumnError(f"the table of lists {problem}; it has {list(columns)}")


def is_list(type_: pa.DataType) -> bool:
    """Return whether a column of this type has a list in each row."""
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def lists_of(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return the length of each list, int64 ``[rows]`` with 0 for null, and the values of all."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, column.flatten()


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Return each list's first place among the values of all, and their number at the end: int64 ``[lists + 1]``."""
    return np.append(0, np.cumsum(lengths)).astype(np.int64)
