"""Kernels that read the lists of located features into columns."""

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_kernel
from mirrorspark.data_pipelines.tfrecord.kernels.wire_read import (
    BOUNDS,
    FLOATS,
    INT64S_IN,
    LENGTH_1,
    NOTHING,
    byte_at,
    count_list,
    read_field,
    read_int64,
    read_length,
    read_list,
    uint32_at,
)


@compile_kernel(types.Tuple((types.int64[::1], types.int64))(READ_ONLY_BYTES, types.int64, BOUNDS))
def count_values(
    content: npt.NDArray[np.uint8], kind: int, bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the offsets of each list's values, and the number of a non-canonical list or -1.

    The last of the offsets ``[lists + 1]`` is the end of the last list's values.

    Args:
        content: the buffer with the records.
        kind: the kind of all lists.
        bounds: beginning and end of each list ``[lists, 2]``; equal for an absent list.
    """
    offsets = np.zeros(len(bounds) + 1, np.int64)
    for row in range(len(bounds)):
        start = bounds[row, 0]
        stop = bounds[row, 1]
        if kind == FLOATS and stop - start > 2 and stop - start < 130 and content[np.uintp(start)] == LENGTH_1:
            length = byte_at(content, start + 1)
            if length == stop - start - 2 and length % 4 == 0:
                offsets[row + 1] = offsets[row] + length // 4
                continue
        count = count_list(content, kind, start, stop)
        if count < 0:
            return offsets, row
        offsets[row + 1] = offsets[row] + count
    return offsets, NOTHING


@compile_kernel(types.uint32[::1](READ_ONLY_BYTES, BOUNDS, INT64S_IN))
def read_floats(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Return the bits of the floats of all lists, counted by :func:`count_values`."""
    values = np.empty(offsets[-1], np.uint32)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            if content[np.uintp(at)] == LENGTH_1:
                length, at = read_length(content, at + 1, stop)
            else:
                length = 4
                at += 1
            for _ in range(length // 4):
                values[position] = uint32_at(content, at)
                position += 1
                at += 4
    return values


@compile_kernel(types.Tuple((types.int64[::1], types.int64))(READ_ONLY_BYTES, BOUNDS, INT64S_IN))
def read_int64s(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int]:
    """Return the integers of all lists, counted by :func:`count_values`, and a non-canonical list or -1."""
    values = np.empty(offsets[-1], np.int64)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            tag = content[np.uintp(at)]
            field_stop = stop
            at += 1
            if tag == LENGTH_1:
                length, at = read_length(content, at, stop)
                field_stop = at + length
            while at < field_stop:
                value, at = read_int64(content, at, field_stop)
                if at < 0:
                    return values, row
                values[position] = value
                position += 1
                if tag != LENGTH_1:
                    break
    return values, NOTHING


@compile_kernel(types.Tuple((types.uint8[::1], types.int64[::1]))(READ_ONLY_BYTES, BOUNDS, INT64S_IN))
def read_strings(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the byte strings of all lists, counted by :func:`count_values`, concatenated, and where each begins.

    The last of the offsets ``[strings + 1]`` is where the last string ends.
    """
    string_offsets = np.zeros(offsets[-1] + 1, np.int64)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            length, at = read_length(content, at + 1, stop)
            string_offsets[position + 1] = string_offsets[position] + length
            position += 1
            at += length
    strings = np.empty(string_offsets[-1], np.uint8)
    position = 0
    for row in range(len(bounds)):
        at = bounds[row, 0]
        stop = bounds[row, 1]
        while at < stop:
            length, at = read_length(content, at + 1, stop)
            target = string_offsets[position]
            for step in range(length):
                strings[np.uintp(target + step)] = content[np.uintp(at + step)]
            position += 1
            at += length
    return strings, string_offsets


@compile_kernel(
    types.Tuple((types.int64[::1], types.int64[:, ::1], types.uint8[::1], types.int64))(READ_ONLY_BYTES, BOUNDS)
)
def split_feature_lists(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8], int]:
    """Locate the features of feature lists.

    Args:
        content: the buffer with the records.
        bounds: where each FeatureList begins and ends ``[rows, 2]``.

    Returns:
        Where the features of each row begin and the last one's end ``[rows + 1]``; where each feature's list begins and
        ends ``[features, 2]``; its kind or NO_KIND ``[features]``; and a non-canonical row or -1.
    """
    offsets = np.zeros(len(bounds) + 1, np.int64)
    for row in range(len(bounds)):
        at = bounds[row, 0]
        count = 0
        while at < bounds[row, 1]:
            start, at = read_field(content, at, bounds[row, 1], LENGTH_1)
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
            start, at = read_field(content, at, bounds[row, 1], LENGTH_1)
            kind, list_start, list_stop = read_list(content, start, at)
            if kind < 0:
                return offsets, inner, kinds, row
            inner[position, 0] = list_start
            inner[position, 1] = list_stop
            kinds[position] = kind
            position += 1
    return offsets, inner, kinds, NOTHING


@compile_kernel(types.Tuple((types.uint8[::1], types.int64[::1]))(READ_ONLY_BYTES, BOUNDS))
def gather_strings(
    content: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the strings at ``bounds`` ``[n, 2]`` concatenated, and where each begins and the last ends ``[n + 1]``."""
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
