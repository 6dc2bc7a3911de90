"""Columns -> framed records, one row each: the kernel behind :class:`data_pipelines.tfrecord.row_codec.RowEncoder`."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from data_pipelines.tfrecord.crc32c import MASK_DELTA, crc32c_of_span
from data_pipelines.tfrecord.records import HEADER_BYTES, LARGEST_PAYLOAD_BYTES, RECORD_OVERHEAD_BYTES

# One row of a plan describes one feature. The columns of a plan:
KIND = 0
"""1 byte strings, 2 floats, 3 integers: the number of the list's field in Feature."""
DEPTH = 1
"""0 one value per row, 1 a list, 2 a list of lists."""
FIRST = 2
"""Depth 0: where the column's values begin among those of its kind."""
LISTS = 3
"""Depths 1 and 2: which row of ``row_offsets`` is the column's."""
VALID = 4
"""Which row of ``valid`` is the column's; -1 where no value is null."""
HEAD_START = 5
"""Where the head of the map entry begins in ``heads``: key and tag of the value; of a float all but the value."""
HEAD_STOP = 6
"""One past the head's last byte."""
PLAN_COLUMNS = 7

SLACK_BYTES = 8
"""How many bytes ``heads`` and ``strings`` have at their end beyond what is meant: copies go by words of eight."""

_BYTES, _FLOATS, _INT64S = 1, 2, 3
# Rows are written some at a time: a call counts references of every array it takes, and checksums find the bytes still
# in the cache (0.60 -> 0.50 us for a row of 42 columns).
_ROWS_AT_ONCE = 64


@compile_inner_kernel
def _varint_bytes(value: int) -> int:
    """Return how many bytes a number from 0 on takes as a varint."""
    size = 1
    while value >= 128:
        value >>= 7
        size += 1
    return size


@compile_inner_kernel
def _put_varint(content: npt.NDArray[np.uint8], at: int, value: int) -> int:
    """Write a number from 0 on at ``at``; returns where it ends."""
    while value >= 128:
        content[np.uintp(at)] = np.uint8(value & 127 | 128)
        value >>= 7
        at += 1
    content[np.uintp(at)] = np.uint8(value)
    return at + 1


@compile_inner_kernel
def _put_int64(content: npt.NDArray[np.uint8], at: int, signed: int) -> int:
    """Write any int64 at ``at``, negative ones in ten bytes; returns where it ends."""
    value = np.uint64(signed)
    while value >= np.uint64(128):
        content[np.uintp(at)] = np.uint8(value & np.uint64(127) | np.uint64(128))
        value >>= np.uint64(7)
        at += 1
    content[np.uintp(at)] = np.uint8(value)
    return at + 1


@compile_inner_kernel
def _put_sized_int64(content: npt.NDArray[np.uint8], at: int, signed: int, size: Any) -> int:
    """Write an int64 of which the size is known, as :func:`_put_int64` does; up to seven bytes beyond are written."""
    if size > 8:
        return _put_int64(content, at, signed)
    # All groups of seven bits move to their bytes at once: no branch to guess wrong.
    word = np.uint64(signed)
    word = (word & np.uint64(0x00FFFFFFF0000000)) << np.uint64(4) | word & np.uint64(0x000000000FFFFFFF)
    word = (word & np.uint64(0x0FFFC0000FFFC000)) << np.uint64(2) | word & np.uint64(0x00003FFF00003FFF)
    word = (word & np.uint64(0x3F803F803F803F80)) << np.uint64(1) | word & np.uint64(0x007F007F007F007F)
    before_last = (np.uint64(1) << np.uint64(8 * (size - 1))) - np.uint64(1)
    _put_word(content, at, word | before_last & np.uint64(0x8080808080808080))
    return at + size


@compile_inner_kernel
def _put_uint32(content: npt.NDArray[np.uint8], at: int, value: np.uint32) -> int:
    """Write four bytes, lowest first; returns where they end."""
    # An unsigned index is never wrapped around, so that LLVM makes one store of the four.
    place = np.uintp(at)
    content[place] = np.uint8(value)
    content[place + np.uintp(1)] = np.uint8(value >> np.uint32(8))
    content[place + np.uintp(2)] = np.uint8(value >> np.uint32(16))
    content[place + np.uintp(3)] = np.uint8(value >> np.uint32(24))
    return at + 4


