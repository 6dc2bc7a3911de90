"""Kernels that decode a block into a slot."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from mirrorspark.data_pipelines.tfrecord.crc32c import MASK_DELTA, crc32c_of_span
from mirrorspark.data_pipelines.tfrecord.records import FOOTER_BYTES, HEADER_BYTES

# The kinds of columns in a slot.
FLOATS, INT64S, LIST_LENGTHS, LIST_INT64S, LIST_FLOATS = range(5)

# The kernel's codes for what is wrong with a block.
WHOLE, NOT_A_RECORD, _MALFORMED, _MISSING, _COUNT, _VALUES, _LENGTHS, NO_ROOM = range(8)
PROBLEMS = {
    _MALFORMED: "it is not laid out as blocks are written",
    _MISSING: "column '{column}' is missing or holds another kind of values",
    _COUNT: "column '{column}' has {count} values for {rows} rows",
    _VALUES: "column '{column}' is cut off inside a number",
    _LENGTHS: "the lengths in column '{column}' do not add up to its values",
}

# Tags of length-delimited fields. 1: the only one of Example, of Features and of each list, and a map entry's key.
# 2: a map entry's value, and a Feature's floats. 3: a Feature's int64s.
_FIELD_1 = 1 << 3 | 2
_FIELD_2 = 2 << 3 | 2
_FIELD_3 = 3 << 3 | 2

_INT64_SPAN = types.Array(types.int64, 1, "C", readonly=True)


@compile_inner_kernel
def _field(content: npt.NDArray[np.uint8], at: int, stop: int, tag: int) -> tuple[Any, Any]:
    """Return the span of the content of the length-delimited field ``tag`` at ``at``; -1 if there is none."""
    if at >= stop or content[at] != tag:
        return -1, -1
    at += 1
    length: Any = 0
    shift = 0
    while at < stop and shift < 35:
        byte = np.int64(content[at])
        at += 1
        length |= (byte & 127) << shift
        if byte < 128:
            return (at, at + length) if length <= stop - at else (-1, -1)
        shift += 7
    return -1, -1


@compile_inner_kernel
def _find_name(
    content: npt.NDArray[np.uint8], start: int, stop: int, names: npt.NDArray[np.uint8], name_stops: Any, expected: int
) -> int:
    """Return the number of the name in ``content[start:stop]``, or -1 if it is not one of ``names``."""
    for tried in range(name_stops.size):
        number = (expected + tried) % name_stops.size
        begin = name_stops[number - 1] if number else 0
        if name_stops[number] - begin != stop - start:
            continue
        same = True
        for index in range(stop - start):
            same &= content[start + index] == names[begin + index]
        if same:
            return number
    return -1


@compile_inner_kernel
def _find_columns(
    content: npt.NDArray[np.uint8],
    at: int,
    stop: int,
    names: npt.NDArray[np.uint8],
    name_stops: Any,
    kinds: Any,
    spans: Any,
) -> bool:
    """Fill ``spans`` with the span of each column's values, or -1 if it is missing; return False if malformed."""
    for column in range(name_stops.size):
        spans[column, 0] = -1
        spans[column, 1] = -1
    if at == stop:
        return True
    at, features_stop = _field(content, at, stop, _FIELD_1)
    if at < 0 or features_stop != stop:
        return False
    expected = 0
    while at < stop:
        entry, entry_stop = _field(content, at, stop, _FIELD_1)
        if entry < 0:
            return False
        key, key_stop = _field(content, entry, entry_stop, _FIELD_1)
        if key < 0:
            return False
        feature, feature_stop = _field(content, key_stop, entry_stop, _FIELD_2)
        if feature < 0 or feature_stop != entry_stop:
            return False
        column = _find_name(content, key, key_stop, names, name_stops, expected)
        if column >= 0:
            is_float = kinds[column] == FLOATS or kinds[column] == LIST_FLOATS
            start, list_stop = _field(content, feature, feature_stop, _FIELD_2 if is_float else _FIELD_3)
            if start >= 0 and list_stop == feature_stop:
                if start == list_stop:
                    spans[column, 0] = start
                    spans[column, 1] = start
                else:
                    packed, packed_stop = _field(content, start, list_stop, _FIELD_1)
                    if packed < 0 or packed_stop != list_stop:
                        return False
                    spans[column, 0] = packed
                    spans[column, 1] = packed_stop
            expected = column + 1
        at = entry_stop
    return True


@compile_inner_kernel
def _little_endian(content: npt.NDArray[np.uint8], at: int, size: int) -> np.uint64:
    value = np.uint64(0)
    for index in range(size):
        value |= np.uint64(content[at + index]) << np.uint64(8 * index)
    return value


