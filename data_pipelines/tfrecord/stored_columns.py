"""Conversion between Arrow columns and the plain arrays that features hold, shared by the row and the block layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.tfrecord.arrow_schema import (
    FeatureColumn,
    ListKind,
    TableColumn,
    ValueNotStorableError,
)
from mirrorspark.data_pipelines.tfrecord.examples import Strings

_SPARSE, _DENSE = 0, 1
_LARGEST_OFFSET = 2**31 - 1


class ValueMismatchError(ClearError, ValueError):
    """A stored value that does not fit its column.

    Attributes:
        problem: which value and why, worded to follow the feature's name.
    """

    def __init__(self, row: int, problem: str) -> None:
        self.row = row
        self.problem = problem
        super().__init__(f"row {row} {problem}")

    def __reduce__(self) -> tuple[type["ValueMismatchError"], tuple[int, str]]:
        """Pickle by the parts: the message alone does not rebuild the error."""
        return ValueMismatchError, (self.row, self.problem)


Values = npt.NDArray[Any] | Strings
"""int64, float32 or byte strings, depending on the kind of the feature."""


@dataclass(frozen=True)
class StoredColumn:
    """The values of one feature in all rows.

    Attributes:
        values: The values of all rows; a scalar column has one per row, undefined for a null.
        offsets: Per level of lists, from the outside in, where each list's values (or inner lists) begin and the last
            one's end: int64 ``[lists + 1]``. A null list is empty.
        valid: uint8 ``[rows]``, 0 for a row without the feature; None if every row has it.
        inner_valid: The same for inner lists.
    """

    feature: FeatureColumn
    values: Values
    offsets: tuple[npt.NDArray[np.int64], ...] = ()
    valid: npt.NDArray[np.uint8] | None = None
    inner_valid: npt.NDArray[np.uint8] | None = None

    @property
    def strings(self) -> Strings:
        """The values of a feature of byte strings.

        Raises:
            TypeError: It is of another kind.
        """
        if not isinstance(self.values, Strings):
            raise TypeError(f"feature '{self.feature.feature}' holds numbers, no byte strings")
        return self.values


def kind_problem(feature: FeatureColumn, found: ListKind) -> str:
    """Return the message for a feature of another kind than its column asks for, worded to follow its name."""
    return (
        f"is of kind {found.field_name}, but its column of type {feature.arrow_type} asks for "
        f"{feature.stored_kind.field_name}; ask for a type of the kind that the file has"
    )


def stored_columns(batch: pa.RecordBatch | pa.Table, columns: Sequence[TableColumn]) -> list[StoredColumn]:
    """Return the features of all columns; those of the null type are left out.

    Args:
        batch: Rows whose columns are ``columns``, in their order.
        columns: The columns and their features.

    Raises:
        ValueNotStorableError: A list holds a null, or a value does not fit the feature's type.
    """
    stored = []
    for index, column in enumerate(columns):
        array = batch.column(index)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        arrays = _vector_arrays(array) if column.is_vector else (array,)
        for feature, simple in zip(column.features, arrays, strict=True):
            if feature.kind is not None:
                stored.append(_stored_column(feature, simple))
    return stored


def restored_column(column: TableColumn, arrays: Sequence[pa.Array]) -> pa.Array:
    """Return the table's column from the arrays of its features: the inverse of :func:`stored_columns`."""
    if column.is_vector:
        return _vector_of(column.field.type, arrays)
    return arrays[0] if arrays[0].type == column.field.type else arrays[0].cast(column.field.type)


def _vector_arrays(array: pa.StructArray) -> tuple[pa.Array, ...]:
    kind, size, indices, values = array.flatten()
    is_dense = pc.equal(kind, _DENSE)
    is_sparse = pc.equal(kind, _SPARSE)
    return (
        _where(is_dense, values),
        _where(is_sparse, indices),
        _where(is_sparse, values),
        _where(is_sparse, size),
    )


