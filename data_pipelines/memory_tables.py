"""Tables in memory, pandas, Polars or PyArrow, as Arrow tables with the types that Spark takes; needs no Spark."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines import held_columns
from mirrorspark.storage import Location

# The key of a table in memory that has none: the position of the row.
ROW_NUMBER = "row_number"

# How a column of each library becomes text.
_AS_TEXT = {"pandas": "astype(str)", "polars": "cast(pl.String)", "pyarrow": "cast('string')"}

CATEGORIES = "mirrorspark.categories"
"""Metadata of a column that was a categorical of pandas or Polars, or a dictionary of Arrow: its values as text, the
lowest first, or an empty list if they have no order.
"""


class TableError(ClearError, ValueError):
    """A value that is not a table, or a table that Spark cannot take; the message gives the remedy."""


def is_in_memory(table: Any) -> bool:
    """Return True for a pandas, Polars or PyArrow table, whose rows have an order."""
    return not hasattr(table, "sparkSession") and not isinstance(table, Location | list | tuple)


def numbered(table: Any) -> pa.Table:
    """Return a table in memory with the column ``row_number``, the position of the row from 0.

    Raises:
        TableError: It already has such a column, or is not a table.
    """
    arrow = in_arrow(table)
    if ROW_NUMBER in arrow.column_names:
        raise TableError(f"the table has a column '{ROW_NUMBER}' already; give it as the key, or rename it")
    return arrow.append_column(ROW_NUMBER, pa.array(range(arrow.num_rows), pa.int64()))


def in_arrow(table: Any, needed: Collection[str] = ()) -> pa.Table:
    """Return a table in memory with types that Spark takes.

    A column of another type, such as a time of day, is left out with a warning.

    Args:
        table: The table.
        needed: Columns that may not be left out.

    Raises:
        TableError: It is not a table or has no columns, its columns have no names that can be told apart, or no column
            can be held, or not one that is needed.
    """
    reasons: dict[str, str] = {}
    if isinstance(table, pa.Table):
        arrow = table
    elif type(table).__module__.startswith("polars") and hasattr(type(table), "columns"):
        arrow, reasons = held_columns.of_polars(getattr(table, "collect", lambda: table)())
    elif type(table).__module__.startswith("pandas") and hasattr(table, "columns"):
        _require_texts(table.columns)
        arrow, reasons = held_columns.of_pandas(table)
    else:
        raise TableError(
            f"a {type(table).__name__} is not a table; give a Spark, pandas or Polars DataFrame, a PyArrow table, the "
            f"name of a table, or the path of Parquet, CSV or JSON files"
        )
    if not reasons and not arrow.num_columns:
        rows = len(table) if _library(table) == "pandas" else arrow.num_rows
        found = f"{rows:,} rows without columns, as of JSON objects that are empty" if rows else "no columns"
        raise TableError(f"the table has {found}; give one whose rows have values with names")
    orders = {field.name: _order(arrow, field) for field in arrow.schema if pa.types.is_dictionary(field.type)}
    if type(table).__module__.startswith("polars"):
        orders |= {name: _order_of_enum(kind) for name, kind in table.collect_schema().items() if _is_enum(kind)}
    notes = {
        field.name: {CATEGORIES: json.dumps(orders[field.name])} if field.name in orders else categories_of(field)
        for field in arrow.schema
    }
    held, others = held_columns.held(arrow, notes)
    reasons |= others
    if reasons and not held.num_columns:
        raise TableError(
            f"no column of the table can be used: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}; "
            f"make them text or numbers, for example by {_AS_TEXT[_library(table)]}"
        )
    if name := next((name for name in needed if name in reasons), None):
        raise TableError(f"column '{name}' cannot be used: {reasons[name]}; make it text or numbers")
    held_columns.warn_of(reasons, _AS_TEXT[_library(table)])
    return held


def _library(table: Any) -> str:
    return type(table).__module__.partition(".")[0]


def _order(arrow: pa.Table, field: pa.Field) -> list[str]:
    """Return the values of an ordered dictionary as text, the lowest first; an empty list if it has no order."""
    chunks, kind = arrow.column(field.name).chunks, field.type.value_type
    has_tokens = pa.types.is_integer(kind) or held_columns.held_type(kind) == pa.string()
    if not (field.type.ordered and chunks and has_tokens):
        return []
    return [value for value in chunks[0].dictionary.cast(pa.string()).to_pylist() if value]


def _is_enum(kind: Any) -> bool:
    return type(kind).__name__ == "Enum"


def _order_of_enum(kind: Any) -> list[str]:
    return [value for value in kind.categories.to_list() if value]


def categories_of(field: pa.Field) -> dict[str, str]:
    """Return the note of :func:`in_arrow` on a column of categories: its order as JSON, by the name of the note."""
    noted = (field.metadata or {}).get(CATEGORIES.encode())
    return {} if noted is None else {CATEGORIES: noted.decode()}


def _require_texts(names: Sequence[Any]) -> None:
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise TableError(f"column names {odd[:5]} are not strings; rename them: df.columns = df.columns.astype(str)")
    require_different(list(names))


def require_different(names: Sequence[str]) -> None:
    """Raise a ``TableError`` for columns of one name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise TableError(f"the table has several columns of one name: {repeated}; rename or drop all but one")


def require_different_but_for_case(names: Sequence[str]) -> None:
    """Raise a ``TableError`` for names of columns that Spark takes for one."""
    counts = Counter(map(str.lower, names))
    twins = [name for name in names if counts[name.lower()] > 1]
    if twins:
        raise TableError(f"the columns {twins} differ in case alone, which Spark ignores; rename all but one")
