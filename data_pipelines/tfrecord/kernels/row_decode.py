"""The kernel that locates features in records, for :class:`data_pipelines.tfrecord.RowDecoder`.

The kernels read messages as TensorFlow's own writers lay them out: each map entry is a key and a value, each Feature
one list. A record with anything else (fields in pieces or out of order, repeated names, unknown fields, damage) is
*non-canonical*: the kernels only report it, and :mod:`data_pipelines.tfrecord.examples` reads it as protobuf does, or
names the error in it. No kernel reads a byte outside the payload.
"""

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from mirrorspark.data_pipelines.tfrecord.kernels.wire_read import (
    FLOATS,
    INT64S,
    INT64S_IN,
    NOTHING,
    byte_at,
    hash_key,
    is_equal,
    read_entry,
    read_field,
    read_list,
    read_one_number,
    uint32_at,
    word_at,
)

_SIEVE_SIZE = 65_536
_GUESSES = 2


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
    slot = hash_key(content, start, stop, section) & (table.size - 1)
    while table[slot] >= 0:
        key = table[slot]
        if (
            sections[key] == section
            and key_offsets[key + 1] - key_offsets[key] == stop - start
            and is_equal(content, start, keys, key_offsets[key], stop - start)
        ):
            return key
        slot = slot + 1 & (table.size - 1)
    return NOTHING


