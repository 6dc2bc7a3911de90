"""Kernels that copy rows from slots into batches."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import compile_inner_kernel, compile_kernel
from mirrorspark.data_pipelines.reading.order import RANGE_LANE, RANGE_SKIPPED, RANGE_START, RANGE_STOP

# Consecutive rows of a slot for one step: the slot, its first row, the step, the place in the worker's part of the
# batch, and the number of rows.
_SLOT, _ROW, _STEP, _PLACE, _ROWS = range(5)
_COPY_COLUMNS = 5

_INT64_SPAN = types.Array(types.int64, 1, "C", readonly=True)
_COPY_RANGES = types.int64[:, ::1]
_LISTS_OF_ROWS = (types.int64[:, :, ::1], types.int64[:, :, ::1])  # where they start, and how long they are


@compile_kernel(_COPY_RANGES(types.int64[:, ::1], _INT64_SPAN, types.int64, types.int64, types.int64))
def find_copy_ranges(
    ranges: npt.NDArray[np.int64], lane_rows: npt.NDArray[np.int64], first_lane: int, first_row: int, batch: int
) -> npt.NDArray[np.int64]:
    """Cut ``ranges`` at the ends of steps and the borders of the worker's part of the batch."""
    count = 0
    for number in range(len(ranges)):
        lane = ranges[number, RANGE_LANE]
        width = lane_rows[lane + 1] - lane_rows[lane]
        count += (ranges[number, RANGE_STOP] - ranges[number, RANGE_START]) // width + 2
    copies = np.empty((count, _COPY_COLUMNS), np.int64)
    count = 0
    for number in range(len(ranges)):
        lane = ranges[number, RANGE_LANE]
        width = lane_rows[lane + 1] - lane_rows[lane]
        row = ranges[number, RANGE_START]
        skipped = ranges[number, RANGE_SKIPPED]
        while row < ranges[number, RANGE_STOP]:
            rows = min(ranges[number, RANGE_STOP] - row, width - skipped % width)
            place = lane_rows[lane] + skipped % width - first_row
            begin = max(place, 0)
            end = min(place + rows, batch)
            if begin < end:
                copies[count, _SLOT] = lane - first_lane
                copies[count, _ROW] = row + begin - place
                copies[count, _STEP] = skipped // width
                copies[count, _PLACE] = begin
                copies[count, _ROWS] = end - begin
                count += 1
            row += rows
            skipped += rows
    return copies[:count]


@compile_inner_kernel
def _cut(copies: Any, slots: Any, target: Any) -> None:
    """Copy columns ``[slots, columns, rows]`` to ``[steps, columns, batch]``."""
    for number in range(len(copies)):
        row = np.uint64(copies[number, _ROW])
        place = np.uint64(copies[number, _PLACE])
        rows = np.uint64(copies[number, _ROWS])
        for column in range(target.shape[1]):
            source = slots[copies[number, _SLOT], column]
            batch = target[copies[number, _STEP], column]
            for index in range(rows):
                batch[place + np.uint64(index)] = source[row + np.uint64(index)]


@compile_kernel(types.void(_COPY_RANGES, types.float32[:, :, ::1], types.float32[:, :, ::1]))
def cut_floats(copies: Any, slots: Any, target: Any) -> None:
    """Copy float32 columns ``[slots, columns, rows]`` to ``[steps, columns, batch]``."""
    _cut(copies, slots, target)


@compile_kernel(types.void(_COPY_RANGES, types.int64[:, :, ::1], types.int64[:, :, ::1]))
def cut_int64s(copies: Any, slots: Any, target: Any) -> None:
    """Copy int64 columns ``[slots, columns, rows]`` to ``[steps, columns, batch]``."""
    _cut(copies, slots, target)


@compile_kernel(types.void(_COPY_RANGES, types.float32[:, :, ::1], types.int64, types.float32[:, :, ::1]))
def cut_vectors(copies: npt.NDArray[np.int64], slots: Any, offset: int, target: npt.NDArray[np.float32]) -> None:
    """Copy the numbers from ``offset`` on of rows ``[slots, rows, width]`` to ``[steps, batch, size]``."""
    for number in range(len(copies)):
        for index in range(copies[number, _ROWS]):
            source = slots[copies[number, _SLOT], copies[number, _ROW] + index]
            batch_row = target[copies[number, _STEP], copies[number, _PLACE] + index]
            for item in range(batch_row.size):
                batch_row[item] = source[offset + item]