def _where(mask: pa.BooleanArray, array: pa.Array) -> pa.Array:
    return pc.if_else(mask, array, pa.scalar(None, array.type))


def _vector_of(type_: pa.StructType, arrays: Sequence[pa.Array]) -> pa.StructArray:
    dense, indices, sparse, size = arrays
    is_dense = dense.is_valid()
    is_sparse = pc.and_(pc.invert(is_dense), size.is_valid())
    parts = [
        pc.if_else(is_dense, pa.scalar(_DENSE, pa.int8()), pa.scalar(_SPARSE, pa.int8())),
        _where(is_sparse, size),
        _where(is_sparse, indices),
        pc.if_else(is_dense, dense, sparse),
    ]
    return pa.StructArray.from_arrays(
        [part.cast(field.type) for part, field in zip(parts, type_, strict=True)],
        fields=list(type_),
        mask=pc.invert(pc.or_(is_dense, is_sparse)),
    )


def _stored_column(feature: FeatureColumn, array: pa.Array) -> StoredColumn:
    valid = _valid(array)
    offsets: list[npt.NDArray[np.int64]] = []
    inner_valid = None
    for level in range(feature.depth):
        if level:
            inner_valid = _valid(array)
        offsets.append(_list_offsets(array))
        array = array.flatten()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if feature.depth and array.null_count:
        position = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        row = _row_of(position, offsets)
        raise ValueNotStorableError(
            f"column '{feature.feature}' has a null inside the list of row {row}; a feature's list holds none: filter "
            "them out or fill them"
        )
    return StoredColumn(feature, _values(feature, array, offsets), tuple(offsets), valid, inner_valid)


def _valid(array: pa.Array) -> npt.NDArray[np.uint8] | None:
    if not array.null_count:
        return None
    flags: npt.NDArray[np.uint8] = array.is_valid().to_numpy(zero_copy_only=False).view(np.uint8)
    return flags


def _list_offsets(array: pa.Array) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(array) + 1, np.int64)
    lengths = pc.list_value_length(array)
    if lengths.null_count:
        lengths = lengths.fill_null(0)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
    return offsets


def _row_of(position: int, offsets: Sequence[npt.NDArray[np.int64]]) -> int:
    for level in reversed(offsets):
        position = int(np.searchsorted(level, position, side="right")) - 1
    return position


def _values(feature: FeatureColumn, array: pa.Array, offsets: Sequence[npt.NDArray[np.int64]]) -> Values:
    if feature.kind is ListKind.BYTES:
        return _strings(array)
    try:
        stored = _int64s(array) if feature.kind is ListKind.INT64 else _floats(array)
    except pa.ArrowInvalid as error:
        raise ValueNotStorableError(
            f"column '{feature.feature}' of type {array.type} has a value that a {feature.stored_kind.field_name} does "
            f"not hold: {error}"
        ) from error
    if feature.kind is ListKind.FLOAT and array.type != pa.float32() and array.type != pa.float16():
        _check_floats(feature, array, stored, offsets)
    return stored


def _int64s(array: pa.Array) -> npt.NDArray[np.int64]:
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("us", array.type.tz)).cast(pa.int64())
    elif pa.types.is_date(array.type):
        array = array.cast(pa.date32()).cast(pa.int32())
    return _numbers(array, pa.int64(), 0)


def _floats(array: pa.Array) -> npt.NDArray[np.float32]:
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return _numbers(array, pa.float32(), 0.0)


def _numbers(array: pa.Array, type_: pa.DataType, at_null: float) -> npt.NDArray[Any]:
    if array.type != type_:
        array = array.cast(type_)
    if array.null_count:
        array = array.fill_null(pa.scalar(at_null, type_))
    numbers: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers


def _check_floats(
    feature: FeatureColumn, array: pa.Array, stored: npt.NDArray[Any], offsets: Sequence[npt.NDArray[np.int64]]
) -> None:
    """Raise for finite numbers that became infinite as float32."""
    infinite = np.isinf(stored)
    if not infinite.any():
        return
    exact = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(infinite & np.isfinite(exact))
    if len(wrong):
        raise ValueNotStorableError(
            f"column '{feature.feature}' has the value {exact[wrong[0]]} in row {_row_of(int(wrong[0]), offsets)}; a "
            "float_list holds float32, at most 3.4e38: scale the column, or store it as a string"
        )


