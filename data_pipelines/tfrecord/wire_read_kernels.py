"""Inner kernels that read the wire format of protobuf messages.

After a change here, ``tools/kernels.sh`` compiles the kernels that call them again.
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
NOTHING = -1
NON_CANONICAL = -2

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
    """Return where the content of the field at ``at`` begins and ends, if its tag is ``tag``; else -1."""
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
    # Unrolled and with unsigned indices, which do not wrap around, LLVM makes one load of it.
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
def read_entry(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[int, int, int, int, int]:
    """Return where key and value of the map entry at ``at`` begin and end, and where the next entry begins.

    The last value is -1 for an entry that is not exactly a key and a value.
    """
    entry_start, entry_stop = read_field(content, at, stop, 0x0A)
    if entry_start < 0:
        return 0, 0, 0, 0, NOTHING
    key_start, key_stop = read_field(content, entry_start, entry_stop, 0x0A)
    if key_start < 0:
        return 0, 0, 0, 0, NOTHING
    start, stop = read_field(content, key_stop, entry_stop, 0x12)
    if start < 0 or stop != entry_stop:
        return 0, 0, 0, 0, NOTHING
    return key_start, key_stop, start, stop, entry_stop


@compile_inner_kernel
def read_list(content: npt.NDArray[np.uint8], start: int, stop: int) -> tuple[Any, Any, Any]:
    """Return the kind of the one list in the Feature ``content[start:stop]``, and where the list begins and ends."""
    if start == stop:
        return NO_KIND, stop, stop
    tag = byte_at(content, start)
    if tag != 0x0A and tag != 0x12 and tag != 0x1A:
        return NON_CANONICAL, stop, stop
    length, at = read_length(content, start + 1, stop)
    if at < 0 or at + length != stop:
        return NON_CANONICAL, stop, stop
    return tag >> 3, at, stop


@compile_inner_kernel
def count_list(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> int:
    """Return the number of values in a list, or ``NON_CANONICAL``."""
    count = 0
    at = start
    while at < stop:
        tag = byte_at(content, at)
        if tag == 0x0A:
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
        elif tag == 0x0D and kind == FLOATS and stop - at >= 5:
            count += 1
            at += 5
        elif tag == 0x08 and kind == INT64S:
            _, at = read_int64(content, at + 1, stop)
            if at < 0:
                return NON_CANONICAL
            count += 1
        else:
            return NON_CANONICAL
    return count


@compile_inner_kernel
def read_one_number(content: npt.NDArray[np.uint8], kind: int, start: int, stop: int) -> tuple[Any, Any]:
    """Return what a scalar column sees in a list (its kind, EMPTY, SEVERAL or NON_CANONICAL), and the value's bits."""
    count = count_list(content, kind, start, stop)
    if count < 0:
        return NON_CANONICAL, 0
    if count != 1:
        return (SEVERAL if count else EMPTY), 0
    at = start
    # Empty packed fields may come before the one with the value.
    while content[np.uintp(at)] == 0x0A:
        length, at = read_length(content, at + 1, stop)
        if length:
            break
    else:
        at += 1
    if kind == FLOATS:
        return kind, np.int64(uint32_at(content, at))
    value, end = read_int64(content, at, stop)
    return (kind if end >= 0 else NON_CANONICAL), value
