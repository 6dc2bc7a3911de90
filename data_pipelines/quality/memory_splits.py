"""Splits of a small table in memory, the same as those that :mod:`data_pipelines.quality.splits` makes in Spark."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.dataset import SPLITS
from mirrorspark.data_pipelines.quality.split_rules import (
    BOUNDS,
    HASH_BITS,
    MOST_RARE_VALUES,
    RARE_ROWS,
    SplitError,
    bounds_of_rare_value,
    require_apart,
    require_column,
    require_label,
)
from mirrorspark.data_pipelines.sources import MemorySource


def with_split(
    table: MemorySource, keys: Sequence[str], *, time: str | None, label: str | None, seed: int, split_column: str
) -> MemorySource:
    """Return the table with a split; see :func:`data_pipelines.quality.default_split`."""
    split = _split_by_hash(table, keys, label, seed) if time is None else _split_by_time(table, time)
    return table.with_column(split_column, split)


def _split_by_hash(table: MemorySource, keys: Sequence[str], label: str | None, seed: int) -> pa.Array:
    fractions = _key_fractions(table, keys, seed)
    validation, test = (np.full(len(fractions), bound) for bound in BOUNDS)
    if label is not None:
        require_label(table.columns, label)
        for rows in _rows_of_rare_values(table.column(label)):
            validation[rows], test[rows] = bounds_of_rare_value(np.sort(fractions[rows]).tolist(), *BOUNDS)
    return _named(fractions, validation, test)


def _key_fractions(table: MemorySource, keys: Sequence[str], seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each row; see :func:`data_pipelines.quality.splits.key_fraction`."""
    texts = [table.column(key).cast(pa.string()) for key in keys]
    parts = [pc.fill_null(pc.binary_join_element_wise("=", text, ""), "") for text in texts]
    hashed = table.hashes(pa.array(np.full(table.rows.num_rows, seed, np.int32)), *parts)
    return (hashed.view(np.uint64) >> np.uint64(64 - HASH_BITS)) / 2.0**HASH_BITS


def _rows_of_rare_values(column: pa.Array) -> list[np.ndarray]:
    """Return the rows of each value that few rows have; none if such values are many, or no plain values."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_boolean(kind) or _is_number(kind)):
        return []
    if pa.types.is_floating(kind):
        column = pc.add(column, pa.scalar(0.0, kind))  # -0.0 becomes 0.0
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    codes = column.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    found = np.unique(codes[codes >= 0], return_counts=True)
    rare = [code for code, rows in zip(*found, strict=True) if rows <= RARE_ROWS]
    return [np.flatnonzero(codes == code) for code in rare] if len(rare) <= MOST_RARE_VALUES else []


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _split_by_time(table: MemorySource, name: str) -> pa.Array:
    require_column(table.columns, name)
    column = table.column(name)
    times = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64())
    # As Spark's percentiles are made of doubles.
    rising = np.sort(times.drop_null().to_numpy().astype(np.float64))
    places = [int(np.ceil(share * len(rising))) - 1 for share in BOUNDS]
    found = [rising[place] for place in places] if len(rising) else []
    require_apart(name, rising[0] if len(rising) else None, found)
    if column.null_count:
        raise SplitError(f"column '{name}' is null; a split by time needs every row's time")
    return _named(times.to_numpy(), *found)


def _named(values: np.ndarray, validation: np.ndarray | float, test: np.ndarray | float) -> pa.Array:
    """Return the split of each row, by the least values of the validation and of the test rows."""
    places = (values >= validation).astype(np.int8) + (values >= test)
    return pa.array(SPLITS).take(pa.array(places))
