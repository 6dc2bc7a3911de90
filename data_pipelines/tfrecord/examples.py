"""The tf.train.Example wire format <-> columns: one message whose features are arrays.

The messages, from TensorFlow ``core/example/example.proto`` and ``feature.proto``::

    Example   { Features features = 1; }
    Features  { map<string, Feature> feature = 1; }    # each entry is a message { string key = 1; Feature value = 2; }
    Feature   { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
    BytesList { repeated bytes value = 1; }    FloatList { repeated float value = 1; }    Int64List likewise

Source of the encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numba import types

from data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel


@dataclass(frozen=True)
class Strings:
    """Byte strings one after the other.

    Attributes:
        content: uint8 ``[bytes]``.
        offsets: int64 ``[strings + 1]``: where each begins, and where the last one ends; the first is 0.
    """

    content: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Column = npt.NDArray[Any] | Sequence[bytes] | Strings
"""The values of one feature: float32 ``[n]``, int64 ``[n]``, or ``n`` byte strings."""

# A field's tag is its number times 8 plus its wire type; every number here is 1, 2 or 3.
_VARINT_1 = 1 << 3 | 0
_FIXED32_1 = 1 << 3 | 5
_LENGTH_1 = 1 << 3 | 2
_LENGTH_2 = 2 << 3 | 2
_LENGTH_3 = 3 << 3 | 2

# The number of a list's field in Feature is its kind.
_NO_KIND, _BYTES, _FLOATS, _INT64S = range(4)

_LARGEST_MESSAGE_BYTES = 2**31 - 1

# What is wrong with a message, as a kernel says it: negative, so that it travels in place of a tag or a position.
_CUT_OFF = -1
_VARINT_TOO_LONG = -2
_INVALID_TAG = -3
_FLOATS_CUT_OFF = -4
_PROBLEMS = {
    _CUT_OFF: "a field runs past the end of the message it is in",
    _VARINT_TOO_LONG: "a varint takes more than 10 bytes",
    _INVALID_TAG: "a field has number 0 or an unsupported wire type",
    _FLOATS_CUT_OFF: "the length of a packed list of floats is no multiple of 4",
}

# One row of an index: the number of its map entry, where the entry's key lies, the kind of list, where the list lies.
_ENTRY, _KEY_START, _KEY_STOP, _KIND, _LIST_START, _LIST_STOP = range(6)
_INDEX_COLUMNS = 6

_ONE_BYTE_VARINTS = [bytes([value]) for value in range(128)]
_KIND_TAGS = {_BYTES: b"\x0a", _FLOATS: b"\x12", _INT64S: b"\x1a"}


class MalformedExampleError(ValueError):
    """Bytes are not the message that they should be.

    Attributes:
        problem: what is wrong.
        offset: the byte of the payload where decoding stopped.
        file: the file's name; empty where it is not known.
        record: the record's number in the file, from 0; None where it is not known.
        message: the message that they should be.
        record_offset: where the record begins, in bytes from the start of the (uncompressed) file; None where it is not
            known.
    """

    def __init__(
        self,
        problem: str,
        offset: int,
        *,
        file: str = "",
        record: int | None = None,
        message: str = "tf.train.Example",
        record_offset: int | None = None,
    ) -> None:
        self.problem = problem
        self.offset = offset
        self.file = file
        self.record = record
        self.message = message
        self.record_offset = record_offset
        place = "" if record_offset is None else f" at byte {record_offset}"
        where = f"{file or 'TFRecord data'}: record {record}{place} is " if record is not None else ""
        super().__init__(
            f"{where}not a {message}: {problem}, at byte {offset} of the payload; check that these records are "
            f"{message.rpartition('.')[2]}s, and write the file again if they should be"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the parts: the message alone does not rebuild the error."""
        return _rebuild_error, (
            self.problem,
            self.offset,
            self.file,
            self.record,
            self.message,
            self.record_offset,
        )


def _rebuild_error(
    problem: str, offset: int, file: str, record: int | None, message: str, record_offset: int | None
) -> MalformedExampleError:
    return MalformedExampleError(
        problem, offset, file=file, record=record, message=message, record_offset=record_offset
    )


