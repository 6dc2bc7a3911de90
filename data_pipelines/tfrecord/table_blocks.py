"""The block layout of any table: one record holds many rows, each column an array.

Any reader of ``tf.train.Example`` can parse a block. The names of its features are:

* ``block/rows``: the number of rows; no other records have this feature, so it identifies the layout;
* a column under its own name: the values of all rows, with zeros or empty strings for nulls;
* for a column of lists, the concatenated values of all rows and ``<name>/row_lengths``; for lists of lists also
  ``<name>/inner_row_lengths``;
* ``<name>/is_null``, zeros and ones, if some values are null, and ``<name>/inner_is_null`` if some inner lists are;
* a Spark ML vector as :mod:`data_pipelines.tfrecord.arrow_schema` stores it: as four columns.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    ROW_LENGTHS_SUFFIX,
    FeatureColumn,
    FeatureTypeError,
    ListKind,
    RecordType,
    SchemaError,
    TableColumn,
    table_columns,
)
from mirrorspark.data_pipelines.tfrecord.examples import (
    Column,
    MalformedExampleError,
    Strings,
    decode_example,
    decode_example_arrays,
    encode_example,
)
from mirrorspark.data_pipelines.tfrecord.stored_columns import (
    StoredColumn,
    ValueMismatchError,
    Values,
    kind_problem,
    restored_array,
    restored_column,
    stored_columns,
)

BLOCK_ROWS = "block/rows"
ROWS_PER_BLOCK = 1024
INNER_ROW_LENGTHS_SUFFIX = "/inner_row_lengths"
IS_NULL_SUFFIX = "/is_null"
INNER_IS_NULL_SUFFIX = "/inner_is_null"

BESIDE_SUFFIXES = (ROW_LENGTHS_SUFFIX, INNER_ROW_LENGTHS_SUFFIX, IS_NULL_SUFFIX, INNER_IS_NULL_SUFFIX)
"""Suffixes of the features that may accompany a column; the first two are the row lengths of its levels of lists."""

_MOST_ROWS = 2**31 - 1
# If all columns of a block are null, nothing confirms its number of rows; this many cost little memory.
_UNCONFIRMED_ROWS = 2**20

_REWRITE = "write the file again"

_Decoded = Mapping[str, Values]


def check_block_schema(schema: pa.Schema) -> None:
    """Check that blocks can hold a table.

    Raises:
        SchemaError: A column's type has no mapping, a name is repeated, or a name is reserved for a feature that
            accompanies another column.
    """
    _block_columns(schema)


# Planning takes as encoding a block, and consecutive blocks have the same schema.
@lru_cache(maxsize=16)
def _block_columns(schema: pa.Schema) -> tuple[TableColumn, ...]:
    columns = table_columns(schema, RecordType.SEQUENCE_EXAMPLE)
    names = {feature.feature for column in columns for feature in column.features}
    if BLOCK_ROWS in names:
        raise SchemaError(f"column '{BLOCK_ROWS}' has a name that is reserved for the rows of a block; rename it")
    for name in sorted(names):
        for suffix in BESIDE_SUFFIXES:
            if name + suffix in names:
                raise SchemaError(
                    f"column '{name + suffix}' has a name that is reserved for the features of column '{name}'; "
                    "rename one of them"
                )
    return columns


def is_table_block(payload: bytes | memoryview) -> bool:
    """Return whether a record is a block of this layout, not a single row.

    Raises:
        MalformedExampleError: It is not a tf.train.Example.
    """
    return BLOCK_ROWS in decode_example(payload, (BLOCK_ROWS,))


def table_block_rows(payload: bytes | memoryview, *, name: str = "", record: int = 0, offset: int | None = None) -> int:
    """Return the number of rows in a block, for readers that want none of its columns.

    Args:
        payload: The record's payload.
        name: The file's name, for errors.
        record: The record's number, for errors.
        offset: The byte of the file where the record begins, for errors; None if unknown.

    Raises:
        MalformedExampleError: The payload is not a block, or no column has that many values.
    """
    return _decoded_columns(payload, (), name, record, offset)[1]


def encode_table_block(batch: pa.RecordBatch | pa.Table) -> bytes:
    """Return the payload of the record that holds the rows of ``batch``.

    Raises:
        SchemaError: Blocks cannot hold such a table.
        ValueNotStorableError: A list holds a null, or a number is beyond float32.
        ValueError: The block would pass protobuf's limit of 2 GiB.
    """
    columns = _block_columns(batch.schema)
    stored: dict[str, Column] = {BLOCK_ROWS: np.array([batch.num_rows], np.int64)}
    for column in stored_columns(batch, columns):
        name = column.feature.feature
        stored[name] = column.values
        for suffix, offsets in zip(BESIDE_SUFFIXES, column.offsets, strict=False):
            stored[name + suffix] = np.diff(offsets)
        if column.valid is not None:
            stored[name + IS_NULL_SUFFIX] = (column.valid == 0).astype(np.int64)
        if column.inner_valid is not None:
            stored[name + INNER_IS_NULL_SUFFIX] = (column.inner_valid == 0).astype(np.int64)
    return encode_example(stored)


def decode_table_block(
    payload: bytes | memoryview,
    schema: pa.Schema,
    *,
    name: str = "",
    record: int = 0,
    offset: int | None = None,
) -> pa.RecordBatch:
    """Return the rows of one block; columns outside ``schema`` are skipped unread.

    Args:
        payload: The record's payload.
        schema: The columns to return; columns that the block lacks are null.
        name: The file's name, for errors.
        record: The record's number, for errors.
        offset: The byte of the file where the record begins, for errors; None if unknown.

    Raises:
        SchemaError: Blocks cannot hold such a table.
        FeatureTypeError: A column does not fit the schema.
        MalformedExampleError: The payload is not a block.
    """
    columns = _block_columns(schema)
    features = [feature for column in columns for feature in column.features if feature.kind is not None]
    wanted = [feature.feature + suffix for feature in features for suffix in ("", *BESIDE_SUFFIXES)]
    decoded, rows = _decoded_columns(payload, wanted, name, record, offset)
    arrays = {}
    for feature in features:
        try:
            arrays[feature.feature] = restored_array(_stored_column(feature, decoded, rows))
        except ValueMismatchError as error:
            problem = f"(row {error.row} of a block) {error.problem}"
            raise FeatureTypeError(feature.feature, record, problem, file=name, offset=offset) from error
    restored = [
        restored_column(
            column,
            [arrays.get(feature.feature, pa.nulls(rows, feature.arrow_type)) for feature in column.features],
        )
        for column in columns
    ]
    return pa.RecordBatch.from_arrays(restored, schema=schema)


def _decoded_columns(
    payload: bytes | memoryview, wanted: Sequence[str], name: str, record: int, offset: int | None
) -> tuple[_Decoded, int]:
    """Return the features of a block and its number of rows."""
    try:
        decoded = decode_example_arrays(payload, [BLOCK_ROWS, *wanted])
        rows = _row_count(decoded)
        _confirm_rows(rows, decoded, payload)
    except MalformedExampleError as error:
        raise MalformedExampleError(
            error.problem, error.offset, file=name, record=record, record_offset=offset
        ) from error
    return decoded, rows


def _row_count(decoded: _Decoded) -> int:
    stored = decoded.get(BLOCK_ROWS)
    if not isinstance(stored, np.ndarray) or stored.dtype != np.int64 or len(stored) != 1:
        raise MalformedExampleError(f"it is not a block of rows: it has no feature '{BLOCK_ROWS}' of one number", 0)
    rows = int(stored[0])
    if not 0 <= rows <= _MOST_ROWS:
        raise MalformedExampleError(f"its feature '{BLOCK_ROWS}' is {rows}; a block has 0 to {_MOST_ROWS} rows", 0)
    return rows


def _confirm_rows(rows: int, decoded: _Decoded, payload: bytes | memoryview) -> None:
    """Check that some column has as many values as the block has rows, before missing columns are made that long.

    Raises:
        MalformedExampleError: None has; a damaged number could take any amount of memory.
    """
    if rows <= _UNCONFIRMED_ROWS or _has_length(rows, decoded):
        return
    # None of the requested columns is in the block; the others may confirm the number.
    if not _has_length(rows, decode_example_arrays(payload)):
        raise MalformedExampleError(f"its feature '{BLOCK_ROWS}' is {rows}, but no column has as many values", 0)


def _has_length(rows: int, decoded: _Decoded) -> bool:
    return any(len(values) == rows for values in decoded.values())


def _stored_column(feature: FeatureColumn, decoded: _Decoded, rows: int) -> StoredColumn:
    if feature.feature not in decoded:
        # The block lacks the column.
        lists = tuple(np.zeros(rows + 1 if level == 0 else 1, np.int64) for level in range(feature.depth))
        count = 0 if feature.depth else rows
        return StoredColumn(feature, _empty_values(feature, count), lists, np.zeros(rows, np.uint8))
    values = _values_of(feature, decoded[feature.feature])
    offsets: list[npt.NDArray[np.int64]] = []
    expected = rows
    for level in range(feature.depth):
        # Lists contain inner lists, whose lengths come next, or values.
        inner = values if level + 1 == feature.depth else decoded.get(feature.feature + BESIDE_SUFFIXES[level + 1], ())
        offsets.append(_list_offsets(feature, decoded, BESIDE_SUFFIXES[level], expected, len(inner)))
        expected = len(inner)
    if not feature.depth and len(values) != rows:
        raise ValueMismatchError(0, f"has {len(values)} values where its block says {rows}; ask for its own type")
    is_null = _beside(feature, decoded, IS_NULL_SUFFIX, rows)
    inner_is_null = _beside(feature, decoded, INNER_IS_NULL_SUFFIX, len(offsets[1]) - 1) if len(offsets) > 1 else None
    return StoredColumn(feature, values, tuple(offsets), _valid(is_null), _valid(inner_is_null))


def _list_offsets(
    feature: FeatureColumn, decoded: _Decoded, suffix: str, lists: int, values: int
) -> npt.NDArray[np.int64]:
    """Return the offset of each list among the values (or inner lists), and the end of the last one."""
    lengths = _beside(feature, decoded, suffix, lists)
    if lengths is None:
        raise ValueMismatchError(0, f"has no '{suffix}' next to it, as lists have; ask for a scalar column")
    wrong = np.flatnonzero((lengths < 0) | (lengths > values))
    if len(wrong):
        row = int(wrong[0]) if suffix == ROW_LENGTHS_SUFFIX else 0
        raise ValueMismatchError(
            row,
            f"has the length {lengths[wrong[0]]} in the '{suffix}' next to it, but only {values} values; {_REWRITE}",
        )
    # A block has fewer than 2**31 lengths and values, so the sum of lengths fits in int64.
    offsets = np.zeros(lists + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] != values:
        raise ValueMismatchError(
            0, f"has {values} values where the '{suffix}' next to it says {offsets[-1]}; {_REWRITE}"
        )
    return offsets


def _valid(is_null: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint8] | None:
    return None if is_null is None else (is_null == 0).view(np.uint8)


def _beside(feature: FeatureColumn, decoded: _Decoded, suffix: str, expected: int) -> npt.NDArray[np.int64] | None:
    found = decoded.get(feature.feature + suffix)
    if found is None:
        return None
    if not isinstance(found, np.ndarray) or found.dtype != np.int64 or len(found) != expected:
        raise ValueMismatchError(0, f"has a damaged '{suffix}' next to it; {_REWRITE}")
    return found


def _values_of(feature: FeatureColumn, found: Values) -> Values:
    kind = ListKind.BYTES
    if not isinstance(found, Strings):
        kind = ListKind.FLOAT if found.dtype == np.float32 else ListKind.INT64
    if kind is not feature.kind:
        raise ValueMismatchError(0, kind_problem(feature, kind))
    return found


def _empty_values(feature: FeatureColumn, count: int) -> Values:
    if feature.kind is ListKind.BYTES:
        return Strings(np.empty(0, np.uint8), np.zeros(count + 1, np.int64))
    return np.zeros(count, np.float32 if feature.kind is ListKind.FLOAT else np.int64)
