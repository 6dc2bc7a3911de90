"""Records -> columns: the kernels behind :class:`data_pipelines.tfrecord.row_codec.RowDecoder`.

They read messages as TensorFlow's own writers lay them out: each map entry is a key and a value, each Feature one list.
A record that holds anything else (fields in pieces or out of order, names that occur twice, unknown fields, damage) is
called *odd*: the kernels only say so, and :mod:`data_pipelines.tfrecord.examples` reads it as protobuf does, or says
what is wrong with it. So no kernel reads a byte outside the payload, and none judges.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel

ABSENT, NO_KIND, EMPTY, SEVERAL = 0, 4, 5, 6
"""What a record has of a column beside the kind of list that was found (1 to 3): no such feature, a feature without
kind; for a scalar column also an empty list, or more than one value."""

_BYTES, _FLOATS, _INT64S = 1, 2, 3
_NOTHING = -1
_ODD = -2
_SIEVE_SIZE = 65_536
_GUESSES = 2


@compile_inner_kernel
def _byte(content: npt.NDArray[np.uint8], at: int) -> Any:
    # An unsigned index is not wrapped around: one comparison less.
    return np.int64(content[np.uintp(at)])


@compile_inner_kernel
def _length(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any]:
    """Return the length that stands at ``at`` and where its content begins, or -1 if that ends beyond ``stop``."""
    if at >= stop:
        return 0, _NOTHING
    first = _byte(content, at)
    at += 1
    length = first & 127
    shift = 7
    while first >= 128:
        # No message passes 2 GiB: five bytes hold its length.
        if at >= stop or shift > 28:
            return 0, _NOTHING
        first = _byte(content, at)
        at += 1
        length |= (first & 127) << shift
        shift += 7
    if length > stop - at:
        return 0, _NOTHING
    return length, at


@compile_inner_kernel
def _field(content: npt.NDArray[np.uint8], at: int, stop: int, tag: int) -> tuple[int, int]:
    """Return where the content of the field at ``at`` begins and ends, if its tag is ``tag``; else -1."""
    if at >= stop or _byte(content, at) != tag:
        return _NOTHING, _NOTHING
    length, start = _length(content, at + 1, stop)
    return start, start + length


@compile_inner_kernel
def _hash(content: npt.NDArray[np.uint8], start: int, stop: int, section: int) -> Any:
    """Return a hash of a key, from 0 on. Source: FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/."""
    found = np.uint64(0xCBF29CE484222325) ^ np.uint64(section)
    for at in range(start, stop):
        found = (found ^ np.uint64(content[np.uintp(at)])) * np.uint64(0x100000001B3)
    return np.int64((found ^ found >> np.uint64(32)) & np.uint64(0x7FFFFFFF))


@compile_inner_kernel
def _is_equal(
    left: npt.NDArray[np.uint8], left_start: int, right: npt.NDArray[np.uint8], right_start: int, size: int
) -> bool:
    """Return whether ``size`` bytes are equal."""
    at = 0
    different = np.uint64(0)
    while at + 8 <= size:
        different |= _word(left, np.uintp(left_start + at)) ^ _word(right, np.uintp(right_start + at))
        at += 8
    while at < size:
        different |= np.uint64(left[np.uintp(left_start + at)] ^ right[np.uintp(right_start + at)])
        at += 1
    return different == np.uint64(0)


@compile_inner_kernel
def _word(content: npt.NDArray[np.uint8], at: Any) -> np.uint64:
    # Written out and with an unsigned index, which is never wrapped around, LLVM makes one load of it.
    return (
        np.uint64(content[at])
        | np.uint64(content[at + np.uintp(1)]) << np.uint64(8)
        | np.uint64(content[at + np.uintp(2)]) << np.uint64(16)
        | np.uint64(content[at + np.uintp(3)]) << np.uint64(24)
        | np.uint64(content[at + np.uintp(4)]) << np.uint64(32)
        | np.uint64(content[at + np.uintp(5)]) << np.uint64(40)
        | np.uint64(content[at + np.uintp(6)]) << np.uint64(48)
        | np.uint64(content[at + np.uintp(7)]) << np.uint64(56)
    )


@compile_inner_kernel
def _float_bits(content: npt.NDArray[np.uint8], at: int) -> np.uint32:
    place = np.uintp(at)
    return (
        np.uint32(content[place])
        | np.uint32(content[place + np.uintp(1)]) << np.uint32(8)
        | np.uint32(content[place + np.uintp(2)]) << np.uint32(16)
        | np.uint32(content[place + np.uintp(3)]) << np.uint32(24)
    )


@compile_inner_kernel
def _int64(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any]:
    """Return the varint at ``at`` and where it ends, or -1 if it does not end before ``stop`` or in ten bytes."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < stop and shift < np.uint64(70):
        byte = np.uint64(content[np.uintp(at)])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return np.int64(value), at
        shift += np.uint64(7)
    return 0, _NOTHING