@compile_inner_kernel
def _put_word(content: npt.NDArray[np.uint8], at: int, word: np.uint64) -> None:
    """Write eight bytes, lowest first."""
    place = np.uintp(at)
    content[place] = np.uint8(word)
    content[place + np.uintp(1)] = np.uint8(word >> np.uint64(8))
    content[place + np.uintp(2)] = np.uint8(word >> np.uint64(16))
    content[place + np.uintp(3)] = np.uint8(word >> np.uint64(24))
    content[place + np.uintp(4)] = np.uint8(word >> np.uint64(32))
    content[place + np.uintp(5)] = np.uint8(word >> np.uint64(40))
    content[place + np.uintp(6)] = np.uint8(word >> np.uint64(48))
    content[place + np.uintp(7)] = np.uint8(word >> np.uint64(56))


@compile_inner_kernel
def _copy_words(source: npt.NDArray[np.uint8], start: int, stop: int, target: npt.NDArray[np.uint8], at: int) -> int:
    """Write ``source[start:stop]`` at ``at`` in words of eight bytes; returns where it ends.

    Up to seven bytes beyond are read and written: both arrays have slack, and what follows is written later.
    """
    for step in range(0, stop - start, 8):
        place = np.uintp(start + step)
        word = (
            np.uint64(source[place])
            | np.uint64(source[place + np.uintp(1)]) << np.uint64(8)
            | np.uint64(source[place + np.uintp(2)]) << np.uint64(16)
            | np.uint64(source[place + np.uintp(3)]) << np.uint64(24)
            | np.uint64(source[place + np.uintp(4)]) << np.uint64(32)
            | np.uint64(source[place + np.uintp(5)]) << np.uint64(40)
            | np.uint64(source[place + np.uintp(6)]) << np.uint64(48)
            | np.uint64(source[place + np.uintp(7)]) << np.uint64(56)
        )
        _put_word(target, at + step, word)
    return at + stop - start


