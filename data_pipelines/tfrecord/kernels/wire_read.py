"""Inner kernels that read the wire format of protobuf messages: the one place that knows how it is laid out.

There are two ways to read a message. :func:`next_field` reads any field of any writer, and names the error in it.
:func:`read_field`, :func:`read_entry` and :func:`read_list` read messages as TensorFlow's own writers lay them out,
where the next field is known, and return a negative number for anything else.

Source: https://protobuf.dev/programming-guides/encoding/. After a change here, ``tools/caches.sh`` compiles the
kernels that call them again.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import compile_inner_kernel

ABSENT, NO_KIND, EMPTY, SEVERAL = 0, 4, 5, 6
"""States of a column in a record other than a list of kind 1 to 3: no such feature, or a feature without a kind; for a
scalar column also an empty list, or several values.
"""

BYTES, FLOATS, INT64S = 1, 2, 3
"""Kinds of lists: the number of the list's field in Feature."""

NOTHING = -1

# Problems of a message: negative, so that they fit in place of a tag, a position or a count.
CUT_OFF, VARINT_TOO_LONG, INVALID_TAG, FLOATS_CUT_OFF, NON_CANONICAL = -1, -2, -3, -4, -5
PROBLEMS = {
    CUT_OFF: "a field runs past the end of the message it is in",
    VARINT_TOO_LONG: "a varint takes more than 10 bytes",
    INVALID_TAG: "a field has number 0 or an unsupported wire type",
    FLOATS_CUT_OFF: "the length of a packed list of floats is not a multiple of 4",
}

# A field's tag is its number times 8 plus its wire type; every number in these messages is 1, 2 or 3.
LENGTH_1, LENGTH_2, LENGTH_3 = 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2
_VARINT_1 = 1 << 3 | 0
_FIXED32_1 = 1 << 3 | 5

INT64S_IN = types.Array(types.int64, 1, "C", readonly=True)
BOUNDS = types.Array(types.int64, 2, "C", readonly=True)


@compile_inner_kernel
def byte_at(content: npt.NDArray[np.uint8], at: int) -> Any:
    """Return a byte as an int64."""
    # Unsigned indices do not wrap around, which saves a comparison.
    return np.int64(content[np.uintp(at)])


@compile_inner_kernel
def read_length(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any]:
    """Return the length at ``at`` and where its content begins, or -1 if the content ends beyond ``stop``."""
    if at >= stop:
        return 0, NOTHING
    first = byte_at(content, at)
    at += 1
    length = first & 127
    shift = 7
    while first >= 128:
        # No message is longer than 2 GiB, so five bytes hold its length.
        if at >= stop or shift > 28:
            return 0, NOTHING
        first = byte_at(content, at)
        at += 1
        length |= (first & 127) << shift
        shift += 7
    if length > stop - at:
        return 0, NOTHING
    return length, at


@compile_inner_kernel
def read_field(content: npt.NDArray[np.uint8], at: int, stop: int, tag: int) -> tuple[int, int]:
    """Return the bounds of the content of the field at ``at``, if its tag is ``tag``; else -1."""
    if at >= stop or byte_at(content, at) != tag:
        return NOTHING, NOTHING
    length, start = read_length(content, at + 1, stop)
    return start, start + length


@compile_inner_kernel
def hash_key(content: npt.NDArray[np.uint8], start: int, stop: int, section: int) -> Any:
    """Return a hash of a key, 0 or more. Source: FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/."""
    found = np.uint64(0xCBF29CE484222325) ^ np.uint64(section)
    for at in range(start, stop):
        found = (found ^ np.uint64(content[np.uintp(at)])) * np.uint64(0x100000001B3)
    return np.int64((found ^ found >> np.uint64(32)) & np.uint64(0x7FFFFFFF))


@compile_inner_kernel
def is_equal(
    left: npt.NDArray[np.uint8], left_start: int, right: npt.NDArray[np.uint8], right_start: int, size: int
) -> bool:
    """Return whether ``size`` bytes are equal."""
    at = 0
    different = np.uint64(0)
    while at + 8 <= size:
        different |= word_at(left, np.uintp(left_start + at)) ^ word_at(right, np.uintp(right_start + at))
        at += 8
    while at < size:
        different |= np.uint64(left[np.uintp(left_start + at)] ^ right[np.uintp(right_start + at)])
        at += 1
    return different == np.uint64(0)


@compile_inner_kernel
def word_at(content: npt.NDArray[np.uint8], at: Any) -> np.uint64:
    """Return eight bytes as a little-endian number."""
    # Unrolled and with unsigned indices, which do not wrap around, LLVM makes one load of it; of a loop it does not.
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
def uint32_at(content: npt.NDArray[np.uint8], at: int) -> np.uint32:
    """Return four bytes as a little-endian number."""
    place = np.uintp(at)
    return (
        np.uint32(content[place])
        | np.uint32(content[place + np.uintp(1)]) << np.uint32(8)
        | np.uint32(content[place + np.uintp(2)]) << np.uint32(16)
        | np.uint32(content[place + np.uintp(3)]) << np.uint32(24)
    )


@compile_inner_kernel
def read_int64(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any]:
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
    return 0, NOTHING


@compile_inner_kernel
def next_field(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any, Any]:
    """Return a field's tag or the problem, where its content starts, and where that ends and the next field begins.

    The first byte must be before ``stop``.
    """
    # Nearly every field of an Example is one of these three.
    first = byte_at(content, at)
    if first == LENGTH_1:
        length, start = read_length(content, at + 1, stop)
        if start >= 0:
            return first, start, start + length
    elif first == _FIXED32_1 and stop - at >= 5:
        return first, at + 1, at + 5
    elif first == _VARINT_1:
        _, end = read_int64(content, at + 1, stop)
        if end >= 0:
            return first, at + 1, end
    return _any_field(content, at, stop)