@compile_inner_kernel
def _entry(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int, int, int]:
    """Return where key and value of the map entry at ``at`` begin and end, and where the next entry begins.

    The last one is -1 for an entry that is anything but a key and a value.
    """
    entry_start, entry_stop = _field(content, at, stop, 0x0A)
    if entry_start < 0:
        return 0, 0, 0, 0, _NOTHING
    key_start, key_stop = _field(content, entry_start, entry_stop, 0x0A)
    if key_start < 0:
        return 0, 0, 0, 0, _NOTHING
    start, stop = _field(content, key_stop, entry_stop, 0x12)
    if start < 0 or stop != entry_stop:
        return 0, 0, 0, 0, _NOTHING
    return key_start, key_stop, start, stop, entry_stop


@compile_inner_kernel
def _list(content: npt.NDArray[np.uint8], start: int, stop: int) -> tuple[Any, Any, Any]:
    """Return the kind of the one list in the Feature ``content[start:stop]``, and where the list begins and ends."""
    if start == stop:
        return NO_KIND, stop, stop
    tag = _byte(content, start)
    if tag != 0x0A and tag != 0x12 and tag != 0x1A:
        return _ODD, stop, stop
    length, at = _length(content, start + 1, stop)
    if at < 0 or at + length != stop:
        return _ODD, stop, stop
    return tag >> 3, at, stop


