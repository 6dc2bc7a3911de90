"""Tables in memory as their users gave them, pandas, Polars or PyArrow: their columns, and others next to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def is_table(table: Any) -> bool:
    """Return whether this is a table in memory, of one of the three libraries."""
    kind = type(table)
    is_frame = kind.__module__.startswith(("pandas", "polars")) and hasattr(kind, "columns")
    return is_frame or isinstance(table, pa.Table)


def column_names(table: Any) -> list[Any]:
    """Return the names of the columns; of a LazyFrame without reading its rows."""
    if isinstance(table, pa.Table):
        return list(table.column_names)
    return list(table.collect_schema().names() if _is_polars(table) else getattr(table, "columns", ()))


def index_names(table: Any) -> list[Any]:
    """Return the names of a pandas index, which identifies rows as columns do; none of another table."""
    index = None if _is_polars(table) else getattr(table, "index", None)
    return [name for name in getattr(index, "names", ()) if name is not None]


def selected(table: Any, names: Sequence[str]) -> Any:
    """Return some of the columns in the form of ``table``, with the index of pandas; a LazyFrame becomes rows."""
    if isinstance(table, pa.Table) or _is_polars(table):
        chosen = table.select(list(names))
        return chosen.collect() if hasattr(chosen, "collect") else chosen
    return table[list(names)]


def numbered(table: Any, name: str) -> Any:
    """Return the table with the position of each row, from 0, as its last column."""
    if isinstance(table, pa.Table):
        return table.append_column(name, pa.array(np.arange(table.num_rows)))
    if _is_polars(table):
        import polars  # only a user who has it gives its tables

        return table.with_columns(polars.int_range(polars.len(), dtype=polars.Int64).alias(name))
    return table.assign(**{name: np.arange(len(table))})


def with_columns(table: Any, added: pa.Table, rows: np.ndarray | None = None) -> Any:
    """Return a table with further columns, in the form of ``table`` and with the index of pandas.

    Args:
        table: A result of :func:`selected`.
        added: The further columns.
        rows: int64 ``[rows of added]``: the row of ``table`` that each belongs to; None for one each, in order.
    """
    if isinstance(table, pa.Table):
        kept = table if rows is None else table.take(pa.array(rows))
        for name in added.column_names:
            kept = kept.append_column(name, added[name])
        return kept
    if _is_polars(table):
        import polars  # only a user who has it gives its tables

        if not table.columns:  # and so no rows
            return polars.DataFrame(added)
        return (table if rows is None else table[rows]).hstack(polars.DataFrame(added))
    import pandas as pd

    kept = table if rows is None else table.iloc[rows]
    return pd.concat([kept, added.to_pandas().set_axis(kept.index)], axis=1)


def in_form_of(rows: pa.Table, table: Any) -> Any:
    """Return rows in the form of a table in memory: pandas, Polars or PyArrow."""
    if isinstance(table, pa.Table):
        return rows
    if _is_polars(table):
        import polars  # only a user who has it gives its tables

        return polars.DataFrame(rows)
    return rows.to_pandas()


def _is_polars(table: Any) -> bool:
    return type(table).__module__.startswith("polars")
