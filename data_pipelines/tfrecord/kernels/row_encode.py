"""Kernels that write rows as framed records, for :class:`data_pipelines.tfrecord.RowEncoder`."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from mirrorspark.data_pipelines.tfrecord.kernels.wire_write import (
    SLACK_BYTES,
    copy_words,
    put_frame,
    put_int64,
    put_sized_int64,
    put_uint32,
    put_varint,
    put_word,
    varint_bytes,
)
from mirrorspark.data_pipelines.tfrecord.records import HEADER_BYTES, LARGEST_PAYLOAD_BYTES, RECORD_OVERHEAD_BYTES

# Each row of a plan describes one feature. The columns of a plan:
KIND = 0
"""1 byte strings, 2 floats, 3 integers: the number of the list's field in Feature."""
DEPTH = 1
"""0 one value per row, 1 a list, 2 a list of lists."""
FIRST = 2
"""Depth 0: where the column's values begin among those of its kind."""
LISTS = 3
"""Depths 1 and 2: the column's row in ``row_offsets``."""
VALID = 4
"""The column's row in ``valid``; -1 if no value is null."""
HEAD_START = 5
"""Start of the map entry's head in ``heads``: the key and the value's tag; for a float, all but the value."""
HEAD_STOP = 6
"""One past the head's last byte."""
PLAN_COLUMNS = 7

_BYTES, _FLOATS, _INT64S = 1, 2, 3
# Rows are written in groups: each call counts references of every array it takes, and checksums find the bytes still in
# the cache (0.60 -> 0.50 us for a row of 42 columns).
_ROWS_AT_ONCE = 64