@compile_inner_kernel
def _count(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> int:
    """Return how many values a list has, or -2."""
    count = 0
    at = start
    while at < stop:
        tag = _byte(content, at)
        if tag == 0x0A:
            length, at = _length(content, at + 1, stop)
            if at < 0:
                return _ODD
            if kind == _BYTES:
                count += 1
            elif kind == _FLOATS:
                if length % 4:
                    return _ODD
                count += length // 4
            else:
                for place in range(np.uintp(at), np.uintp(at + length)):
                    count += content[place] < 128
                if length and content[np.uintp(at + length - 1)] >= 128:
                    return _ODD
            at += length
        elif tag == 0x0D and kind == _FLOATS and stop - at >= 5:
            count += 1
            at += 5
        elif tag == 0x08 and kind == _INT64S:
            _, at = _int64(content, at + 1, stop)
            if at < 0:
                return _ODD
            count += 1
        else:
            return _ODD
    return count


@compile_inner_kernel
def _one_number(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> tuple[Any, Any]:
    """Return what a list is to a scalar column (its kind, EMPTY, SEVERAL or -2), and the bits of the one value."""
    count = _count(content, kind, start, stop)
    if count < 0:
        return _ODD, 0
    if count != 1:
        return (SEVERAL if count else EMPTY), 0
    at = start
    # Packed fields without values may stand before the one that has it.
    while content[np.uintp(at)] == 0x0A:
        length, at = _length(content, at + 1, stop)
        if length:
            break
    else:
        at += 1
    if kind == _FLOATS:
        return kind, np.int64(_float_bits(content, at))
    value, end = _int64(content, at, stop)
    return (kind if end >= 0 else _ODD), value


_INT64S_IN = types.Array(types.int64, 1, "C", readonly=True)
_BOUNDS = types.Array(types.int64, 2, "C", readonly=True)


@compile_inner_kernel
def _find(
    content: npt.NDArray[np.uint8],
    start: int,
    stop: int,
    section: int,
    keys: npt.NDArray[np.uint8],
    key_offsets: npt.NDArray[np.int64],
    sections: npt.NDArray[np.int64],
    table: npt.NDArray[np.int64],
) -> int:
    """Return the number of the key ``content[start:stop]``, or -1."""
    slot = _hash(content, start, stop, section) & (table.size - 1)
    while table[slot] >= 0:
        key = table[slot]
        if (
            sections[key] == section
            and key_offsets[key + 1] - key_offsets[key] == stop - start
            and _is_equal(content, start, keys, key_offsets[key], stop - start)
        ):
            return key
        slot = slot + 1 & (table.size - 1)
    return _NOTHING


@compile_inner_kernel
def _filled_table(
    keys: npt.NDArray[np.uint8], key_offsets: npt.NDArray[np.int64], sections: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return a hash table of key numbers, -1 in empty slots; at least half of them are."""
    size = 16
    while size < 2 * sections.size + 2:
        size *= 2
    table = np.full(size, _NOTHING, np.int64)
    for key in range(sections.size):
        slot = _hash(keys, key_offsets[key], key_offsets[key + 1], sections[key]) & (size - 1)
        while table[slot] >= 0:
            slot = slot + 1 & (size - 1)
        table[slot] = key
    return table


@compile_inner_kernel
def _filled_sieve(keys: npt.NDArray[np.uint8], key_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return 1 for the lengths and endings of keys: most others end otherwise, and need not be looked up."""
    sieve = np.zeros(_SIEVE_SIZE, np.uint8)
    for wanted in range(key_offsets.size - 1):
        stop = key_offsets[wanted + 1]
        ends = np.int64(0)
        if stop - key_offsets[wanted] >= 2:
            ends = _byte(keys, stop - 1) << 8 | _byte(keys, stop - 2)
        sieve[(ends ^ stop - key_offsets[wanted]) & (_SIEVE_SIZE - 1)] = 1
    return sieve


# One function, long as it is: parts that are called for each feature count references of every array that they take
# (three times as slow).
@compile_kernel(
    types.Tuple((types.uint8[:, ::1], types.int64[:, ::1], types.int64[:, :, ::1], types.uint8[::1]))(
        READ_ONLY_BYTES,
        _INT64S_IN,
        _INT64S_IN,
        types.boolean,
        READ_ONLY_BYTES,
        _INT64S_IN,
        _INT64S_IN,
        _INT64S_IN,
        types.int64,
        types.int64,
    )
)
def locate(
    content: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    is_sequence: bool,
    keys: npt.NDArray[np.uint8],
    key_offsets: npt.NDArray[np.int64],
    sections: npt.NDArray[np.int64],
    scalar_kinds: npt.NDArray[np.int64],
    scalars: int,
    lists: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Read the scalar numbers of all records, and find where their other features lie.

    Args:
        content: the buffer with the records.
        starts: where each payload begins ``[rows]``; ``0 <= start <= stop <= size`` is the caller's duty.
        stops: where each ends.
        is_sequence: whether they are SequenceExamples.
        keys: the names of the wanted features, one after the other: those of scalar numbers, then the others.
        key_offsets: where each begins, then where the last one ends ``[features + 1]``.
        sections: 1 for a feature of an Example or a context, 2 for a feature list ``[features]``.
        scalar_kinds: 2 or 3 for the scalars ``[scalars]``.
        scalars: how many of the features are scalar numbers.
        lists: how many are not.

    Returns:
        What was found of each feature, a kind or ABSENT, NO_KIND, EMPTY or SEVERAL ``[features, rows]`` (of a feature
        list 1); the scalars: integers or the bits of floats ``[scalars, rows]``; where each other list or feature list
        begins and ends ``[lists, rows, 2]``; and 1 for odd records ``[rows]``, whose values mean nothing.
    """
    rows = starts.size
    found = np.zeros((scalars + lists, rows), np.uint8)
    values = np.zeros((scalars, rows), np.int64)
    bounds = np.zeros((lists, rows, 2), np.int64)
    odd = np.zeros(rows, np.uint8)
    table = _filled_table(keys, key_offsets, sections)
    sieve = _filled_sieve(keys, key_offsets)
    # Which key followed which the last time: writers keep an order, so the guess is nearly always right.
    following = np.zeros(scalars + lists + 1, np.int64)
    for row in range(rows):
        stop = stops[row]
        at = starts[row]
        before = scalars + lists
        while at < stop and not odd[row]:
            tag = _byte(content, at)
            section = tag >> 3
            map_start, map_stop = _field(content, at, stop, tag)
            if map_start < 0 or (tag != 0x0A and (tag != 0x12 or not is_sequence)):
                odd[row] = 1
                break
            at = map_start
            while at < map_stop:
                # The usual entry has lengths of one byte each.
                value_start = _NOTHING
                value_stop = _NOTHING
                if map_stop - at >= 6:
                    key_start = at + 4
                    key_stop = key_start + _byte(content, at + 3)
                    value_stop = at + 2 + _byte(content, at + 1)
                    if (
                        content[np.uintp(at)] == 0x0A
                        and content[np.uintp(at + 1)] < 128
                        and content[np.uintp(at + 2)] == 0x0A
                        and content[np.uintp(at + 3)] < 128
                        and value_stop <= map_stop
                        and key_stop + 2 <= value_stop
                        and content[np.uintp(key_stop)] == 0x12
                        and content[np.uintp(key_stop + 1)] < 128
                        and key_stop + 2 + _byte(content, key_stop + 1) == value_stop
                    ):
                        value_start = key_stop + 2
                        at = value_stop
                if value_start < 0:
                    key_start, key_stop, value_start, value_stop, at = _entry(content, at, map_stop)
                    if at < 0:
                        odd[row] = 1
                        break
                size = key_stop - key_start
                key = before
                is_guessed = False
                # Where a feature is missing, the one after it comes next.
                for _ in range(_GUESSES):
                    key = following[key]
                    if (
                        key >= sections.size
                        or key_offsets[key + 1] - key_offsets[key] != size
                        or sections[key] != section
                    ):
                        continue
                    different = np.uint64(0)
                    step = 0
                    while step + 8 <= size:
                        different |= _word(content, np.uintp(key_start + step)) ^ _word(
                            keys, np.uintp(key_offsets[key] + step)
                        )
                        step += 8
                    while step < size:
                        different |= np.uint64(
                            content[np.uintp(key_start + step)] ^ keys[np.uintp(key_offsets[key] + step)]
                        )
                        step += 1
                    if different == np.uint64(0):
                        is_guessed = True
                        break
                if not is_guessed:
                    ends = np.int64(0)
                    if size >= 2:
                        ends = _byte(content, key_stop - 1) << 8 | _byte(content, key_stop - 2)
                    if not sieve[(ends ^ size) & (_SIEVE_SIZE - 1)]:
                        continue
                    key = _find(content, key_start, key_stop, section, keys, key_offsets, sections, table)
                    if key < 0:
                        continue
                    following[before] = key
                before = key
                if found[key, row]:
                    # The name a second time: protobuf lets the last one count.
                    odd[row] = 1
                    break
                if section == 2:
                    found[key, row] = 1
                    bounds[key - scalars, row, 0] = value_start
                    bounds[key - scalars, row, 1] = value_stop
                    continue
                size = value_stop - value_start
                if key < scalars and size >= 5 and content[np.uintp(value_start + 2)] == 0x0A:
                    # Feature { list { packed, one value } }, as nearly every writer has it.
                    kind = scalar_kinds[key]
                    if (
                        content[np.uintp(value_start)] == kind << 3 | 2
                        and _byte(content, value_start + 1) == size - 2
                        and _byte(content, value_start + 3) == size - 4
                    ):
                        if kind == _FLOATS and size == 8:
                            found[key, row] = kind
                            values[key, row] = np.int64(_float_bits(content, value_start + 4))
                            continue
                        if kind == _INT64S and size <= 14:
                            value = np.uint64(0)
                            shift = np.uint64(0)
                            place = value_start + 4
                            while place < value_stop - 1 and content[np.uintp(place)] >= 128:
                                value |= (np.uint64(content[np.uintp(place)]) & np.uint64(127)) << shift
                                shift += np.uint64(7)
                                place += 1
                            last = np.uint64(content[np.uintp(place)])
                            if place == value_stop - 1 and last < np.uint64(128):
                                found[key, row] = kind
                                values[key, row] = np.int64(value | last << shift)
                                continue
                kind, list_start, list_stop = _list(content, value_start, value_stop)
                if kind < 0:
                    odd[row] = 1
                    break
                found[key, row] = kind
                if key >= scalars:
                    bounds[key - scalars, row, 0] = list_start
                    bounds[key - scalars, row, 1] = list_stop
                    continue
                if kind != scalar_kinds[key]:
                    continue
                state, bits = _one_number(content, kind, list_start, list_stop)
                if state < 0:
                    odd[row] = 1
                    break
                found[key, row] = state
                values[key, row] = bits
    return found, values, bounds, odd


@compile_kernel(types.Tuple((types.int64[::1], types.int64))(READ_ONLY_BYTES, types.int64, _BOUNDS))
def count_values(
    content: npt.NDArray[np.uint8], kind: int, bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int]:
    """Return where the values of each list begin and the last one's end ``[lists + 1]``, and an odd list or -1.

    Args:
        content: the buffer with the records.
        kind: the kind of all lists.
        bounds: where each list begins and ends ``[lists, 2]``; both equal for one that is not there.
    """
    offsets = np.zeros(len(bounds) + 1, np.int64)
    for row in range(len(bounds)):
        start = bounds[row, 0]
        stop = bounds[row, 1]
        if kind == _FLOATS and stop - start > 2 and stop - start < 130 and content[np.uintp(start)] == 0x0A:
            length = _byte(content, start + 1)
            if length == stop - start - 2 and length % 4 == 0:
                offsets[row + 1] = offsets[row] + length // 4
                continue
        count = _count(content, kind, start, stop)
        if count < 0:
            return offsets, row
        offsets[row + 1] = offsets[row] + count
    return offsets, _NOTHING


@compile_kernel(types.uint32[::1](READ_ONLY_BYTES, _BOUNDS, _INT64S_IN))
def read_floats(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Return the bits of the floats of all lists, which :func:`count_values` has counted."""
    values = np.empty(offsets[-1], np.uint32)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            if content[np.uintp(at)] == 0x0A:
                length, at = _length(content, at + 1, stop)
            else:
                length = 4
                at += 1
            for _ in range(length // 4):
                values[position] = _float_bits(content, at)
                position += 1
                at += 4
    return values


@compile_kernel(types.Tuple((types.int64[::1], types.int64))(READ_ONLY_BYTES, _BOUNDS, _INT64S_IN))
def read_int64s(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the integers of all lists, which :func:`count_values` has counted, and an odd list or -1."""
    values = np.empty(offsets[-1], np.int64)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            tag = content[np.uintp(at)]
            field_stop = stop
            at += 1
            if tag == 0x0A:
                length, at = _length(content, at, stop)
                field_stop = at + length
            while at < field_stop:
                value, at = _int64(content, at, field_stop)
                if at < 0:
                    return values, row
                values[position] = value
                position += 1
                if tag != 0x0A:
                    break
    return values, _NOTHING


@compile_kernel(types.Tuple((types.uint8[::1], types.int64[::1]))(READ_ONLY_BYTES, _BOUNDS, _INT64S_IN))
def read_strings(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the byte strings of all lists, which :func:`count_values` has counted, end to end, and where each begins.

    The last of the offsets ``[strings + 1]`` is where the last string ends.
    """
    string_offsets = np.zeros(offsets[-1] + 1, np.int64)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            length, at = _length(content, at + 1, stop)
            string_offsets[position + 1] = string_offsets[position] + length
            position += 1
            at += length
    strings = np.empty(string_offsets[-1], np.uint8)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            length, at = _length(content, at + 1, stop)
            target = string_offsets[position]
            for step in range(length):
                strings[np.uintp(target + step)] = content[np.uintp(at + step)]
            position += 1
            at += length
    return strings, string_offsets


@compile_kernel(
    types.Tuple((types.int64[::1], types.int64[:, ::1], types.uint8[::1], types.int64))(READ_ONLY_BYTES, _BOUNDS)
)
def split_feature_lists(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8], int]:
    """Find the features of feature lists.

    Args:
        content: the buffer with the records.
        bounds: where each FeatureList begins and ends ``[rows, 2]``.

    Returns:
        Where the features of each row begin and the last one's end ``[rows + 1]``; where each feature's list begins and
        ends ``[features, 2]``; its kind or NO_KIND ``[features]``; and an odd row or -1.
    """
    offsets = np.zeros(len(bounds) + 1, np.int64)
    for row in range(len(bounds)):
        at = bounds[row, 0]
        count = 0
        while at < bounds[row, 1]:
            start, at = _field(content, at, bounds[row, 1], 0x0A)
            if start < 0:
                return offsets, np.empty((0, 2), np.int64), np.empty(0, np.uint8), row
            count += 1
        offsets[row + 1] = offsets[row] + count
    inner = np.empty((offsets[-1], 2), np.int64)
    kinds = np.empty(offsets[-1], np.uint8)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        while at < bounds[row, 1]:
            start, at = _field(content, at, bounds[row, 1], 0x0A)
            kind, list_start, list_stop = _list(content, start, at)
            if kind < 0:
                return offsets, inner, kinds, row
            inner[position, 0] = list_start
            inner[position, 1] = list_stop
            kinds[position] = kind
            position += 1
    return offsets, inner, kinds, _NOTHING


@compile_kernel(types.Tuple((types.uint8[::1], types.int64[::1]))(READ_ONLY_BYTES, _INT64S_IN, _INT64S_IN))
def read_payloads(
    content: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the payloads end to end, and where each begins and the last one ends ``[rows + 1]``."""
    offsets = np.zeros(starts.size + 1, np.int64)
    for row in range(starts.size):
        offsets[row + 1] = offsets[row] + stops[row] - starts[row]
    payloads = np.empty(offsets[-1], np.uint8)
    for row in range(starts.size):
        for step in range(stops[row] - starts[row]):
            payloads[np.uintp(offsets[row] + step)] = content[np.uintp(starts[row] + step)]
    return payloads, offsets


@compile_inner_kernel
def _note_feature(
    content: npt.NDArray[np.uint8],
    start: int,
    stop: int,
    key: int,
    row: int,
    first_rows: npt.NDArray[np.int64],
    most_values: npt.NDArray[np.int64],
) -> bool:
    """Note the kind and number of values of the Feature in ``content[start:stop]``; returns False if it is odd."""
    kind, list_start, list_stop = _list(content, start, stop)
    if kind < 0:
        return False
    values = 0
    if kind != NO_KIND:
        values = _count(content, kind, list_start, list_stop)
        if values < 0:
            return False
    if first_rows[key, kind] < 0:
        first_rows[key, kind] = row
    most_values[key] = max(most_values[key], values)
    return True


# One function: the search for the key apart, with the arrays it takes, costs twice the time (2.5 -> 5.1 us for 42
# features).
@compile_kernel(
    types.Tuple(
        (
            types.int64,
            types.uint8[::1],
            types.int64[::1],
            types.int64[::1],
            types.int64[:, ::1],
            types.int64[::1],
            types.uint8[::1],
        )
    )(READ_ONLY_BYTES, _INT64S_IN, _INT64S_IN, types.boolean, types.int64, types.int64)
)
def survey(
    content: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
    is_sequence: bool,
    most_keys: int,
    most_key_bytes: int,
) -> tuple[
    int,
    npt.NDArray[np.uint8],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
    npt.NDArray[np.int64],
    npt.NDArray[np.uint8],
]:
    """Find which features records have.

    Args:
        content: the buffer with the records.
        starts: where each payload begins ``[rows]``.
        stops: where each ends.
        is_sequence: whether they are SequenceExamples.
        most_keys: room for so many names,
        most_key_bytes: of so many bytes in all.

    Returns:
        How many names there are, or -1 if the room did not do; their bytes and offsets; 1 for a feature and 2 for a
        feature list ``[most_keys]``; the first row that has it of kind 1 to 3 or NO_KIND, else -1 ``[most_keys, 5]``;
        the greatest number of values of one feature ``[most_keys]``; and 1 for odd records ``[rows]``.
    """
    keys = np.zeros(most_key_bytes, np.uint8)
    key_offsets = np.zeros(most_keys + 1, np.int64)
    sections = np.zeros(most_keys, np.int64)
    first_rows = np.full((most_keys, 5), _NOTHING, np.int64)
    most_values = np.zeros(most_keys, np.int64)
    odd = np.zeros(starts.size, np.uint8)
    table = np.full(max(16, 4 * most_keys), _NOTHING, np.int64)
    count = 0
    for row in range(starts.size):
        stop = stops[row]
        at = starts[row]
        while at < stop and not odd[row]:
            tag = _byte(content, at)
            section = tag >> 3
            map_start, map_stop = _field(content, at, stop, tag)
            if map_start < 0 or (tag != 0x0A and (tag != 0x12 or not is_sequence)):
                odd[row] = 1
                break
            at = map_start
            while at < map_stop:
                key_start, key_stop, value_start, value_stop, at = _entry(content, at, map_stop)
                if at < 0:
                    odd[row] = 1
                    break
                slot = _hash(content, key_start, key_stop, section) % table.size
                while table[slot] >= 0:
                    key = table[slot]
                    if (
                        sections[key] == section
                        and key_offsets[key + 1] - key_offsets[key] == key_stop - key_start
                        and _is_equal(content, key_start, keys, key_offsets[key], key_stop - key_start)
                    ):
                        break
                    slot = (slot + 1) % table.size
                key = table[slot]
                if key < 0:
                    if count == most_keys or key_offsets[count] + key_stop - key_start > most_key_bytes:
                        return _NOTHING, keys, key_offsets, sections, first_rows, most_values, odd
                    key = count
                    for step in range(key_stop - key_start):
                        keys[np.uintp(key_offsets[key] + step)] = content[np.uintp(key_start + step)]
                    key_offsets[key + 1] = key_offsets[key] + key_stop - key_start
                    sections[key] = section
                    table[slot] = key
                    count += 1
                if section == 1:
                    if not _note_feature(content, value_start, value_stop, key, row, first_rows, most_values):
                        odd[row] = 1
                        break
                    continue
                while value_start < value_stop and not odd[row]:
                    start, value_start = _field(content, value_start, value_stop, 0x0A)
                    if start < 0 or not _note_feature(content, start, value_start, key, row, first_rows, most_values):
                        odd[row] = 1
                if odd[row]:
                    break
    return count, keys, key_offsets, sections, first_rows, most_values, odd