@compile_inner_kernel
def _varint_problem(at: int, stop: int) -> int:
    """Return why :func:`read_int64` reads no varint at ``at``."""
    # Not a result of read_int64: returned from there, it slows down every reader of lists.
    return CUT_OFF if stop - at < 10 else VARINT_TOO_LONG


@compile_inner_kernel
def _any_field(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, Any, Any]:
    """Return the result of :func:`next_field` for a field of any tag."""
    signed_tag, start = read_int64(content, at, stop)
    if start < 0:
        return _varint_problem(at, stop), at, at
    tag = np.uint64(signed_tag)
    if tag < np.uint64(8) or tag > np.uint64(0xFFFFFFFF):
        return INVALID_TAG, at, at
    wire_type = tag & np.uint64(7)
    if wire_type == np.uint64(2):
        length_at = start
        length, start = read_int64(content, length_at, stop)
        if start < 0:
            return _varint_problem(length_at, stop), at, at
        if np.uint64(length) > np.uint64(stop - start):
            return CUT_OFF, at, at
        end = start + length
    elif wire_type == np.uint64(0):
        _, end = read_int64(content, start, stop)
        if end < 0:
            return _varint_problem(start, stop), at, at
    elif wire_type == np.uint64(5):
        end = start + 4
    elif wire_type == np.uint64(1):
        end = start + 8
    else:
        # Groups are long deprecated: no writer of Examples uses them.
        return INVALID_TAG, at, at
    if end > stop:
        return CUT_OFF, at, at
    return np.int64(tag), start, end


@compile_inner_kernel
def read_entry(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int, int, int]:
    """Return the bounds of key and value of the map entry at ``at``, and the beginning of the next entry.

    The last value is -1 for an entry that is not exactly a key and a value.
    """
    entry_start, entry_stop = read_field(content, at, stop, LENGTH_1)
    if entry_start < 0:
        return 0, 0, 0, 0, NOTHING
    key_start, key_stop = read_field(content, entry_start, entry_stop, LENGTH_1)
    if key_start < 0:
        return 0, 0, 0, 0, NOTHING
    start, stop = read_field(content, key_stop, entry_stop, LENGTH_2)
    if start < 0 or stop != entry_stop:
        return 0, 0, 0, 0, NOTHING
    return key_start, key_stop, start, stop, entry_stop


@compile_inner_kernel
def read_list(content: npt.NDArray[np.uint8], start: int, stop: int) -> tuple[Any, Any, Any]:
    """Return the kind of the one list in the Feature ``content[start:stop]``, and the list's bounds."""
    if start == stop:
        return NO_KIND, stop, stop
    tag = byte_at(content, start)
    if tag != LENGTH_1 and tag != LENGTH_2 and tag != LENGTH_3:
        return NON_CANONICAL, stop, stop
    length, at = read_length(content, start + 1, stop)
    if at < 0 or at + length != stop:
        return NON_CANONICAL, stop, stop
    return tag >> 3, at, stop


@compile_inner_kernel
def holds_values(kind: int, tag: int) -> bool:
    """Return whether a field of a list of this kind is a string, or packed numbers, or one number by itself."""
    return tag == LENGTH_1 or (tag == _VARINT_1 and kind == INT64S) or (tag == _FIXED32_1 and kind == FLOATS)


@compile_inner_kernel
def count_varints(content: npt.NDArray[np.uint8], start: int, stop: int) -> Any:
    """Return the number of varints that end in ``content[start:stop]``."""
    count = 0
    for at in range(np.uintp(start), np.uintp(stop)):
        count += content[at] < 128
    return count


@compile_inner_kernel
def count_list(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> int:
    """Return the number of values in a list, or ``NON_CANONICAL``."""
    # With next_field, a survey of packed lists takes a tenth longer, and one of unpacked lists half as long again.
    count = 0
    at = start
    while at < stop:
        tag = byte_at(content, at)
        if tag == LENGTH_1:
            length, at = read_length(content, at + 1, stop)
            if at < 0:
                return NON_CANONICAL
            if kind == BYTES:
                count += 1
            elif kind == FLOATS:
                if length % 4:
                    return NON_CANONICAL
                count += length // 4
            else:
                for place in range(np.uintp(at), np.uintp(at + length)):
                    count += content[place] < 128
                if length and content[np.uintp(at + length - 1)] >= 128:
                    return NON_CANONICAL
            at += length
        elif tag == _FIXED32_1 and kind == FLOATS and stop - at >= 5:
            count += 1
            at += 5
        elif tag == _VARINT_1 and kind == INT64S:
            _, at = read_int64(content, at + 1, stop)
            if at < 0:
                return NON_CANONICAL
            count += 1
        else:
            return NON_CANONICAL
    return count


@compile_inner_kernel
def read_one_number(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> tuple[Any, Any]:
    """Return a list's form for a scalar column (its kind, EMPTY, SEVERAL or NON_CANONICAL), and the value's bits."""
    count = count_list(content, kind, start, stop)
    if count < 0:
        return NON_CANONICAL, 0
    if count != 1:
        return (SEVERAL if count else EMPTY), 0
    at = start
    # Empty packed fields may come before the one with the value.
    while content[np.uintp(at)] == LENGTH_1:
        length, at = read_length(content, at + 1, stop)
        if length:
            break
    else:
        at += 1
    if kind == FLOATS:
        return kind, np.int64(uint32_at(content, at))
    value, end = read_int64(content, at, stop)
    return (kind if end >= 0 else NON_CANONICAL), value
