"""Selection of the rows with the largest differences, and their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mirrorspark.scoring.parity.report import WorstRow

Keys: TypeAlias = "pa.Table | Mapping[str, ArrayLike]"


def key_columns(keys: Keys | None, rows: int) -> dict[str, Any]:
    """Return the key columns by name, or the row numbers without keys.

    Raises:
        ValueError: A key column has another number of rows.
    """
    if keys is None:
        return {"row": range(rows)}
    names = keys.column_names if isinstance(keys, pa.Table) else list(keys)
    columns: dict[str, Any] = {name: keys[name] for name in names}
    for name, column in columns.items():
        if len(column) != rows:
            raise ValueError(f"key column {name!r} has {len(column)} rows but there are {rows} scores")
    return columns


def key_values(columns: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return the keys of one row."""
    return {name: plain_value(column[row]) for name, column in columns.items()}


def plain_value(value: Any) -> Any:
    """Return the Python value of a NumPy or Arrow scalar."""
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if isinstance(value, np.generic) else value


def largest_first(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return positions of the ``count`` largest values above zero, largest first, ties by position."""
    positions = np.flatnonzero(values > 0)
    if positions.size > count > 0:
        # Rows that cannot be among the largest are dropped before sorting: millions may differ in the last bit.
        floor = np.partition(values[positions], -count)[-count]
        positions = positions[values[positions] >= floor]
    order = np.argsort(-values[positions], kind="stable")[:count]
    return np.asarray(positions[order], dtype=np.int64)


def worst_row(
    keys: dict[str, Any],
    expected: NDArray[np.float64],
    actual: NDArray[np.float64],
    difference: NDArray[np.float64],
    cell: tuple[int, int],
) -> WorstRow:
    """Return the scores of both sides at ``cell``, a row and a column."""
    return WorstRow(keys, float(expected[cell]), float(actual[cell]), float(difference[cell]))
