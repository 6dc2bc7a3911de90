"""Columns of tables in memory, in the types that Spark has; a column that it cannot hold is left out with a warning."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, time
from typing import Any

import pyarrow as pa

_LOGGER = logging.getLogger(__name__)

# Errors of Arrow for values that it cannot hold: of several types, too wide, or half of a character.
_NOT_HELD = (pa.ArrowException, TypeError, ValueError, OverflowError)
_WIDE_IN_POLARS = frozenset({"Int128", "UInt128"})
# The most digits of a decimal in Spark.
_MOST_DIGITS = 38
# Categories of pandas that Arrow and Spark have as such.
_PLAIN_CATEGORIES = frozenset({"boolean", "date", "datetime", "datetime64", "empty", "floating", "integer", "string"})
_COARSE_UNITS = ("s", "ms")
_FLAT: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_signed_integer,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_string,
    pa.types.is_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_date32,
)


def held_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the type that Spark has for a type of Arrow, or None: for times of day, intervals and extensions."""
    if isinstance(kind, pa.BaseExtensionType):
        return None
    if pa.types.is_dictionary(kind):
        return held_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_unsigned_integer(kind):
        return pa.decimal128(20, 0) if pa.types.is_uint64(kind) else pa.int64()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        # Spark's have microseconds.
        return pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.duration("us")
    if pa.types.is_date64(kind):
        return pa.date32()
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _MOST_DIGITS else None
    return _held_nested(kind) if pa.types.is_nested(kind) else next((kind for is_held in _FLAT if is_held(kind)), None)


def _held_nested(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_map(kind):
        key, item = held_type(kind.key_type), held_type(kind.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pa.types.is_struct(kind):
        parts = [(field.name, held_type(field.type)) for field in kind]
        return None if any(part is None for _, part in parts) else pa.struct(parts)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = held_type(kind.value_type)
        return None if element is None else pa.list_(element)
    return None


def held(table: pa.Table, notes: Mapping[str, Mapping[str, str]]) -> tuple[pa.Table, dict[str, str]]:
    """Return the columns that Spark can hold, in its types, and the reasons why others are left out.

    Args:
        table: The table.
        notes: Metadata of columns.
    """
    columns, fields, reasons = [], [], {}
    for field, column in zip(table.schema, table.columns, strict=True):
        kind = held_type(field.type)
        if kind is None:
            reasons[field.name] = f"Spark has no type for its values of {field.type}"
            continue
        try:
            # Nanoseconds are cut to microseconds. Seconds and milliseconds may lie beyond them, and must fail then.
            columns.append(column.cast(kind, safe=_is_coarse(field.type)))
        except pa.ArrowException as error:
            reasons[field.name] = f"it cannot be read as {kind} ({_first_line(error)})"
        else:
            fields.append(pa.field(field.name, kind, metadata=notes.get(field.name) or None))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields)), reasons


def _is_coarse(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_coarse(kind.value_type)
    return getattr(kind, "unit", "") in _COARSE_UNITS


def of_pandas(table: Any) -> tuple[pa.Table, dict[str, str]]:
    """Return a pandas DataFrame without its index in Arrow, and the reasons why columns are left out."""
    plain = table.assign(**{name: _plain_column(table[name]) for name in table.columns if _is_odd(table[name].dtype)})
    # Arrow warns of notes that are not JSON, such as Spark Connect's on a frame of toPandas.
    plain.attrs = {}
    try:
        found, reasons = pa.Table.from_pandas(plain, preserve_index=False), dict[str, str]()
    except _NOT_HELD:
        found, reasons = _one_by_one({name: plain[name] for name in plain.columns}, pa.Array.from_pandas)
    mixed = _days_with_times(found, plain)
    reasons |= dict.fromkeys(mixed, "some of its values are days, and some have a time of day")
    return _without_types_of_nothing(found.drop_columns(mixed)), reasons


def of_polars(table: Any) -> tuple[pa.Table, dict[str, str]]:
    """Return a Polars DataFrame in Arrow, and the reasons why columns are left out.

    Whole numbers of 128 bits, which Arrow lacks, become those of 64 bits if all of a column fit.
    """
    import polars  # only a user who has it gives its tables

    # Arrow would get the addresses of Python objects.
    objects = [name for name, kind in table.schema.items() if str(kind) == "Object"]
    reasons = dict.fromkeys(objects, "its values are objects of Python")
    plain = table.drop(objects)
    for name, kind in plain.schema.items():
        if str(kind) not in _WIDE_IN_POLARS:
            continue
        try:
            plain = plain.with_columns(plain[name].cast(polars.Int64))
        except polars.exceptions.PolarsError:
            reasons[name] = "it has whole numbers of more than 64 bits"
            plain = plain.drop(name)
    try:
        return plain.to_arrow(), reasons
    except _NOT_HELD:
        found, others = _one_by_one({name: plain[name] for name in plain.columns}, lambda column: column.to_arrow())
        return found, reasons | others


def warn_of(reasons: Mapping[str, str], text: str = "astype(str)") -> None:
    """Log each column that is left out, with the reason and the remedy: the call that makes it ``text``."""
    for name, reason in reasons.items():
        _LOGGER.warning("column %s: left out: %s; to keep it, make it text, for example by %s", name, reason, text)


def _one_by_one(columns: Mapping[str, Any], read: Callable[[Any], Any]) -> tuple[pa.Table, dict[str, str]]:
    found, reasons = {}, {}
    for name, column in columns.items():
        try:
            found[name] = read(column)
        except _NOT_HELD as error:
            reasons[name] = f"its values have several types, or one that no table has ({_first_line(error)})"
    return pa.table(found), reasons


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_odd(dtype: Any) -> bool:
    is_category = type(dtype).__name__ == "CategoricalDtype"
    return type(dtype).__name__ == "SparseDtype" or (
        is_category and dtype.categories.inferred_type not in _PLAIN_CATEGORIES
    )


def _plain_column(column: Any) -> Any:
    """Return a sparse column as a dense one, and categories such as the intervals of ``pd.cut`` as their texts."""
    if type(column.dtype).__name__ == "SparseDtype":
        return column.sparse.to_dense()
    texts = column.cat.categories.map(str)
    return column.cat.rename_categories(texts) if texts.is_unique else column


def _without_types_of_nothing(table: pa.Table) -> pa.Table:
    """Return a table whose floats without any value, which pandas makes of any missing column, have no type."""
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type) and 0 < table.num_rows == table.column(place).null_count:
            table = table.set_column(place, field.name, pa.nulls(table.num_rows))
    return table


def _days_with_times(table: pa.Table, frame: Any) -> list[str]:
    """Return columns of days whose later values have a time of day, which Arrow cuts off."""
    days = [field.name for field in table.schema if pa.types.is_date32(field.type)]
    return [name for name in days if any(map(_has_time, frame[name].dropna()))]


def _has_time(value: Any) -> bool:
    return isinstance(value, datetime) and value.time() != time.min