@compile_inner_kernel
def _masked_crc(content: npt.NDArray[np.uint8], start: int, stop: int) -> np.uint32:
    crc = crc32c_of_span(content, start, stop, 0)
    return np.uint32((crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(MASK_DELTA))


@compile_inner_kernel
def _put_frame(content: npt.NDArray[np.uint8], start: int, stop: int) -> None:
    """Write the header at ``start`` and the footer at ``stop`` of a record whose payload is between them."""
    payload = stop - start - HEADER_BYTES
    _put_uint32(content, start, np.uint32(payload))
    _put_uint32(content, start + 4, np.uint32(payload >> 32))
    _put_uint32(content, start + 8, _masked_crc(content, start, start + 8))
    _put_uint32(content, stop, _masked_crc(content, start + HEADER_BYTES, stop))


@compile_inner_kernel
def _int64_sizes(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return how many bytes each value takes as a varint; comparisons without branches, so that LLVM vectorises."""
    sizes = np.empty(values.size, np.uint8)
    for index in range(values.size):
        value = np.uint64(values[index])
        size = np.uint8(1)
        for bits in range(7, 64, 7):
            size += np.uint8(value >= np.uint64(1) << np.uint64(bits))
        sizes[index] = size
    return sizes


@compile_inner_kernel
def _size_at(sizes: npt.NDArray[np.uint8], at: int) -> Any:
    return np.int64(sizes[at])


@compile_inner_kernel
def _int64_ends(sizes: npt.NDArray[np.uint8], plan: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each varint ends if all stand one after the other, after a leading 0; just that without lists."""
    has_lists = False
    for column in range(len(plan)):
        has_lists |= plan[column, KIND] == _INT64S and plan[column, DEPTH] > 0
    if not has_lists:
        return np.zeros(1, np.int64)
    ends = np.zeros(sizes.size + 1, np.int64)
    for index in range(sizes.size):
        ends[index + 1] = ends[index] + np.int64(sizes[index])
    return ends


@compile_inner_kernel
def _string_ends(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each string ends if all stand one after the other with tag and length each, after a leading 0."""
    ends = np.zeros(max(offsets.size, 1), np.int64)
    for index in range(offsets.size - 1):
        size = offsets[index + 1] - offsets[index]
        ends[index + 1] = ends[index] + 1 + _varint_bytes(size) + size
    return ends


@compile_inner_kernel
def _body_bytes(
    kind: int, start: int, stop: int, int_ends: npt.NDArray[np.int64], string_ends: npt.NDArray[np.int64]
) -> Any:
    """Return the bytes of the values ``start`` to ``stop``: packed, or of strings with tag and length each."""
    if kind == _FLOATS:
        return 4 * (stop - start)
    if kind == _INT64S:
        return int_ends[stop] - int_ends[start]
    return string_ends[stop] - string_ends[start]


@compile_inner_kernel
def _list_bytes(kind: int, body_bytes: int) -> int:
    if kind == _BYTES or body_bytes == 0:
        return body_bytes
    return 1 + _varint_bytes(body_bytes) + body_bytes


@compile_inner_kernel
def _feature_bytes(kind: int, body_bytes: int) -> int:
    list_bytes = _list_bytes(kind, body_bytes)
    return 1 + _varint_bytes(list_bytes) + list_bytes


@compile_inner_kernel
def _feature_list_bytes(
    kind: int,
    first: int,
    last: int,
    inner_offsets: npt.NDArray[np.int64],
    inner_valid: npt.NDArray[np.uint8],
    int_ends: npt.NDArray[np.int64],
    string_ends: npt.NDArray[np.int64],
) -> int:
    total = 0
    for inner in range(first, last):
        size = 0
        if inner_valid[inner]:
            body = _body_bytes(kind, inner_offsets[inner], inner_offsets[inner + 1], int_ends, string_ends)
            size = _feature_bytes(kind, body)
        total += 1 + _varint_bytes(size) + size
    return total


@compile_inner_kernel
def _put_feature(
    content: npt.NDArray[np.uint8],
    at: int,
    kind: int,
    start: int,
    stop: int,
    body: int,
    int64s: npt.NDArray[np.int64],
    floats: npt.NDArray[np.uint32],
    strings: npt.NDArray[np.uint8],
    string_offsets: npt.NDArray[np.int64],
) -> int:
    """Write a Feature of the values ``start`` to ``stop``, which take ``body`` bytes; returns where it ends."""
    content[np.uintp(at)] = np.uint8(kind << 3 | 2)
    at = _put_varint(content, at + 1, _list_bytes(kind, body))
    if kind == _BYTES:
        for value in range(start, stop):
            first = string_offsets[value]
            last = string_offsets[value + 1]
            content[np.uintp(at)] = np.uint8(0x0A)
            at = _put_varint(content, at + 1, last - first)
            at = _copy_words(strings, first, last, content, at)
        return at
    if body == 0:
        return at
    content[np.uintp(at)] = np.uint8(0x0A)
    at = _put_varint(content, at + 1, body)
    if kind == _FLOATS:
        for value in range(start, stop):
            at = _put_uint32(content, at, floats[value])
    else:
        for value in range(start, stop):
            at = _put_int64(content, at, int64s[value])
    return at


@compile_inner_kernel
def _put_section(
    content: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
    tag: int,
    sizes: npt.NDArray[np.int64],
    first_row: int,
    last_row: int,
    first_column: int,
    last_column: int,
    plan: npt.NDArray[np.int64],
    heads: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.uint8],
    row_offsets: npt.NDArray[np.int64],
    inner_offsets: npt.NDArray[np.int64],
    inner_valid: npt.NDArray[np.uint8],
    int64s: npt.NDArray[np.int64],
    int_sizes: npt.NDArray[np.uint8],
    int_ends: npt.NDArray[np.int64],
    floats: npt.NDArray[np.uint32],
    strings: npt.NDArray[np.uint8],
    string_offsets: npt.NDArray[np.int64],
    string_ends: npt.NDArray[np.int64],
) -> None:
    """Write a map of some columns (Features, or FeatureLists) of some rows as field ``tag``.

    The maps take ``sizes`` bytes ``[rows]``, and begin at ``places`` ``[rows]``, which become where they end.
    """
    for row in range(first_row, last_row):
        at: Any = places[row]
        content[np.uintp(at)] = np.uint8(tag)
        at = _put_varint(content, at + 1, sizes[row])
        for column in range(first_column, last_column):
            if plan[column, VALID] >= 0 and not valid[plan[column, VALID], row]:
                continue
            kind = plan[column, KIND]
            depth = plan[column, DEPTH]
            start = plan[column, FIRST] + row
            stop = start + 1
            if depth:
                start = row_offsets[plan[column, LISTS], row]
                stop = row_offsets[plan[column, LISTS], row + 1]
            head_start = plan[column, HEAD_START]
            head_stop = plan[column, HEAD_STOP]
            if depth == 0 and kind == _FLOATS:
                # All but the value is in the head.
                at = _copy_words(heads, head_start, head_stop, content, at)
                at = _put_uint32(content, at, floats[start])
                continue
            if depth == 0 and kind == _INT64S:
                body: Any = _size_at(int_sizes, start)
                content[np.uintp(at)] = np.uint8(0x0A)
                at = _put_varint(content, at + 1, head_stop - head_start + 5 + body)
                at = _copy_words(heads, head_start, head_stop, content, at)
                # The value's size, and Feature { int64_list { packed, body bytes } }
                packed = np.uint64(body)
                _put_word(
                    content, at, np.uint64(0x000A001A04) + packed + (packed + np.uint64(2) << np.uint64(16))
                    + (packed << np.uint64(32))
                )  # fmt: skip
                at = _put_sized_int64(content, at + 5, int64s[start], body)
                continue
            if depth < 2:
                body = _body_bytes(kind, start, stop, int_ends, string_ends)
                size: Any = _feature_bytes(kind, body)
            else:
                size = _feature_list_bytes(kind, start, stop, inner_offsets, inner_valid, int_ends, string_ends)
            content[np.uintp(at)] = np.uint8(0x0A)
            at = _put_varint(content, at + 1, head_stop - head_start + _varint_bytes(size) + size)
            at = _copy_words(heads, head_start, head_stop, content, at)
            at = _put_varint(content, at, size)
            if depth == 0:
                # Feature { bytes_list { one string } }
                content[np.uintp(at)] = np.uint8(0x0A)
                at = _put_varint(content, at + 1, body)
                content[np.uintp(at)] = np.uint8(0x0A)
                at = _put_varint(content, at + 1, string_offsets[stop] - string_offsets[start])
                at = _copy_words(strings, string_offsets[start], string_offsets[stop], content, at)
                continue
            if depth == 1:
                at = _put_feature(content, at, kind, start, stop, body, int64s, floats, strings, string_offsets)
                continue
            for inner in range(start, stop):
                content[np.uintp(at)] = np.uint8(0x0A)
                if not inner_valid[inner]:
                    at = _put_varint(content, at + 1, 0)
                    continue
                first = inner_offsets[inner]
                last = inner_offsets[inner + 1]
                body = _body_bytes(kind, first, last, int_ends, string_ends)
                at = _put_varint(content, at + 1, _feature_bytes(kind, body))
                at = _put_feature(content, at, kind, first, last, body, int64s, floats, strings, string_offsets)
        places[row] = at


@compile_inner_kernel
def _section_sizes(
    first_column: int,
    last_column: int,
    rows: int,
    plan: npt.NDArray[np.int64],
    valid: npt.NDArray[np.uint8],
    row_offsets: npt.NDArray[np.int64],
    inner_offsets: npt.NDArray[np.int64],
    inner_valid: npt.NDArray[np.uint8],
    int_sizes: npt.NDArray[np.uint8],
    int_ends: npt.NDArray[np.int64],
    string_ends: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the bytes that a map of some columns takes in each row ``[rows]``."""
    sizes = np.zeros(rows, np.int64)
    for column in range(first_column, last_column):
        head_bytes = plan[column, HEAD_STOP] - plan[column, HEAD_START]
        kind = plan[column, KIND]
        depth = plan[column, DEPTH]
        valid_at = plan[column, VALID]
        if depth == 0 and kind != _BYTES:
            # Without branches for the usual column, so that LLVM vectorises.
            first = plan[column, FIRST]
            for row in range(rows):
                if kind == _FLOATS:
                    size = head_bytes + 4
                else:
                    entry = head_bytes + 5 + _size_at(int_sizes, first + row)
                    size = 1 + _varint_bytes(entry) + entry
                if valid_at < 0 or valid[valid_at, row]:
                    sizes[row] += size
            continue
        for row in range(rows):
            if valid_at >= 0 and not valid[valid_at, row]:
                continue
            start = plan[column, FIRST] + row
            stop = start + 1
            if depth:
                start = row_offsets[plan[column, LISTS], row]
                stop = row_offsets[plan[column, LISTS], row + 1]
            if depth < 2:
                size = _feature_bytes(kind, _body_bytes(kind, start, stop, int_ends, string_ends))
            else:
                size = _feature_list_bytes(kind, start, stop, inner_offsets, inner_valid, int_ends, string_ends)
            entry = head_bytes + _varint_bytes(size) + size
            sizes[row] += 1 + _varint_bytes(entry) + entry
    return sizes


_BYTES_IN = READ_ONLY_BYTES
_INT64S_IN = types.Array(types.int64, 1, "C", readonly=True)
_UINT32S_IN = types.Array(types.uint32, 1, "C", readonly=True)


@compile_kernel(
    types.Tuple((types.uint8[::1], types.int64[::1]))(
        types.int64,
        types.int64,
        types.boolean,
        types.int64[:, ::1],
        _BYTES_IN,
        types.uint8[:, ::1],
        types.int64[:, ::1],
        types.int64[::1],
        types.uint8[::1],
        _INT64S_IN,
        _UINT32S_IN,
        _BYTES_IN,
        _INT64S_IN,
    )
)
def encode_rows(
    rows: int,
    context_columns: int,
    is_sequence: bool,
    plan: npt.NDArray[np.int64],
    heads: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.uint8],
    row_offsets: npt.NDArray[np.int64],
    inner_offsets: npt.NDArray[np.int64],
    inner_valid: npt.NDArray[np.uint8],
    int64s: npt.NDArray[np.int64],
    floats: npt.NDArray[np.uint32],
    strings: npt.NDArray[np.uint8],
    string_offsets: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the framed records of all rows, and where each begins and the last one ends ``[rows + 1]``.

    A row whose payload would pass protobuf's limit of 2 GiB ends the work: the offsets then have that row's number as
    their one value.

    Args:
        rows: how many rows.
        context_columns: how many columns of the plan, from the first on, are features of an Example or of the context;
            the rest are feature lists.
        is_sequence: whether records are SequenceExamples, which have a second map.
        plan: what each feature is ``[features, PLAN_COLUMNS]``, in the order in which they are written.
        heads: the heads of the map entries, then slack.
        valid: 0 where a row lacks the feature ``[features with nulls, rows]``.
        row_offsets: where each row's values (or inner lists) begin and the last row's end ``[features, rows + 1]``.
        inner_offsets: where the values of each inner list begin, then where those of a column's last list end.
        inner_valid: 0 for an inner list that is null, as long as ``inner_offsets``.
        int64s: the values of all integer columns.
        floats: the bits of the values of all float columns.
        strings: the byte strings of all columns, then slack.
        string_offsets: where each string begins, then where a column's last string ends.
    """
    int_sizes = _int64_sizes(int64s)
    int_ends = _int64_ends(int_sizes, plan)
    string_ends = _string_ends(string_offsets)
    first_sizes = _section_sizes(
        0, context_columns, rows, plan, valid, row_offsets, inner_offsets, inner_valid, int_sizes, int_ends, string_ends
    )
    second_sizes = _section_sizes(
        context_columns, len(plan), rows, plan, valid, row_offsets, inner_offsets, inner_valid, int_sizes, int_ends,
        string_ends
    )  # fmt: skip
    offsets = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        payload = 1 + _varint_bytes(first_sizes[row]) + first_sizes[row]
        if is_sequence:
            payload += 1 + _varint_bytes(second_sizes[row]) + second_sizes[row]
        if payload > LARGEST_PAYLOAD_BYTES:
            return np.empty(0, np.uint8), np.full(1, row, np.int64)
        offsets[row + 1] = offsets[row] + payload + RECORD_OVERHEAD_BYTES
    content = np.empty(offsets[rows] + SLACK_BYTES, np.uint8)
    places = offsets[:rows] + HEADER_BYTES
    for first in range(0, rows, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, rows)
        _put_section(
            content, places, 0x0A, first_sizes, first, last, 0, context_columns, plan, heads, valid, row_offsets,
            inner_offsets, inner_valid, int64s, int_sizes, int_ends, floats, strings, string_offsets, string_ends,
        )  # fmt: skip
        if is_sequence:
            _put_section(
                content, places, 0x12, second_sizes, first, last, context_columns, len(plan), plan, heads, valid,
                row_offsets, inner_offsets, inner_valid, int64s, int_sizes, int_ends, floats, strings, string_offsets,
                string_ends,
            )  # fmt: skip
        for row in range(first, last):
            _put_frame(content, offsets[row], places[row])
    return content[: offsets[rows]], offsets


@compile_kernel(
    types.Tuple((types.uint8[::1], types.int64[::1]))(_BYTES_IN, _INT64S_IN),
)
def frame_payloads(
    strings: npt.NDArray[np.uint8], string_offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return byte strings as records, and where each begins and the last one ends ``[strings + 1]``.

    Args:
        strings: the byte strings one after the other, then slack.
        string_offsets: where each begins, then where the last one ends ``[strings + 1]``.
    """
    rows = string_offsets.size - 1
    offsets = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        offsets[row + 1] = offsets[row] + string_offsets[row + 1] - string_offsets[row] + RECORD_OVERHEAD_BYTES
    content = np.empty(offsets[rows] + SLACK_BYTES, np.uint8)
    for row in range(rows):
        start = offsets[row]
        stop = _copy_words(strings, string_offsets[row], string_offsets[row + 1], content, start + HEADER_BYTES)
        _put_frame(content, start, stop)
    return content[: offsets[rows]], offsets
