"""Kernels that read a tf.train.Example of any writer, and encode its lists."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel

# A field's tag is its number times 8 plus its wire type; every number here is 1, 2 or 3.
_VARINT_1 = 1 << 3 | 0
_FIXED32_1 = 1 << 3 | 5
_LENGTH_1 = 1 << 3 | 2
_LENGTH_2 = 2 << 3 | 2
_LENGTH_3 = 3 << 3 | 2

# The number of a list's field in Feature is its kind.
NO_KIND, BYTES, FLOATS, INT64S = range(4)

# Problems of a message, as kernels report them: negative, so that they fit in place of a tag or a position.
_CUT_OFF = -1
_VARINT_TOO_LONG = -2
_INVALID_TAG = -3
_FLOATS_CUT_OFF = -4
PROBLEMS = {
    _CUT_OFF: "a field runs past the end of the message it is in",
    _VARINT_TOO_LONG: "a varint takes more than 10 bytes",
    _INVALID_TAG: "a field has number 0 or an unsupported wire type",
    _FLOATS_CUT_OFF: "the length of a packed list of floats is no multiple of 4",
}

# One row of an index: the number of its map entry, the span of the entry's key, the kind of list, the list's span.
_ENTRY, KEY_START, KEY_STOP, KIND, _LIST_START, _LIST_STOP = range(6)
_INDEX_COLUMNS = 6


@compile_inner_kernel
def _read_varint(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any]:
    """Return the varint at ``at`` and where it ends, or a problem instead of its end."""
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
        # Groups are long deprecated: no writer of Examples uses them.
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
    """Write ``source`` to ``target`` from ``at`` on; return where it ends."""
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
            # In a oneof the last kind counts; pieces of the same kind add up.
            if count > first and index[first, KIND] != kind:
                count = first
            if count == len(index):
                index = _enlarged(index)
            index[count, KIND] = kind
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
        index[count, KIND] = NO_KIND
        index[count, _LIST_START] = stop
        index[count, _LIST_STOP] = stop
        count += 1
    for row in range(first, count):
        index[row, _ENTRY] = entry
        index[row, KEY_START] = key_start
        index[row, KEY_STOP] = key_stop
    return 0, 0, index, count


@compile_kernel(types.Tuple((types.int64, types.int64, types.int64[:, ::1]))(READ_ONLY_BYTES))
def index_example(content: npt.NDArray[np.uint8]) -> tuple[int, int, npt.NDArray[np.int64]]:
    """Find every list in a serialized Example; return the problem or 0, its offset, and rows ``[lists, 6]``."""
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
    """Return the number of values in the list ``content[start:stop]``, then the problem or 0 and its offset."""
    count = 0
    at = start
    while at < stop:
        tag, field_start, field_stop = _next_field(content, at, stop)
        if tag < 0:
            return count, tag, at
        if tag == _LENGTH_1:
            if kind == BYTES:
                count += 1
            elif kind == FLOATS:
                if (field_stop - field_start) % 4:
                    return count, _FLOATS_CUT_OFF, field_start
                count += (field_stop - field_start) // 4
            else:
                packed = content[field_start:field_stop]
                for byte in packed:
                    count += byte < 128
                if packed.size and packed[packed.size - 1] >= 128:
                    return count, _CUT_OFF, field_stop - 1
        elif (tag == _VARINT_1 and kind == INT64S) or (tag == _FIXED32_1 and kind == FLOATS):
            count += 1
        at = field_stop
    return count, 0, 0


@compile_inner_kernel
def _decode_varints(packed: npt.NDArray[np.uint8], values: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Fill ``values`` from as many varints; return how many were filled, and where the last one begins."""
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
def decode_lists(
    content: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]
) -> tuple[int, int, npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Decode the lists of ``index``; returns the problem or 0, its offset, and the values of all lists of one kind.

    These are float32 ``[floats]``, int64 ``[int64s]`` and the spans of byte strings ``[strings, 2]``; the number of
    values of each list ``[lists]`` comes last.
    """
    counts = np.zeros(len(index), np.int64)
    totals = np.zeros(4, np.int64)
    for row in range(len(index)):
        kind = index[row, KIND]
        count, problem, offset = _count_values(content, kind, index[row, _LIST_START], index[row, _LIST_STOP])
        if problem:
            return (
                problem, offset, np.empty(0, np.float32), np.empty(0, np.int64), np.empty((0, 2), np.int64), counts
            )  # fmt: skip
        counts[row] = count
        totals[kind] += count
    bounds = np.empty((totals[BYTES], 2), np.int64)
    # Bytes, viewed as floats at the end: the payload stores them little-endian, like the machine, but unaligned.
    floats = np.empty(4 * totals[FLOATS], np.uint8)
    int64s = np.empty(totals[INT64S], np.int64)
    strings_at = 0
    floats_at = 0
    int64s_at = 0
    for row in range(len(index)):
        kind = index[row, KIND]
        at = index[row, _LIST_START]
        while at < index[row, _LIST_STOP]:
            tag, start, stop = _next_field(content, at, index[row, _LIST_STOP])
            if kind == BYTES and tag == _LENGTH_1:
                bounds[strings_at, 0] = start
                bounds[strings_at, 1] = stop
                strings_at += 1
            elif kind == FLOATS and tag in (_LENGTH_1, _FIXED32_1):
                floats_at = _copy(content[start:stop], floats, floats_at)
            elif kind == INT64S and tag in (_LENGTH_1, _VARINT_1):
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
    """Write a varint at ``at``; return where it ends."""
    while value >= np.uint64(128):
        encoded[at] = np.uint8(value & np.uint64(127) | np.uint64(128))
        value >>= np.uint64(7)
        at += 1
    encoded[at] = np.uint8(value)
    return at + 1


@compile_kernel(types.uint8[::1](types.Array(types.int64, 1, "C", readonly=True)))
def encode_varints(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return int64 ``values`` as concatenated varints; negative ones take ten bytes, as in protobuf."""
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
def encode_byte_strings(joined: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return a BytesList of the strings concatenated in ``joined``: tag, length and bytes of each."""
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
def gather_strings(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the strings at ``bounds`` ``[n, 2]`` concatenated, and where each begins ``[n + 1]``."""
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