@compile_inner_kernel
def _has_checksum(content: npt.NDArray[np.uint8], start: int, stop: Any) -> bool:
    """Return whether the four bytes at ``stop`` are the masked CRC-32C of ``content[start:stop]``."""
    crc = crc32c_of_span(content, start, stop, 0)
    masked = (np.uint32(crc >> np.uint32(15)) | np.uint32(crc << np.uint32(17))) + np.uint32(MASK_DELTA)
    return np.uint32(masked) == np.uint32(_little_endian(content, stop, 4))


@compile_inner_kernel
def _find_payload(content: npt.NDArray[np.uint8], offset: int) -> tuple[Any, Any]:
    """Return where the payload of the record at ``offset`` starts and stops; -1 if there is no intact record."""
    if offset < 0 or offset > content.size:
        return -1, -1
    room = content.size - offset - HEADER_BYTES - FOOTER_BYTES
    if room < 0 or not _has_checksum(content, offset, offset + 8):
        return -1, -1
    length = _little_endian(content, offset, 8)
    start = offset + HEADER_BYTES
    if length > np.uint64(room) or not _has_checksum(content, start, start + np.int64(length)):
        return -1, -1
    return start, start + np.int64(length)


@compile_inner_kernel
def _put_floats(content: npt.NDArray[np.uint8], start: int, positions: Any, target: npt.NDArray[np.float32]) -> None:
    # The payload stores them little-endian, like the machine, but unaligned: LLVM makes one load of the four.
    words = target.view(np.uint32)
    at = np.uint64(start)
    for row in range(positions.size):
        words[positions[row]] = (
            np.uint32(content[at])
            | np.uint32(content[at + np.uint64(1)]) << np.uint32(8)
            | np.uint32(content[at + np.uint64(2)]) << np.uint32(16)
            | np.uint32(content[at + np.uint64(3)]) << np.uint32(24)
        )
        at += np.uint64(4)