@compile_kernel(types.void(_COPY_RANGES, *_LISTS_OF_ROWS, types.int64, types.int64[:, ::1], types.int64[:, :, ::1]))
def cut_ids(
    copies: npt.NDArray[np.int64], starts: Any, lengths: Any, column: int, int64s: Any, target: npt.NDArray[np.int64]
) -> None:
    """Copy the lists of a column to rows ``[steps, batch, max_length]``, cut or padded with 0 on the right."""
    for number in range(len(copies)):
        slot = copies[number, _SLOT]
        for index in range(copies[number, _ROWS]):
            row = copies[number, _ROW] + index
            batch_row = target[copies[number, _STEP], copies[number, _PLACE] + index]
            count = min(lengths[slot, column, row], batch_row.size)
            for item in range(count):
                batch_row[item] = int64s[slot, starts[slot, column, row] + item]
            for item in range(count, batch_row.size):
                batch_row[item] = 0


@compile_kernel(
    types.boolean(_COPY_RANGES, *_LISTS_OF_ROWS, types.int64, types.int64[:, ::1], types.float32[:, :, ::1])
)
def cut_classes(
    copies: npt.NDArray[np.int64],
    starts: Any,
    lengths: Any,
    column: int,
    int64s: Any,
    target: npt.NDArray[np.float32],
) -> bool:
    """Set the classes of each row to 1; return whether all of them are in range."""
    for number in range(len(copies)):
        slot = copies[number, _SLOT]
        for index in range(copies[number, _ROWS]):
            row = copies[number, _ROW] + index
            batch_row = target[copies[number, _STEP], copies[number, _PLACE] + index]
            for item in range(lengths[slot, column, row]):
                label = int64s[slot, starts[slot, column, row] + item]
                if label < 0 or label >= batch_row.size:
                    return False
                batch_row[label] = 1.0
    return True


@compile_kernel(types.int64(_COPY_RANGES, types.int64[:, :, ::1], types.int64))
def count_values(copies: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], column: int) -> int:
    """Return the number of values of a list column in the copied rows."""
    count = 0
    for number in range(len(copies)):
        for index in range(copies[number, _ROWS]):
            count += lengths[copies[number, _SLOT], column, copies[number, _ROW] + index]
    return count


@compile_kernel(
    types.int64(
        _COPY_RANGES, *_LISTS_OF_ROWS, types.int64, types.int64[:, ::1], types.float32[:, ::1],
        types.int64[:, ::1], types.int64[:, ::1], types.int64[::1], types.float32[::1], types.int64,
    )
)  # fmt: skip
def cut_sparse(
    copies: npt.NDArray[np.int64],
    starts: Any,
    lengths: Any,
    column: int,
    int64s: Any,
    floats: Any,
    target_starts: npt.NDArray[np.int64],
    target_lengths: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    used: int,
) -> int:
    """Append the lists of each row, for which there must be room; return the entries then in use."""
    for number in range(len(copies)):
        slot = copies[number, _SLOT]
        step = copies[number, _STEP]
        for index in range(copies[number, _ROWS]):
            row = copies[number, _ROW] + index
            batch_row = copies[number, _PLACE] + index
            start = starts[slot, column, row]
            count = lengths[slot, column, row]
            target_starts[step, batch_row] = used
            target_lengths[step, batch_row] = count
            for item in range(count):
                indices[used + item] = int64s[slot, start + item]
                values[used + item] = floats[slot, start + item]
            used += count
    return used


@compile_kernel(
    types.Tuple((types.int64[:, ::1], types.float32[::1]))(
        types.int64[:, ::1], types.int64[:, ::1], types.int64[::1], types.float32[::1], types.int64
    )
)
def in_order(
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    count: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return (batch row, index) ``[count, 2]`` and values ``[count]`` of all steps, row by row."""
    coordinates = np.empty((count, 2), np.int64)
    ordered = np.empty(count, np.float32)
    at = 0
    for step in range(len(starts)):
        for row in range(starts.shape[1]):
            for source in range(starts[step, row], starts[step, row] + lengths[step, row]):
                coordinates[at, 0] = row
                coordinates[at, 1] = indices[source]
                ordered[at] = values[source]
                at += 1
    return coordinates, ordered