def encode_example(columns: Mapping[str, Column]) -> bytes:
    """Return ``columns`` as one serialized tf.train.Example, keys in sorted order: equal columns give equal bytes.

    Args:
        columns: by feature name, a float32 array ``[n]`` (becomes a ``float_list``), an int64 array ``[n]`` (an
            ``int64_list``), or :class:`Strings` or a sequence or object array of ``n`` bytes (a ``bytes_list``).
            Lengths may differ.

    Raises:
        TypeError: a column is of another type; the message names it.
        ValueError: an array is not one-dimensional, or the message would pass protobuf's limit of 2 GiB.
    """
    parts: list[bytes | npt.NDArray[Any]] = []
    total = 0
    for name in sorted(columns):
        kind, body = _encode_list(name, columns[name])
        body_bytes = body.nbytes
        key = name.encode()
        # From the inside out: the packed field (bytes carry their own tags), the list, the feature, the map entry.
        packed = b"\x0a" + varint(body_bytes) if body_bytes and kind != _BYTES else b""
        list_bytes = len(packed) + body_bytes
        feature = _KIND_TAGS[kind] + varint(list_bytes) + packed
        feature_bytes = len(feature) + body_bytes
        entry = b"\x0a" + varint(len(key)) + key + b"\x12" + varint(feature_bytes) + feature
        entry_bytes = len(entry) + body_bytes
        head = b"\x0a" + varint(entry_bytes) + entry
        parts += (head, body)
        total += len(head) + body_bytes
    if total > _LARGEST_MESSAGE_BYTES - 6:
        raise ValueError(f"an Example of {total} bytes passes protobuf's limit of 2 GiB; put fewer rows in one record")
    parts[:0] = (b"\x0a", varint(total))
    # Joining takes arrays as it takes bytes: anything that lies in one piece of memory.
    return b"".join(cast(list[bytes], parts))


def decode_example(
    payload: bytes | memoryview, columns: Collection[str] | None = None
) -> dict[str, npt.NDArray[Any] | list[bytes]]:
    """Return the features of one serialized tf.train.Example.

    Reads what any writer may produce: packed and unpacked lists, fields in any order or in pieces, unknown fields
    (skipped). Of a name that occurs twice the last one counts, as protobuf has it.

    Args:
        payload: the serialized message.
        columns: the names to decode; None for all. The lists of the others are passed over unread.

    Returns:
        By feature name, float32 ``[n]``, int64 ``[n]`` or a list of ``n`` bytes; an empty list for a feature that
        says no kind. Names that the message lacks are lacking here. Nothing refers to ``payload``; the arrays of one
        type share one piece of memory.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.Example.
    """
    decoded, _ = _decode(payload, columns)
    return decoded


def decode_example_arrays(
    payload: bytes | memoryview, columns: Collection[str] | None = None
) -> dict[str, npt.NDArray[Any] | Strings]:
    """Return what :func:`decode_example` does, byte strings as :class:`Strings`; features without a kind are left out.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.Example.
    """
    content, bounds, decoded, kinds = _decode_numbers(payload, columns)
    return {
        name: Strings(*_gather_strings(content, bounds[values])) if isinstance(values, slice) else values
        for name, values in decoded.items()
        if kinds[name] != _NO_KIND
    }


def canonical_example(payload: bytes | memoryview, columns: Collection[str] | None = None) -> bytes:
    """Return an Example of any writer as :func:`encode_example` writes it; features without a kind are left out.

    Args:
        payload: the serialized message.
        columns: the names of the features to keep; None for all.

    Raises:
        MalformedExampleError: ``payload`` is not a tf.train.Example.
    """
    decoded, kinds = _decode(payload, columns)
    return encode_example({name: column for name, column in decoded.items() if kinds[name] != _NO_KIND})


def is_example_list(payload: bytes | memoryview) -> bool:
    """Return whether a message is an ExampleListWithContext, TensorFlow Ranking's message of several Examples.

    By the letter such a message is an Example too, whose features have other Examples' features for names and no
    values; no writer of Examples means that.
    """
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    content = np.frombuffer(payload, np.uint8)
    problem, _, index = _index_example(content)
    if problem or not len(index) or (index[:, _KIND] != _NO_KIND).any():
        return False
    # A name that is a map entry with a value of its own: ELWC { Example { Features { entry { key, value } } } }.
    start, stop = (int(bound) for bound in index[0, [_KEY_START, _KEY_STOP]])
    inner = b"\x0a" + varint(stop - start) + bytes(payload[start:stop])
    problem, _, index = _index_example(np.frombuffer(b"\x0a" + varint(len(inner)) + inner, np.uint8))
    return not problem and len(index) == 1 and int(index[0, _KIND]) != _NO_KIND