@compile_inner_kernel
def _read_varint(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, int]:
    """Return the varint at ``at`` and where it ends, or -1 if it is cut off or too long."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < stop and shift < np.uint64(64):
        byte = np.uint64(content[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return value, at
        shift += np.uint64(7)
    return value, -1


@compile_inner_kernel
def _put_int64s(
    content: npt.NDArray[np.uint8], start: int, stop: int, positions: Any, target: npt.NDArray[np.int64]
) -> int:
    """Decode one varint per position; return where the last one ends, or -1 if one is damaged.

    Up to three bytes are read without a loop (1.4 ns against 1.9 ns per value of mixed lengths).
    """
    row = 0
    at: Any = start
    one = np.uint64(1)
    while row < positions.size and at + 3 <= stop:
        place = np.uint64(at)
        value = np.uint64(content[place])
        place += one
        if value >= np.uint64(128):
            byte = np.uint64(content[place])
            place += one
            value += (byte << np.uint64(7)) - np.uint64(1 << 7)
            if byte >= np.uint64(128):
                byte = np.uint64(content[place])
                place += one
                value += (byte << np.uint64(14)) - np.uint64(1 << 14)
                if byte >= np.uint64(128):
                    value, at = _read_varint(content, at, stop)
                    if at < 0:
                        return -1
                    place = np.uint64(at)
        target[positions[row]] = np.int64(value)
        row += 1
        at = np.int64(place)
    while row < positions.size:
        value, at = _read_varint(content, at, stop)
        if at < 0:
            return -1
        target[positions[row]] = np.int64(value)
        row += 1
    return at


@compile_inner_kernel
def _count_varints(content: npt.NDArray[np.uint8], start: int, stop: int) -> int:
    count = 0
    for at in range(start, stop):
        count += content[at] < 128
    return count


@compile_inner_kernel
def _set_starts(
    lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], positions: Any, first: int, most: int
) -> int:
    """Set where the list of each row starts, from ``first`` on; return the last end, or -1 if beyond ``most``."""
    at = first
    for row in range(positions.size):
        place = positions[row]
        if lengths[place] < 0 or lengths[place] > most - (at - first):
            return -1
        starts[place] = at
        at += lengths[place]
    return at


@compile_inner_kernel
def _put_list(
    content: npt.NDArray[np.uint8],
    start: int,
    stop: int,
    begin: int,
    count: int,
    is_int64: bool,
    list_int64s: npt.NDArray[np.int64],
    list_floats: npt.NDArray[np.float32],
) -> bool:
    """Decode ``count`` values to places from ``begin`` on; return whether they fill ``content[start:stop]``."""
    if not is_int64:
        words = list_floats.view(np.uint32)
        for index in range(count):
            words[begin + index] = np.uint32(_little_endian(content, start + 4 * index, 4))
        return start + 4 * count == stop
    at = start
    for index in range(count):
        value, at = _read_varint(content, at, stop)
        if at < 0:
            return False
        list_int64s[begin + index] = np.int64(value)
    return at == stop


@compile_inner_kernel
def _decode_lists(
    content: npt.NDArray[np.uint8],
    kinds: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    positions: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    list_int64s: npt.NDArray[np.int64],
    list_floats: npt.NDArray[np.float32],
    spans: npt.NDArray[np.int64],
) -> tuple[int, int, int]:
    """Decode the values of all lists; the ids and floats of a list begin at the same place."""
    used = 0
    bounds = np.zeros((len(starts), 2), np.int64)
    for column in range(kinds.size):
        if kinds[column] == LIST_LENGTHS:
            place = places[column]
            end = _set_starts(lengths[place], starts[place], positions, used, content.size)
            if end < 0:
                return _LENGTHS, column, 0
            bounds[place, 0] = used
            bounds[place, 1] = end
            used = end
    # All lengths are compared with the values that are there before room is asked for by them.
    for column in range(kinds.size):
        kind = kinds[column]
        if kind in (LIST_INT64S, LIST_FLOATS):
            start = spans[column, 0]
            end = spans[column, 1]
            count = _count_varints(content, start, end) if kind == LIST_INT64S else (end - start) // 4
            if count != bounds[places[column], 1] - bounds[places[column], 0]:
                return _LENGTHS, column, count
    for column in range(kinds.size):
        kind = kinds[column]
        if kind in (LIST_INT64S, LIST_FLOATS):
            if used > (list_int64s.size if kind == LIST_INT64S else list_floats.size):
                return NO_ROOM, column, used
            start = spans[column, 0]
            end = spans[column, 1]
            begin = bounds[places[column], 0]
            count = bounds[places[column], 1] - begin
            if not _put_list(content, start, end, begin, count, kind == LIST_INT64S, list_int64s, list_floats):
                return _VALUES, column, 0
    return WHOLE, 0, 0


@compile_kernel(
    types.UniTuple(types.int64, 3)(
        READ_ONLY_BYTES, types.int64, READ_ONLY_BYTES, _INT64_SPAN, _INT64_SPAN, _INT64_SPAN, types.uint32[::1],
        types.int64, types.float32[:, :, ::1], types.int64[:, :, ::1], types.int64[:, :, ::1], types.int64[:, :, ::1],
        types.int64[:, ::1], types.float32[:, ::1], types.int64[:, ::1],
    )
)  # fmt: skip
def decode_block(
    content: npt.NDArray[np.uint8],
    offset: int,
    names: npt.NDArray[np.uint8],
    name_stops: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    positions: npt.NDArray[np.uint32],
    slot: int,
    floats: npt.NDArray[np.float32],
    int64s: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    list_int64s: npt.NDArray[np.int64],
    list_floats: npt.NDArray[np.float32],
    spans: npt.NDArray[np.int64],
) -> tuple[int, int, int]:
    """Decode the block at ``offset`` into ``slot``; return the problem, its column and a count.

    No memory outside ``content`` and the slot is touched, whatever the bytes. ``spans`` ``[columns, 2]`` is scratch.
    """
    rows = positions.size
    at, stop = _find_payload(content, offset)
    if at < 0:
        return NOT_A_RECORD, 0, 0
    if not _find_columns(content, at, stop, names, name_stops, kinds, spans):
        return _MALFORMED, 0, 0
    for column in range(kinds.size):
        if spans[column, 0] < 0:
            return _MISSING, column, 0
        kind = kinds[column]
        if kind in (LIST_INT64S, LIST_FLOATS):
            continue
        is_float = kind == FLOATS
        start = spans[column, 0]
        end = spans[column, 1]
        count = (end - start) // 4 if is_float else _count_varints(content, start, end)
        if count != rows:
            return _COUNT, column, count
        if is_float:
            if (end - start) % 4:
                return _VALUES, column, 0
            _put_floats(content, start, positions, floats[slot, places[column]])
        else:
            target = int64s[slot, places[column]] if kind == INT64S else lengths[slot, places[column]]
            if _put_int64s(content, start, end, positions, target) != end:
                return _VALUES, column, 0
    return _decode_lists(
        content, kinds, places, positions, starts[slot], lengths[slot], list_int64s[slot], list_floats[slot], spans
    )
