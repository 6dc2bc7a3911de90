"""Alignment of two tables of scores by their keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_KEYS_IN_MESSAGE = 3
_POSITION = "__position"


def join_on_keys(reference: pa.Table, candidate: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """Return both tables with rows aligned by key, in the reference's order.

    Candidate keys of another width (int32 and int64, for example) are cast to the reference's type.

    Args:
        reference: key columns and any others.
        candidate: the same keys in any order.
        keys: names of the key columns.

    Raises:
        ValueError: a key column is missing, has nulls or another type, or a key occurs twice or on one side only.
    """
    if not keys:
        raise ValueError("keys is empty; name at least one key column to join on")
    expected = _key_table("reference", reference, keys)
    actual = _cast_keys(_key_table("candidate", candidate, keys), expected.schema)
    for name, table in (("reference", expected), ("candidate", actual)):
        counts = table.group_by(list(keys)).aggregate([([], "count_all")])
        repeated = counts.filter(pc.greater(counts["count_all"], 1))
        if repeated.num_rows:
            raise ValueError(
                f"{name} has {repeated.num_rows} keys more than once, for example {_examples(repeated, keys)}; "
                "keys must name one row each"
            )
    for name, table, other_name, other in (
        ("candidate", actual, "reference", expected),
        ("reference", expected, "candidate", actual),
    ):
        missing = other.join(table, keys=list(keys), join_type="left anti")
        if missing.num_rows:
            raise ValueError(
                f"{name} lacks {missing.num_rows} keys that {other_name} has, for example {_examples(missing, keys)} "
                f"(reference {reference.num_rows} rows, candidate {candidate.num_rows} rows); score the same rows"
            )
    positions = pa.array(np.arange(candidate.num_rows))
    # Arrow's join returns rows in any order, so it carries both positions and the result is sorted by the reference's.
    joined = expected.append_column(_POSITION, pa.array(np.arange(reference.num_rows))).join(
        actual.append_column(f"{_POSITION}_candidate", positions), keys=list(keys), join_type="inner"
    )
    order = np.empty(reference.num_rows, dtype=np.int64)
    order[joined[_POSITION].to_numpy()] = joined[f"{_POSITION}_candidate"].to_numpy()
    return reference, candidate.take(pa.array(order))


def _key_table(side: str, table: pa.Table, keys: Sequence[str]) -> pa.Table:
    for name in keys:
        if name not in table.column_names:
            raise ValueError(f"{side} has no key column {name!r}; it has {table.column_names}")
        nulls = table[name].null_count
        if nulls:
            raise ValueError(f"{side} key {name!r} is null in {nulls} rows; a row without its key cannot be compared")
    return table.select(list(keys))


def _cast_keys(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for position, field in enumerate(schema):
        try:
            table = table.set_column(position, field.name, table[field.name].cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"key {field.name!r} is {field.type} in reference but {table[field.name].type} in candidate, "
                f"and cannot be converted: {error}"
            ) from error
    return table


def _examples(table: pa.Table, keys: Sequence[str]) -> str:
    rows = table.select(list(keys)).sort_by([(name, "ascending") for name in keys]).slice(0, _KEYS_IN_MESSAGE)
    return "; ".join(", ".join(f"{name}={value}" for name, value in row.items()) for row in rows.to_pylist())
