"""Extraction of countable values from raw Arrow columns: numbers or tokens, missing values, list lengths."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.features import kinds, raw_columns, text_rules


class Role(StrEnum):
    """The role of a column in the spec."""

    FEATURE = "feature"
    LABEL = "label"
    KEY = "key"
    WEIGHT = "weight"
    EXCLUDE = "exclude"


class ColumnKind(StrEnum):
    """The way a column's values are counted."""

    NUMBER = "number"  # one per row, or several: a list of numbers
    TIME = "time"  # numbers too: seconds since 1970, UTC
    TOKEN = "token"  # noqa: S105 - one value per row
    TOKENS = "tokens"  # several per row: lists, the words of a text, the indices of a sparse vector
    KEY = "key"  # counted, never shown: keys name people
    OTHER = "other"  # only missing values are counted


@dataclass(frozen=True)
class RawValues:
    """The countable values of a column in one split.

    ``numbers`` (float64) or ``tokens`` (Arrow strings) hold the values that are present; ``codes`` numbers the distinct
    values of a column with one value per row, with -1 for missing values.
    """

    rows: int
    missing: int
    numbers: np.ndarray | None = None
    tokens: pa.StringArray | None = None
    lengths: np.ndarray | None = None
    codes: np.ndarray | None = None
    nan: int = 0
    infinite: int = 0


def column_kind(name: str, column_type: pa.DataType, role: Role, feature: kinds.Feature | None) -> ColumnKind:
    """Return the way a column's values are counted, from the spec's use of it, or else from its type."""
    if role is Role.KEY:
        return ColumnKind.KEY
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    if pa.types.is_map(column_type) or raw_columns.is_vector(column_type) or isinstance(feature, kinds.Text):
        return ColumnKind.TOKENS
    element = column_type.value_type if _is_list(column_type) else column_type
    if isinstance(feature, kinds.Date) and role is Role.FEATURE:
        return ColumnKind.TIME
    if pa.types.is_timestamp(element) or pa.types.is_date(element):
        return ColumnKind.TIME
    form = feature.raw.get(name) if feature is not None and role is Role.FEATURE else None
    if raw_columns.is_number(element) and form in ("number", "times", "values"):
        return ColumnKind.NUMBER
    if _is_list(column_type):
        is_measured = pa.types.is_floating(element) or pa.types.is_decimal(element)
        return ColumnKind.NUMBER if is_measured else ColumnKind.TOKENS
    if raw_columns.is_number(element):
        return ColumnKind.TOKEN if role is Role.LABEL or form == "token" else ColumnKind.NUMBER
    if pa.types.is_string(element) or pa.types.is_large_string(element) or pa.types.is_null(element):
        return ColumnKind.TOKEN
    return ColumnKind.OTHER


def raw_values(column: pa.Array, kind: ColumnKind, feature: kinds.Feature | None) -> RawValues:
    """Return the countable values of a column; ``feature`` is the feature that reads it, or None."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind is ColumnKind.TIME and isinstance(feature, kinds.Date) and pa.types.is_string(column.type):
        days = raw_columns.numeric_values(raw_columns.raw_column(pa.table({feature.name: column}), feature))
        column = pa.array(np.round(days * 86_400e6), pa.float64(), from_pandas=True)
        column = column.cast(pa.int64()).cast(pa.timestamp("us"))
    if kind in (ColumnKind.NUMBER, ColumnKind.TIME):
        return _number_values(column, kind)
    if kind is ColumnKind.TOKENS:
        return _list_values(column, feature)
    if kind is ColumnKind.OTHER or pa.types.is_nested(column.type):
        return RawValues(len(column), column.null_count)
    tokens = _as_text(column)
    is_present = pc.greater(pc.binary_length(tokens), 0).fill_null(False)
    present = tokens.filter(is_present)
    codes = tokens.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    codes = np.where(is_present.to_numpy(zero_copy_only=False), codes, -1)
    return RawValues(len(column), len(column) - len(present), tokens=present, codes=codes)


def _number_values(column: pa.Array, kind: ColumnKind) -> RawValues:
    lengths = None
    rows = len(column)
    if _is_list(column.type):
        lengths = raw_columns.list_lengths(column)
        column = column.flatten()
    if kind is ColumnKind.TIME:
        microseconds = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
        numbers = raw_columns.numeric_values(microseconds) / 1e6
    else:
        numbers = raw_columns.numeric_values(column)
    is_missing = np.isnan(numbers)
    finite = np.isfinite(numbers)
    codes = None
    if lengths is None:
        codes = np.full(rows, -1, np.int64)
        codes[finite] = np.unique(numbers[finite], return_inverse=True)[1]
    return RawValues(
        rows=rows,
        missing=int(is_missing.sum()) if lengths is None else int((lengths == 0).sum()),
        numbers=numbers[finite],
        lengths=lengths,
        codes=codes,
        nan=int(is_missing.sum()) - column.null_count,
        infinite=int((~finite & ~is_missing).sum()),
    )


def _list_values(column: pa.Array, feature: kinds.Feature | None) -> RawValues:
    """Return the values of a column with several per row: a list, a map's keys, a vector's indices, a text's tokens."""
    rows = len(column)
    if pa.types.is_map(column.type):
        offsets, flat = column.offsets, column.keys
        lengths = np.diff(offsets.to_numpy())
    else:
        if pa.types.is_struct(column.type):
            return _vector_values(column)
        if isinstance(feature, kinds.Text) and not _is_list(column.type):
            # Bytes that are not UTF-8 have a normal form too; a cast would refuse them.
            text = column if pa.types.is_binary(column.type) else _as_text(column)
            column = text_rules.split_tokens(text_rules.normalise(text), feature.pattern)
        lengths = raw_columns.list_lengths(column)
        flat = column.flatten()
    while _is_list(flat.type):
        flat = flat.flatten()
    if pa.types.is_nested(flat.type) or pa.types.is_binary(flat.type):
        return RawValues(rows, rows - int((lengths > 0).sum()), lengths=lengths)
    flat = _as_text(flat)
    tokens = flat.filter(pc.greater(pc.binary_length(flat), 0).fill_null(False))
    return RawValues(rows, rows - int((lengths > 0).sum()), tokens=tokens, lengths=lengths)


def _vector_values(column: pa.StructArray) -> RawValues:
    """Count the entries of Spark ML vectors; a dense one has values for every index, and no list of indices."""
    vectors = column.filter(column.is_valid())
    indices = vectors.field("indices")
    lengths = np.where(
        indices.is_null(), raw_columns.list_lengths(vectors.field("values")), raw_columns.list_lengths(indices)
    )
    missing = len(column) - int((lengths > 0).sum())
    return RawValues(len(column), missing, tokens=_as_text(indices.flatten()), lengths=lengths)


def class_codes(label: pa.Array) -> np.ndarray:
    """Return the class of each row as a number, or -1 if it is missing; a list of classes counts as one class."""
    if _is_list(label.type):
        label = pc.binary_join(label.cast(pa.list_(pa.string())), ",")
    codes = _as_text(label).dictionary_encode().indices
    return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _as_text(column: pa.Array) -> pa.StringArray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def _is_list(column_type: pa.DataType) -> bool:
    return (
        pa.types.is_list(column_type) or pa.types.is_large_list(column_type) or pa.types.is_fixed_size_list(column_type)
    )
