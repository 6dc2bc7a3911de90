"""Absolute differences of two arrays of scores, their statistics, and the keys of the rows where they are largest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from mirrorspark.scoring.parity.report import ParityReport, WorstRow

Keys: TypeAlias = "pa.Table | Mapping[str, ArrayLike]"


def check_shapes(expected: NDArray[Any], actual: NDArray[Any]) -> None:
    """Check that two arrays can be compared element by element.

    Raises:
        ValueError: Their shapes differ.
    """
    if expected.shape != actual.shape:
        raise ValueError(
            f"reference has shape {expected.shape} but candidate has {actual.shape}; "
            "score the same rows, and align them with join_on_keys"
        )


def absolute_difference(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the difference of each element; it is infinite if either side is NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected - actual)
    # Equal infinities subtract to NaN but do not differ. A NaN score differs from everything, including NaN.
    difference[expected == actual] = 0.0
    return np.where(np.isnan(difference), np.inf, difference)


def report_of(
    expected: NDArray[np.float64],
    actual: NDArray[np.float64],
    difference: NDArray[np.float64],
    tolerance: float,
    *,
    threshold: float | None,
    threshold_flips: int,
    worst: tuple[WorstRow, ...],
    order_changes: int = 0,
    identical_order_share: float | None = None,
) -> ParityReport:
    """Return the report with the statistics of the differences of two arrays ``[rows, k]``."""
    flat = np.sort(difference, axis=None)
    largest = float(flat[-1])
    return ParityReport(
        rows=len(difference),
        mean=float(flat.mean()),
        # inf - inf would make it NaN. The sample form (n - 1) is that of `describe` in pandas and Spark.
        std=math.inf if math.isinf(largest) else float(flat.std(ddof=1)) if flat.size > 1 else 0.0,
        p25=_percentile(flat, 0.25),
        p50=_percentile(flat, 0.50),
        p75=_percentile(flat, 0.75),
        p99=_percentile(flat, 0.99),
        max=largest,
        max_relative=_max_relative(expected, actual, difference),
        tolerance=tolerance,
        above_tolerance=int((flat > tolerance).sum()),
        nans=int((np.isnan(expected) | np.isnan(actual)).sum()),
        threshold=threshold,
        threshold_flips=threshold_flips,
        worst=worst,
        order_changes=order_changes,
        identical_order_share=identical_order_share,
    )


def _max_relative(expected: NDArray[np.float64], actual: NDArray[np.float64], difference: NDArray[np.float64]) -> float:
    """Return the largest difference relative to the larger magnitude of the two scores."""
    if np.isinf(difference).any():
        return math.inf
    magnitude = np.maximum(np.abs(expected), np.abs(actual))
    differs = difference > 0
    return float((difference[differs] / magnitude[differs]).max(initial=0.0))


def _percentile(ordered: NDArray[np.float64], share: float) -> float:
    """Return NumPy's linear percentile of sorted values, correct for infinite values too."""
    position = (ordered.size - 1) * share
    low, high = float(ordered[math.floor(position)]), float(ordered[math.ceil(position)])
    return low if low == high else low + (high - low) * (position - math.floor(position))


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