@compile_inner_kernel
def _filled_table(
    keys: npt.NDArray[np.uint8], key_offsets: npt.NDArray[np.int64], sections: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return a hash table of key numbers, -1 in empty slots; at least half of the slots are empty."""
    size = 16
    while size < 2 * sections.size + 2:
        size *= 2
    table = np.full(size, NOTHING, np.int64)
    for key in range(sections.size):
        slot = hash_key(keys, key_offsets[key], key_offsets[key + 1], sections[key]) & (size - 1)
        while table[slot] >= 0:
            slot = slot + 1 & (size - 1)
        table[slot] = key
    return table


@compile_inner_kernel
def _filled_sieve(keys: npt.NDArray[np.uint8], key_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return a table with 1 for the length and ending of each key: most other names miss it and need no look-up."""
    sieve = np.zeros(_SIEVE_SIZE, np.uint8)
    for wanted in range(key_offsets.size - 1):
        stop = key_offsets[wanted + 1]
        ends = np.int64(0)
        if stop - key_offsets[wanted] >= 2:
            ends = byte_at(keys, stop - 1) << 8 | byte_at(keys, stop - 2)
        sieve[(ends ^ stop - key_offsets[wanted]) & (_SIEVE_SIZE - 1)] = 1
    return sieve


# One long function: a function called for each feature would count references of every array it takes (three times as
# slow).
@compile_kernel(
    types.Tuple((types.uint8[:, ::1], types.int64[:, ::1], types.int64[:, :, ::1], types.uint8[::1]))(
        READ_ONLY_BYTES,
        INT64S_IN,
        INT64S_IN,
        types.boolean,
        READ_ONLY_BYTES,
        INT64S_IN,
        INT64S_IN,
        INT64S_IN,
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
    """Read the scalar numbers of all records and locate their other features.

    Args:
        content: the buffer with the records.
        starts: where each payload begins ``[rows]``; ``0 <= start <= stop <= size`` is not checked.
        stops: where each ends.
        is_sequence: whether they are SequenceExamples.
        keys: the names of the wanted features, concatenated: scalar numbers first.
        key_offsets: where each begins, then where the last one ends ``[features + 1]``.
        sections: 1 for a feature of an Example or a context, 2 for a feature list ``[features]``.
        scalar_kinds: 2 or 3 for the scalars ``[scalars]``.
        scalars: how many of the features are scalar numbers.
        lists: how many are not.

    Returns:
        Per feature and row ``[features, rows]`` a kind, ABSENT, NO_KIND, EMPTY or SEVERAL (1 for a feature list); the
        scalars: integers or the bits of floats ``[scalars, rows]``; where each other list or feature list begins and
        ends ``[lists, rows, 2]``; and 1 for non-canonical records ``[rows]``, whose values are meaningless.
    """
    rows = starts.size
    found = np.zeros((scalars + lists, rows), np.uint8)
    values = np.zeros((scalars, rows), np.int64)
    bounds = np.zeros((lists, rows, 2), np.int64)
    non_canonical = np.zeros(rows, np.uint8)
    table = _filled_table(keys, key_offsets, sections)
    sieve = _filled_sieve(keys, key_offsets)
    # The key that followed each key last time: writers keep an order, so the guess is nearly always right.
    following = np.zeros(scalars + lists + 1, np.int64)
    for row in range(rows):
        stop = stops[row]
        at = starts[row]
        before = scalars + lists
        while at < stop and not non_canonical[row]:
            tag = byte_at(content, at)
            section = tag >> 3
            map_start, map_stop = read_field(content, at, stop, tag)
            if map_start < 0 or (tag != 0x0A and (tag != 0x12 or not is_sequence)):
                non_canonical[row] = 1
                break
            at = map_start
            while at < map_stop:
                # Most entries have lengths of one byte each.
                value_start = NOTHING
                value_stop = NOTHING
                if map_stop - at >= 6:
                    key_start = at + 4
                    key_stop = key_start + byte_at(content, at + 3)
                    value_stop = at + 2 + byte_at(content, at + 1)
                    if (
                        content[np.uintp(at)] == 0x0A
                        and content[np.uintp(at + 1)] < 128
                        and content[np.uintp(at + 2)] == 0x0A
                        and content[np.uintp(at + 3)] < 128
                        and value_stop <= map_stop
                        and key_stop + 2 <= value_stop
                        and content[np.uintp(key_stop)] == 0x12
                        and content[np.uintp(key_stop + 1)] < 128
                        and key_stop + 2 + byte_at(content, key_stop + 1) == value_stop
                    ):
                        value_start = key_stop + 2
                        at = value_stop
                if value_start < 0:
                    key_start, key_stop, value_start, value_stop, at = read_entry(content, at, map_stop)
                    if at < 0:
                        non_canonical[row] = 1
                        break
                size = key_stop - key_start
                key = before
                is_guessed = False
                # If a feature is missing, the one after it comes next.
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
                        different |= word_at(content, np.uintp(key_start + step)) ^ word_at(
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
                        ends = byte_at(content, key_stop - 1) << 8 | byte_at(content, key_stop - 2)
                    if not sieve[(ends ^ size) & (_SIEVE_SIZE - 1)]:
                        continue
                    key = _find(content, key_start, key_stop, section, keys, key_offsets, sections, table)
                    if key < 0:
                        continue
                    following[before] = key
                before = key
                if found[key, row]:
                    # A repeated name: in protobuf the last one counts.
                    non_canonical[row] = 1
                    break
                if section == 2:
                    found[key, row] = 1
                    bounds[key - scalars, row, 0] = value_start
                    bounds[key - scalars, row, 1] = value_stop
                    continue
                size = value_stop - value_start
                if key < scalars and size >= 5 and content[np.uintp(value_start + 2)] == 0x0A:
                    # Feature { list { packed, one value } }, as nearly every writer encodes it.
                    kind = scalar_kinds[key]
                    if (
                        content[np.uintp(value_start)] == kind << 3 | 2
                        and byte_at(content, value_start + 1) == size - 2
                        and byte_at(content, value_start + 3) == size - 4
                    ):
                        if kind == FLOATS and size == 8:
                            found[key, row] = kind
                            values[key, row] = np.int64(uint32_at(content, value_start + 4))
                            continue
                        if kind == INT64S and size <= 14:
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
                kind, list_start, list_stop = read_list(content, value_start, value_stop)
                if kind < 0:
                    non_canonical[row] = 1
                    break
                found[key, row] = kind
                if key >= scalars:
                    bounds[key - scalars, row, 0] = list_start
                    bounds[key - scalars, row, 1] = list_stop
                    continue
                if kind != scalar_kinds[key]:
                    continue
                state, bits = read_one_number(content, kind, list_start, list_stop)
                if state < 0:
                    non_canonical[row] = 1
                    break
                found[key, row] = state
                values[key, row] = bits
    return found, values, bounds, non_canonical
