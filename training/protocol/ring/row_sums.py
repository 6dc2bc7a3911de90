"""Sums of sparse gradients by row, in one pass over them.

TensorFlow needs ``unique`` and ``unsorted_segment_sum`` for them; a step of two workers with a table of a million rows
takes up to a fifth less without these.
"""

from collections.abc import Sequence

import numpy as np
from numba import types

from mirrorspark.data_pipelines import compile_kernel
from mirrorspark.training.protocol.ring.ring import Array

_INT64S = types.Array(types.int64, 1, "C", readonly=True)
_FLOATS = types.Array(types.float32, 2, "C", readonly=True)
# Knuth's multiplicative hash: neighbouring rows, which popular tokens have, go to distant slots.
_GOLDEN = 0x9E3779B97F4A7C15


def sum_rows(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return the sums of all values of a row, and the rows, in the order in which they first appear.

    Args:
        parts: Values ``[slices, …]`` and the rows, an integer ``[slices]``, that they belong to.

    Raises:
        ValueError: A part has not as many values as rows, or values of another type than the first part.
    """
    for values, rows in parts:
        # The kernel does not check: it would read beyond the end.
        if len(values) != len(rows) or values.dtype != parts[0][0].dtype:
            raise ValueError(
                f"a sparse gradient has {len(values)} values of type {values.dtype} for {len(rows)} rows of type "
                f"{rows.dtype}, where the first worker's are {parts[0][0].dtype} and {parts[0][1].dtype}; give indices "
                f"and values of the same types on all workers"
            )
    slices = sum(len(rows) for _, rows in parts)
    values_like, rows_like = parts[0]
    if values_like.dtype != np.float32:
        return _sum_rows_of_any_type(parts)
    shape = (-1, int(np.prod(values_like.shape[1:])))
    sums, named = np.empty((slices, shape[1]), np.float32), np.empty(slices, np.int64)
    places = np.full(max(2, 1 << (2 * slices - 1).bit_length()), -1, np.int32)
    count = 0
    for values, rows in parts:
        flat = np.ascontiguousarray(values).reshape(shape)
        count = _add_rows(np.ascontiguousarray(rows, np.int64), flat, places, named, sums, count)
    return sums[:count].reshape(-1, *values_like.shape[1:]), named[:count].astype(rows_like.dtype, copy=False)


@compile_kernel(types.int64(_INT64S, _FLOATS, types.int32[::1], types.int64[::1], types.float32[:, ::1], types.int64))
def _add_rows(rows: Array, values: Array, places: Array, named: Array, sums: Array, count: int) -> int:
    """Add ``values`` to the ``sums`` of their rows, and return how many rows have one.

    Args:
        rows: int64 ``[slices]``.
        values: float32 ``[slices, width]``.
        places: A hash table of a power of two, with the place of a row in ``named``, or -1.
        named: int64, the rows; ``count`` of them so far.
        sums: float32 ``[…, width]``, the sums of the same.
        count: Rows that have a sum.
    """
    last = np.uint64(len(places) - 1)
    for number in range(len(rows)):
        row = rows[number]
        mixed = np.uint64(row) * np.uint64(_GOLDEN)
        slot = (mixed ^ (mixed >> np.uint64(32))) & last
        while places[slot] >= 0 and named[places[slot]] != row:
            slot = (slot + np.uint64(1)) & last
        place = places[slot]
        if place < 0:
            places[slot] = count
            named[count] = row
            for column in range(values.shape[1]):
                sums[count, column] = values[number, column]
            count += 1
        else:
            for column in range(values.shape[1]):
                sums[place, column] += values[number, column]
    return count


def _sum_rows_of_any_type(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    values, rows = (np.concatenate([part[of] for part in parts]) for of in range(2))
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    in_order = np.argsort(first)
    sums = np.zeros((len(first), *values.shape[1:]), values.dtype)
    np.add.at(sums, np.argsort(in_order)[place], values)
    return sums, rows[first[in_order]]