def _strings(array: pa.Array) -> Strings:
    if array.type != pa.large_binary():
        array = array.cast(pa.large_binary())
    _, offsets_buffer, content_buffer = array.buffers()
    if not len(array):
        return Strings(np.empty(0, np.uint8), np.zeros(1, np.int64))
    offsets = np.frombuffer(offsets_buffer, np.int64, len(array) + 1, 8 * array.offset)
    size = int(offsets[-1] - offsets[0])
    if content_buffer is None or not size:
        return Strings(np.empty(0, np.uint8), np.zeros(len(array) + 1, np.int64))
    return Strings(np.frombuffer(content_buffer, np.uint8, size, int(offsets[0])), offsets - offsets[0])


def restored_array(stored: StoredColumn) -> pa.Array:
    """Return the array of one feature, of its :attr:`FeatureColumn.arrow_type`.

    Raises:
        ValueMismatchError: A value does not fit the type, a list has the wrong length, a string is not UTF-8, or a
            value is missing in a column that takes no nulls.
    """
    feature = stored.feature
    if stored.valid is not None and not feature.nullable and not stored.valid.all():
        row = int(np.flatnonzero(stored.valid == 0)[0])
        raise ValueMismatchError(row, "is missing, but its column takes no nulls; make it nullable")
    scalar_valid = None if feature.depth else stored.valid
    array = _leaf(feature.type, stored.values, scalar_valid, stored.offsets)
    for level in reversed(range(feature.depth)):
        valid = stored.inner_valid if level else stored.valid
        array = _list_array(array, stored.offsets[level], valid)
        length = feature.fixed_lengths[level]
        if length is not None:
            array = _fixed_list_array(array, length, valid, stored.offsets[:level])
    return array


def _leaf(
    type_: pa.DataType,
    values: Values,
    valid: npt.NDArray[np.uint8] | None,
    offsets: Sequence[npt.NDArray[np.int64]],
) -> pa.Array:
    if isinstance(values, Strings):
        return _string_array(type_, values, valid, offsets)
    if valid is not None:
        # The value under a null is undefined and must not fail a check below.
        values = np.where(valid, values, values.dtype.type(0))
    if values.dtype == np.float32:
        return _float_array(type_, values, valid, offsets)
    return _int_array(type_, values, valid, offsets)


def _int_array(
    type_: pa.DataType,
    values: npt.NDArray[np.int64],
    valid: npt.NDArray[np.uint8] | None,
    offsets: Sequence[npt.NDArray[np.int64]],
) -> pa.Array:
    if pa.types.is_timestamp(type_):
        stored = _array(pa.timestamp("us", type_.tz), values, valid)
        return stored if stored.type == type_ else _cast(stored, type_, offsets)
    if type_ == pa.int64():
        return _array(type_, values, valid)
    if pa.types.is_date(type_):
        lowest, highest, narrow = -(2**31), 2**31 - 1, pa.date32()
    elif pa.types.is_boolean(type_):
        lowest, highest, narrow = 0, 1, pa.uint8()
    else:
        limits = np.iinfo(type_.to_pandas_dtype())
        lowest, highest, narrow = int(limits.min), int(limits.max), type_
    if len(values) and (values.min() < lowest or values.max() > highest):
        position = int(np.flatnonzero((values < lowest) | (values > highest))[0])
        raise ValueMismatchError(
            _row_of(position, offsets),
            f"has the value {values[position]}, which does not fit {type_}; ask for int64",
        )
    dtype = np.int32 if pa.types.is_date(type_) else narrow.to_pandas_dtype()
    array = _array(narrow, values.astype(dtype), valid)
    return array if narrow == type_ else array.cast(type_)