def _decode(
    payload: bytes | memoryview, columns: Collection[str] | None
) -> tuple[dict[str, npt.NDArray[Any] | list[bytes]], dict[str, int]]:
    """Return the features of an Example and their kinds."""
    content, bounds, decoded, kinds = _decode_numbers(payload, columns)
    return {
        name: _slices(content.data, bounds[values]) if isinstance(values, slice) else values
        for name, values in decoded.items()
    }, kinds


def _decode_numbers(
    payload: bytes | memoryview, columns: Collection[str] | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], dict[str, npt.NDArray[Any] | slice], dict[str, int]]:
    """Return the payload's bytes, where all byte strings lie, the features of an Example, and their kinds.

    A feature of byte strings is a slice of where they lie.
    """
    if isinstance(payload, memoryview):
        payload = payload.cast("B")
    content = np.frombuffer(payload, np.uint8)
    problem, offset, index = _index_example(content)
    if problem:
        raise MalformedExampleError(_PROBLEMS[problem], offset)
    rows_by_name = _rows_by_name(payload, index, columns)
    wanted = [row for rows in rows_by_name.values() for row in rows]
    problem, offset, floats, int64s, bounds, counts = _decode_lists(content, index[wanted])
    if problem:
        raise MalformedExampleError(_PROBLEMS[problem], offset)

    decoded: dict[str, npt.NDArray[Any] | slice] = {}
    kind_by_name: dict[str, int] = {}
    stops = {_NO_KIND: 0, _BYTES: 0, _FLOATS: 0, _INT64S: 0}
    position = 0
    kinds = index[:, _KIND].tolist()
    counts_of_rows = counts.tolist()
    for name, rows in rows_by_name.items():
        kind = kinds[rows[0]]
        kind_by_name[name] = kind
        start = stops[kind]
        stop = start + sum(counts_of_rows[position : position + len(rows)])
        stops[kind] = stop
        position += len(rows)
        if kind == _FLOATS:
            decoded[name] = floats[start:stop]
        elif kind == _INT64S:
            decoded[name] = int64s[start:stop]
        else:
            decoded[name] = slice(start, stop)
    return content, bounds, decoded, kind_by_name


def _encode_list(name: str, column: Column) -> tuple[int, npt.NDArray[Any]]:
    """Return the kind of a column and its encoded values: contiguous, the packed field's head left out."""
    if isinstance(column, Strings):
        return _BYTES, _encode_byte_strings(column.content, np.diff(column.offsets))
    if isinstance(column, np.ndarray) and column.dtype != object:
        if column.dtype not in (np.float32, np.int64):
            raise TypeError(
                f"column {name!r} has dtype {column.dtype}; convert it to float32 or int64, or give a list of bytes"
            )
        if column.ndim != 1:
            raise ValueError(f"column {name!r} has shape {list(column.shape)}; flatten it to one dimension")
        if not (column.flags.c_contiguous and column.flags.aligned):
            column = column.copy()
        if column.dtype == np.float32:
            return _FLOATS, column
        return _INT64S, _encode_varints(column)
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise ValueError(f"column {name!r} has shape {list(column.shape)}; flatten it to one dimension")
    # Without this, bytes and str would be taken for sequences of their elements.
    if isinstance(column, bytes | bytearray | memoryview | str) or not isinstance(column, Sequence | np.ndarray):
        raise TypeError(f"column {name!r} is a {type(column).__name__}; give an array, or a list of bytes")
    if strangers := {kind for kind in set(map(type, column)) if not issubclass(kind, bytes)}:
        found = ", ".join(sorted(kind.__name__ for kind in strangers))
        raise TypeError(f"column {name!r} holds {found} among its values; encode each value to bytes")
    lengths = np.fromiter(map(len, column), np.int64, len(column))
    return _BYTES, _encode_byte_strings(np.frombuffer(b"".join(column), np.uint8), lengths)


