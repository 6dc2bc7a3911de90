"""Kernels that read a tf.train.Example of any writer, and encode its lists."""

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from mirrorspark.data_pipelines.tfrecord.kernels.wire_read import (
    BYTES,
    CUT_OFF,
    FLOATS,
    FLOATS_CUT_OFF,
    INT64S,
    INT64S_IN,
    LENGTH_1,
    LENGTH_2,
    LENGTH_3,
    NO_KIND,
    VARINT_TOO_LONG,
    count_varints,
    holds_values,
    next_field,
)
from mirrorspark.data_pipelines.tfrecord.kernels.wire_write import put_int64, put_varint

# One row of an index: the number of its map entry, the span of the entry's key, the kind of list, the list's span.
_ENTRY, KEY_START, KEY_STOP, KIND, _LIST_START, _LIST_STOP = range(6)
_INDEX_COLUMNS = 6


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
        tag, list_start, list_stop = next_field(content, at, stop)
        if tag < 0:
            return tag, at, index, count
        if tag in (LENGTH_1, LENGTH_2, LENGTH_3):
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
    """Add the rows of the map entry in ``content[start:stop]``, at least one; returns the result of _index_feature."""
    count = first
    key_start = start
    key_stop = start
    at = start
    while at < stop:
        tag, field_start, field_stop = next_field(content, at, stop)
        if tag < 0:
            return tag, at, index, count
        if tag == LENGTH_1:
            key_start = field_start
            key_stop = field_stop
        elif tag == LENGTH_2:
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
        tag, features_at, features_stop = next_field(content, at, content.size)
        if tag < 0:
            return tag, at, index[:0]
        while tag == LENGTH_1 and features_at < features_stop:
            entry_tag, start, stop = next_field(content, features_at, features_stop)
            if entry_tag < 0:
                return entry_tag, features_at, index[:0]
            if entry_tag == LENGTH_1:
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
        tag, field_start, field_stop = next_field(content, at, stop)
        if tag < 0:
            return count, tag, at
        if not holds_values(kind, tag):
            at = field_stop
            continue
        if kind == BYTES:
            count += 1
        elif kind == FLOATS:
            if (field_stop - field_start) % 4:
                return count, FLOATS_CUT_OFF, field_start
            count += (field_stop - field_start) // 4
        else:
            count += count_varints(content, field_start, field_stop)
            if field_stop > field_start and content[field_stop - 1] >= 128:
                return count, CUT_OFF, field_stop - 1
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
    totals = np.zeros(NO_KIND + 1, np.int64)
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
            tag, start, stop = next_field(content, at, index[row, _LIST_STOP])
            if not holds_values(kind, tag):
                at = stop
                continue
            if kind == BYTES:
                bounds[strings_at, 0] = start
                bounds[strings_at, 1] = stop
                strings_at += 1
            elif kind == FLOATS:
                floats_at = _copy(content[start:stop], floats, floats_at)
            else:
                count = count_varints(content, start, stop)
                filled, last = _decode_varints(content[start:stop], int64s[int64s_at : int64s_at + count])
                if filled < count:
                    return VARINT_TOO_LONG, start + last, floats[:0].view(np.float32), int64s[:0], bounds[:0], counts
                int64s_at += count
            at = stop
    return 0, 0, floats.view(np.float32), int64s, bounds, counts


@compile_kernel(types.uint8[::1](INT64S_IN))
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
        at = put_int64(encoded, at, signed)
    return encoded[:at]


@compile_kernel(types.uint8[::1](READ_ONLY_BYTES, INT64S_IN))
def encode_byte_strings(joined: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return a BytesList of the strings concatenated in ``joined``: tag, length and bytes of each."""
    encoded = np.empty(joined.size + 11 * lengths.size, np.uint8)
    at = 0
    start = 0
    for length in lengths:
        encoded[at] = LENGTH_1
        at += 1
        at = put_varint(encoded, at, length)
        at = _copy(joined[start : start + length], encoded, at)
        start += length
    return encoded[:at]