@compile_inner_kernel
def _int64_sizes(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the bytes that each value takes as a varint; no branches, so that LLVM vectorises the comparisons."""
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
    """Return the ends of the varints if all are concatenated, after a leading 0; only that 0 if there are no lists."""
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
    """Return the ends of the strings if all are concatenated, each with tag and length, after a leading 0."""
    ends = np.zeros(max(offsets.size, 1), np.int64)
    for index in range(offsets.size - 1):
        size = offsets[index + 1] - offsets[index]
        ends[index + 1] = ends[index] + 1 + varint_bytes(size) + size
    return ends


@compile_inner_kernel
def _body_bytes(
    kind: int, start: int, stop: int, int_ends: npt.NDArray[np.int64], string_ends: npt.NDArray[np.int64]
) -> Any:
    """Return the bytes of the values ``start`` to ``stop``: packed numbers, or strings with tag and length each."""
    if kind == _FLOATS:
        return 4 * (stop - start)
    if kind == _INT64S:
        return int_ends[stop] - int_ends[start]
    return string_ends[stop] - string_ends[start]


@compile_inner_kernel
def _list_bytes(kind: int, body_bytes: int) -> int:
    if kind == _BYTES or body_bytes == 0:
        return body_bytes
    return 1 + varint_bytes(body_bytes) + body_bytes


@compile_inner_kernel
def _feature_bytes(kind: int, body_bytes: int) -> int:
    list_bytes = _list_bytes(kind, body_bytes)
    return 1 + varint_bytes(list_bytes) + list_bytes


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
        total += 1 + varint_bytes(size) + size
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
    """Write a Feature of the values ``start`` to ``stop``, which take ``body`` bytes; return where it ends."""
    content[np.uintp(at)] = np.uint8(kind << 3 | 2)
    at = put_varint(content, at + 1, _list_bytes(kind, body))
    if kind == _BYTES:
        for value in range(start, stop):
            first = string_offsets[value]
            last = string_offsets[value + 1]
            content[np.uintp(at)] = np.uint8(0x0A)
            at = put_varint(content, at + 1, last - first)
            at = copy_words(strings, first, last, content, at)
        return at
    if body == 0:
        return at
    content[np.uintp(at)] = np.uint8(0x0A)
    at = put_varint(content, at + 1, body)
    if kind == _FLOATS:
        for value in range(start, stop):
            at = put_uint32(content, at, floats[value])
    else:
        for value in range(start, stop):
            at = put_int64(content, at, int64s[value])
    return at


# One long function: a function called for each feature would count references of every array it takes.
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

    The maps take ``sizes`` bytes ``[rows]`` and begin at ``places`` ``[rows]``, which are updated to where they end.
    """
    for row in range(first_row, last_row):
        at: Any = places[row]
        content[np.uintp(at)] = np.uint8(tag)
        at = put_varint(content, at + 1, sizes[row])
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
                # The head has all but the value.
                at = copy_words(heads, head_start, head_stop, content, at)
                at = put_uint32(content, at, floats[start])
                continue
            if depth == 0 and kind == _INT64S:
                body: Any = _size_at(int_sizes, start)
                content[np.uintp(at)] = np.uint8(0x0A)
                at = put_varint(content, at + 1, head_stop - head_start + 5 + body)
                at = copy_words(heads, head_start, head_stop, content, at)
                # The value's size, and Feature { int64_list { packed, body bytes } }
                packed = np.uint64(body)
                put_word(
                    content, at, np.uint64(0x000A001A04) + packed + (packed + np.uint64(2) << np.uint64(16))
                    + (packed << np.uint64(32))
                )  # fmt: skip
                at = put_sized_int64(content, at + 5, int64s[start], body)
                continue
            if depth < 2:
                body = _body_bytes(kind, start, stop, int_ends, string_ends)
                size: Any = _feature_bytes(kind, body)
            else:
                size = _feature_list_bytes(kind, start, stop, inner_offsets, inner_valid, int_ends, string_ends)
            content[np.uintp(at)] = np.uint8(0x0A)
            at = put_varint(content, at + 1, head_stop - head_start + varint_bytes(size) + size)
            at = copy_words(heads, head_start, head_stop, content, at)
            at = put_varint(content, at, size)
            if depth == 0:
                # Feature { bytes_list { one string } }
                content[np.uintp(at)] = np.uint8(0x0A)
                at = put_varint(content, at + 1, body)
                content[np.uintp(at)] = np.uint8(0x0A)
                at = put_varint(content, at + 1, string_offsets[stop] - string_offsets[start])
                at = copy_words(strings, string_offsets[start], string_offsets[stop], content, at)
                continue
            if depth == 1:
                at = _put_feature(content, at, kind, start, stop, body, int64s, floats, strings, string_offsets)
                continue
            for inner in range(start, stop):
                content[np.uintp(at)] = np.uint8(0x0A)
                if not inner_valid[inner]:
                    at = put_varint(content, at + 1, 0)
                    continue
                first = inner_offsets[inner]
                last = inner_offsets[inner + 1]
                body = _body_bytes(kind, first, last, int_ends, string_ends)
                at = put_varint(content, at + 1, _feature_bytes(kind, body))
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
    """Return the size in bytes of a map of some columns in each row ``[rows]``."""
    sizes = np.zeros(rows, np.int64)
    for column in range(first_column, last_column):
        head_bytes = plan[column, HEAD_STOP] - plan[column, HEAD_START]
        kind = plan[column, KIND]
        depth = plan[column, DEPTH]
        valid_at = plan[column, VALID]
        if depth == 0 and kind != _BYTES:
            # No branches for the usual column, so that LLVM vectorises.
            first = plan[column, FIRST]
            for row in range(rows):
                if kind == _FLOATS:
                    size = head_bytes + 4
                else:
                    entry = head_bytes + 5 + _size_at(int_sizes, first + row)
                    size = 1 + varint_bytes(entry) + entry
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
            entry = head_bytes + varint_bytes(size) + size
            sizes[row] += 1 + varint_bytes(entry) + entry
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

    If a row's payload would exceed protobuf's limit of 2 GiB, nothing is encoded, and the offsets hold only that row's
    number.

    Args:
        rows: the number of rows.
        context_columns: the number of leading columns of the plan that are features of an Example or of the context;
            the rest are feature lists.
        is_sequence: whether records are SequenceExamples, which have a second map.
        plan: the description of each feature ``[features, PLAN_COLUMNS]``, in the order of writing.
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
        payload = 1 + varint_bytes(first_sizes[row]) + first_sizes[row]
        if is_sequence:
            payload += 1 + varint_bytes(second_sizes[row]) + second_sizes[row]
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
            put_frame(content, offsets[row], places[row])
    return content[: offsets[rows]], offsets


@compile_kernel(
    types.Tuple((types.uint8[::1], types.int64[::1]))(_BYTES_IN, _INT64S_IN),
)
def frame_payloads(
    strings: npt.NDArray[np.uint8], string_offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return byte strings as records, and where each begins and the last one ends ``[strings + 1]``.

    Args:
        strings: the byte strings concatenated, then slack.
        string_offsets: where each begins, then where the last one ends ``[strings + 1]``.
    """
    rows = string_offsets.size - 1
    offsets = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        offsets[row + 1] = offsets[row] + string_offsets[row + 1] - string_offsets[row] + RECORD_OVERHEAD_BYTES
    content = np.empty(offsets[rows] + SLACK_BYTES, np.uint8)
    for row in range(rows):
        start = offsets[row]
        stop = copy_words(strings, string_offsets[row], string_offsets[row + 1], content, start + HEADER_BYTES)
        put_frame(content, start, stop)
    return content[: offsets[rows]], offsets