def varint(value: int) -> bytes:
    """Return a number from 0 on as a varint: seven bits per byte, lowest first."""
    if value < 128:
        return _ONE_BYTE_VARINTS[value]
    groups = bytearray()
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _rows_by_name(
    payload: bytes | memoryview, index: npt.NDArray[np.int64], columns: Collection[str] | None
) -> dict[str, list[int]]:
    """Return, by feature name, the rows of ``index`` that make up its list: those of the name's last map entry."""
    wanted = None if columns is None else frozenset(columns)
    rows_by_name: dict[str, list[int]] = {}
    rows: list[int] = []
    previous = -1
    for row, (entry, start, stop) in enumerate(index[:, : _KEY_STOP + 1].tolist()):
        if entry == previous:
            rows.append(row)
            continue
        previous = entry
        rows = [row]
        try:
            name = str(payload[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedExampleError("the name of a feature is not UTF-8", start) from error
        if wanted is None or name in wanted:
            rows_by_name[name] = rows
    return rows_by_name


def _slices(payload: bytes | memoryview, bounds: npt.NDArray[np.int64]) -> list[bytes]:
    """Return ``payload[start:stop]`` for each row of ``bounds`` ``[n, 2]``."""
    if not len(bounds):
        return []
    # One copy of the stretch they lie in, because slicing bytes is twice as fast as slicing a memoryview.
    first = int(bounds[0, 0])
    stretch = bytes(payload[first : int(bounds[-1, 1])])
    return [stretch[start:stop] for start, stop in (bounds - first).tolist()]


@compile_inner_kernel
def _read_varint(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any]:
    """Return the varint at ``at`` and where it ends, or a problem in place of where it ends."""
    value = np.uint64(0)
    shift = np.uint64(0)
    for index in range(at, min(stop, at + 10)):
        byte = np.uint64(content[index])
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return value, index + 1
        shift += np.uint64(7)
    return value, _CUT_OFF if stop - at < 10 else _VARINT_TOO_LONG


@compile_inner_kernel
def _next_field(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any, Any]:
    """Return a field's tag (or a problem), where its content starts, and where that ends and the next field begins."""
    tag, start = _read_varint(content, at, stop)
    if start < 0:
        return start, at, at
    if tag < np.uint64(8) or tag > np.uint64(0xFFFFFFFF):
        return _INVALID_TAG, at, at
    wire_type = tag & np.uint64(7)
    if wire_type == np.uint64(2):
        length, start = _read_varint(content, start, stop)
        if start < 0:
            return start, at, at
        if length > np.uint64(stop - start):
            return _CUT_OFF, at, at
        end = start + np.int64(length)
    elif wire_type == np.uint64(0):
        _, end = _read_varint(content, start, stop)
        if end < 0:
            return end, at, at
    elif wire_type == np.uint64(5):
        end = start + 4
    elif wire_type == np.uint64(1):
        end = start + 8
    else:
        # Groups, long deprecated: no writer of Examples has them.
        return _INVALID_TAG, at, at
    if end > stop:
        return _CUT_OFF, at, at
    return np.int64(tag), start, end


@compile_inner_kernel
def _enlarged(index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    larger = np.empty((2 * len(index), _INDEX_COLUMNS), np.int64)
    for row in range(len(index)):
        for column in range(_INDEX_COLUMNS):
            larger[row, column] = index[row, column]
    return larger


@compile_inner_kernel
def _copy(source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], at: int) -> int:
    """Write ``source`` to ``target`` from ``at`` on; returns where it ends."""
    # Assigning to a slice would do the same, but takes numba two seconds to compile.
    for index in range(source.size):
        target[at + index] = source[index]
    return at + source.size


@compile_inner_kernel
def _index_feature(
    content: npt.NDArray[np.uint8], start: int, stop: int, index: npt.NDArray[np.int64], first: int, count: int
) -> tuple[int, int, npt.NDArray[np.int64], int]:
    """Add a row for each piece of the list that the Feature in ``content[start:stop]`` holds.

    Rows ``first`` to ``count`` are the pieces found before it, in an earlier part of the same map entry.
    Returns the problem or 0, its offset, ``index`` (enlarged as needed), and the new ``count``.
    """
    at = start
    while at < stop:
        tag, list_start, list_stop = _next_field(content, at, stop)
        if tag < 0:
            return tag, at, index, count
        if tag in (_LENGTH_1, _LENGTH_2, _LENGTH_3):
            kind = tag >> 3
            # Of a oneof the last kind counts; pieces of the same kind add up.
            if count > first and index[first, _KIND] != kind:
                count = first
            if count == len(index):
                index = _enlarged(index)
            index[count, _KIND] = kind
            index[count, _LIST_START] = list_start
            index[count, _LIST_STOP] = list_stop
            count += 1
        at = list_stop
    return 0, 0, index, count


@compile_inner_kernel
def _index_entry(
    content: npt.NDArray[np.uint8], start: int, stop: int, index: npt.NDArray[np.int64], first: int, entry: int
) -> tuple[int, int, npt.NDArray[np.int64], int]:
    """Add the rows of the map entry in ``content[start:stop]``, at least one; returns what _index_feature does."""
    count = first
    key_start = start
    key_stop = start
    at = start
    while at < stop:
        tag, field_start, field_stop = _next_field(content, at, stop)
        if tag < 0:
            return tag, at, index, count
        if tag == _LENGTH_1:
            key_start = field_start
            key_stop = field_stop
        elif tag == _LENGTH_2:
            problem, at, index, count = _index_feature(content, field_start, field_stop, index, first, count)
            if problem:
                return problem, at, index, count
        at = field_stop
    if count == first:
        if count == len(index):
            index = _enlarged(index)
        index[count, _KIND] = _NO_KIND
        index[count, _LIST_START] = stop
        index[count, _LIST_STOP] = stop
        count += 1
    for row in range(first, count):
        index[row, _ENTRY] = entry
        index[row, _KEY_START] = key_start
        index[row, _KEY_STOP] = key_stop
    return 0, 0, index, count


@compile_kernel(types.Tuple((types.int64, types.int64, types.int64[:, ::1]))(READ_ONLY_BYTES))
def _index_example(content: npt.NDArray[np.uint8]) -> tuple[int, int, npt.NDArray[np.int64]]:
    """Find every list in a serialized Example; returns the problem or 0, its offset, and rows ``[lists, 6]``."""
    index = np.empty((64, _INDEX_COLUMNS), np.int64)
    count = 0
    entry = 0
    at = 0
    while at < content.size:
        tag, features_at, features_stop = _next_field(content, at, content.size)
        if tag < 0:
            return tag, at, index[:0]
        while tag == _LENGTH_1 and features_at < features_stop:
            entry_tag, start, stop = _next_field(content, features_at, features_stop)
            if entry_tag < 0:
                return entry_tag, features_at, index[:0]
            if entry_tag == _LENGTH_1:
                problem, offset, index, count = _index_entry(content, start, stop, index, count, entry)
                if problem:
                    return problem, offset, index[:0]
                entry += 1
            features_at = stop
        at = features_stop
    return 0, 0, index[:count]


@compile_inner_kernel
def _count_values(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> tuple[int, int, int]:
    """Return how many values the list in ``content[start:stop]`` holds, then the problem or 0 and its offset."""
    count = 0
    at = start
    while at < stop:
        tag, field_start, field_stop = _next_field(content, at, stop)
        if tag < 0:
            return count, tag, at
        if tag == _LENGTH_1:
            if kind == _BYTES:
                count += 1
            elif kind == _FLOATS:
                if (field_stop - field_start) % 4:
                    return count, _FLOATS_CUT_OFF, field_start
                count += (field_stop - field_start) // 4
            else:
                packed = content[field_start:field_stop]
                for byte in packed:
                    count += byte < 128
                if packed.size and packed[packed.size - 1] >= 128:
                    return count, _CUT_OFF, field_stop - 1
        elif (tag == _VARINT_1 and kind == _INT64S) or (tag == _FIXED32_1 and kind == _FLOATS):
            count += 1
        at = field_stop
    return count, 0, 0


@compile_inner_kernel
def _decode_varints(packed: npt.NDArray[np.uint8], values: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Fill ``values`` from as many varints; returns how many were filled, and where the last one begins."""
    if packed.size == values.size:
        for index in range(packed.size):
            values[index] = packed[index]
        return values.size, 0
    count = 0
    start = 0
    value = np.uint64(0)
    for index in range(packed.size):
        byte = np.uint64(packed[index])
        value |= (byte & np.uint64(127)) << np.uint64(7 * (index - start))
        if byte < np.uint64(128):
            values[count] = np.int64(value)
            count += 1
            value = np.uint64(0)
            start = index + 1
        elif index - start >= 9:
            break
    return count, start


@compile_kernel(
    types.Tuple(
        (types.int64, types.int64, types.float32[::1], types.int64[::1], types.int64[:, ::1], types.int64[::1])
    )(READ_ONLY_BYTES, types.int64[:, ::1])
)
def _decode_lists(
    content: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]
) -> tuple[int, int, npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Decode the lists of ``index``; returns the problem or 0, its offset, and the values of all lists of one kind.

    These are float32 ``[floats]``, int64 ``[int64s]`` and, for byte strings, where they lie ``[strings, 2]``; last come
    the number of values of each list ``[lists]``.
    """
    counts = np.zeros(len(index), np.int64)
    totals = np.zeros(4, np.int64)
    for row in range(len(index)):
        kind = index[row, _KIND]
        count, problem, offset = _count_values(content, kind, index[row, _LIST_START], index[row, _LIST_STOP])
        if problem:
            return (
                problem, offset, np.empty(0, np.float32), np.empty(0, np.int64), np.empty((0, 2), np.int64), counts
            )  # fmt: skip
        counts[row] = count
        totals[kind] += count
    bounds = np.empty((totals[_BYTES], 2), np.int64)
    # Bytes, seen as floats at the end: the payload holds them little-endian, as the machine does, but not aligned.
    floats = np.empty(4 * totals[_FLOATS], np.uint8)
    int64s = np.empty(totals[_INT64S], np.int64)
    strings_at = 0
    floats_at = 0
    int64s_at = 0
    for row in range(len(index)):
        kind = index[row, _KIND]
        at = index[row, _LIST_START]
        while at < index[row, _LIST_STOP]:
            tag, start, stop = _next_field(content, at, index[row, _LIST_STOP])
            if kind == _BYTES and tag == _LENGTH_1:
                bounds[strings_at, 0] = start
                bounds[strings_at, 1] = stop
                strings_at += 1
            elif kind == _FLOATS and tag in (_LENGTH_1, _FIXED32_1):
                floats_at = _copy(content[start:stop], floats, floats_at)
            elif kind == _INT64S and tag in (_LENGTH_1, _VARINT_1):
                packed = content[start:stop]
                count = 0
                for byte in packed:
                    count += byte < 128
                filled, last = _decode_varints(packed, int64s[int64s_at : int64s_at + count])
                if filled < count:
                    return _VARINT_TOO_LONG, start + last, floats[:0].view(np.float32), int64s[:0], bounds[:0], counts
                int64s_at += count
            at = stop
    return 0, 0, floats.view(np.float32), int64s, bounds, counts


@compile_inner_kernel
def _put_varint(encoded: npt.NDArray[np.uint8], at: int, value: np.uint64) -> Any:
    """Write a varint at ``at``; returns where it ends."""
    while value >= np.uint64(128):
        encoded[at] = np.uint8(value & np.uint64(127) | np.uint64(128))
        value >>= np.uint64(7)
        at += 1
    encoded[at] = np.uint8(value)
    return at + 1


@compile_kernel(types.uint8[::1](types.Array(types.int64, 1, "C", readonly=True)))
def _encode_varints(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return int64 ``values`` as varints one after the other; negative ones take ten bytes, as protobuf has it."""
    union = np.uint64(0)
    for value in values:
        union |= np.uint64(value)
    if union < np.uint64(128):
        encoded = np.empty(values.size, np.uint8)
        for index in range(values.size):
            encoded[index] = np.uint8(values[index])
        return encoded
    longest = 1
    while longest < 10 and union >> np.uint64(7 * longest):
        longest += 1
    encoded = np.empty(values.size * longest, np.uint8)
    at = 0
    for signed in values:
        at = _put_varint(encoded, at, np.uint64(signed))
    return encoded[:at]


@compile_kernel(types.uint8[::1](READ_ONLY_BYTES, types.Array(types.int64, 1, "C", readonly=True)))
def _encode_byte_strings(joined: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return a BytesList of the strings that ``joined`` holds one after the other: tag, length and bytes of each."""
    encoded = np.empty(joined.size + 11 * lengths.size, np.uint8)
    at = 0
    start = 0
    for length in lengths:
        encoded[at] = _LENGTH_1
        at += 1
        at = _put_varint(encoded, at, np.uint64(length))
        at = _copy(joined[start : start + length], encoded, at)
        start += length
    return encoded[:at]


@compile_kernel(types.Tuple((types.uint8[::1], types.int64[::1]))(READ_ONLY_BYTES, types.int64[:, ::1]))
def _gather_strings(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the strings that lie at ``bounds`` ``[n, 2]`` one after the other, and where each begins ``[n + 1]``."""
    offsets = np.zeros(len(bounds) + 1, np.int64)
    for string in range(len(bounds)):
        offsets[string + 1] = offsets[string] + bounds[string, 1] - bounds[string, 0]
    joined = np.empty(offsets[-1], np.uint8)
    for string in range(len(bounds)):
        start = np.uintp(bounds[string, 0])
        target = np.uintp(offsets[string])
        for step in range(np.uintp(bounds[string, 1]) - start):
            joined[target + step] = content[start + step]
    return joined, offsets