def _float_array(
    type_: pa.DataType,
    values: npt.NDArray[np.float32],
    valid: npt.NDArray[np.uint8] | None,
    offsets: Sequence[npt.NDArray[np.int64]],
) -> pa.Array:
    array = _array(pa.float32(), values, valid)
    if type_ == pa.float32():
        return array
    if pa.types.is_decimal(type_):
        return _cast(array.cast(pa.float64()), type_, offsets)
    return array.cast(type_)


def _cast(array: pa.Array, type_: pa.DataType, offsets: Sequence[npt.NDArray[np.int64]]) -> pa.Array:
    try:
        return array.cast(type_)
    except pa.ArrowInvalid:
        for position in range(len(array)):
            try:
                array[position : position + 1].cast(type_)
            except pa.ArrowInvalid as error:
                value = array[position].as_py()
                raise ValueMismatchError(
                    _row_of(position, offsets), f"has the value {value}, which does not fit {type_}: {error}"
                ) from error
        raise


def _string_array(
    type_: pa.DataType,
    strings: Strings,
    valid: npt.NDArray[np.uint8] | None,
    offsets: Sequence[npt.NDArray[np.int64]],
) -> pa.Array:
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or str(type_) == "string_view"
    is_large = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
    if not is_large and len(strings.content) > _LARGEST_OFFSET:
        raise ValueMismatchError(0, f"and those after it have more than 2 GiB, beyond {type_}; read fewer rows at once")
    wide = {(False, False): pa.binary(), (False, True): pa.large_binary(), (True, False): pa.string()}.get(
        (is_text, is_large), pa.large_string()
    )
    positions = strings.offsets if is_large else strings.offsets.astype(np.int32)
    array = pa.Array.from_buffers(
        wide, len(strings), [_bitmap(valid), pa.py_buffer(positions), pa.py_buffer(strings.content)]
    )
    if is_text:
        _check_text(array, strings, offsets)
    return array if array.type == type_ else _cast(array, type_, offsets)


def _check_text(array: pa.Array, strings: Strings, offsets: Sequence[npt.NDArray[np.int64]]) -> None:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        for position in range(len(strings)):
            text = strings.content[strings.offsets[position] : strings.offsets[position + 1]].tobytes()
            try:
                text.decode()
            except UnicodeDecodeError as error:
                raise ValueMismatchError(
                    _row_of(position, offsets), f"is not UTF-8 ({error.reason} at byte {error.start}); ask for binary"
                ) from error
        raise


def _list_array(values: pa.Array, offsets: npt.NDArray[np.int64], valid: npt.NDArray[np.uint8] | None) -> pa.ListArray:
    if offsets[-1] > _LARGEST_OFFSET:
        raise ValueMismatchError(0, "and those after it have more than 2**31 values; read fewer rows at once")
    buffers = [_bitmap(valid), pa.py_buffer(offsets.astype(np.int32))]
    return pa.Array.from_buffers(pa.list_(values.type), len(offsets) - 1, buffers, children=[values])


def _fixed_list_array(
    array: pa.ListArray,
    length: int,
    valid: npt.NDArray[np.uint8] | None,
    outer: Sequence[npt.NDArray[np.int64]],
) -> pa.FixedSizeListArray:
    lengths = np.diff(array.offsets.to_numpy())
    wrong = np.flatnonzero((lengths != length) & (True if valid is None else valid.astype(bool)))
    if len(wrong):
        raise ValueMismatchError(
            _row_of(int(wrong[0]), outer),
            f"has {lengths[wrong[0]]} values, but its column asks for lists of {length}; ask for lists of any length",
        )
    return array.cast(pa.list_(array.type.value_type, length))


def _array(type_: pa.DataType, values: npt.NDArray[Any], valid: npt.NDArray[np.uint8] | None) -> pa.Array:
    return pa.Array.from_buffers(type_, len(values), [_bitmap(valid), pa.py_buffer(values)])


def _bitmap(valid: npt.NDArray[np.uint8] | None) -> pa.Buffer | None:
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
