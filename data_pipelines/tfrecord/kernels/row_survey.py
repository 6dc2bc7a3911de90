"""The kernel that finds which features records have, for schema inference."""

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from mirrorspark.data_pipelines.tfrecord.kernels.wire_read import (
    INT64S_IN,
    NO_KIND,
    NOTHING,
    byte_at,
    count_list,
    hash_key,
    is_equal,
    read_entry,
    read_field,
    read_list,
)


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
    """Note kind and number of values of the Feature ``content[start:stop]``; return False if it is non-canonical."""
    kind, list_start, list_stop = read_list(content, start, stop)
    if kind < 0:
        return False
    values = 0
    if kind != NO_KIND:
        values = count_list(content, kind, list_start, list_stop)
        if values < 0:
            return False
    if first_rows[key, kind] < 0:
        first_rows[key, kind] = row
    most_values[key] = max(most_values[key], values)
    return True


# One function: a separate one for the key search, with the arrays it takes, doubles the time (2.5 -> 5.1 us for 42
# features).
# One long function, as ``locate`` in row_decode.py and for its reason.
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
    )(READ_ONLY_BYTES, INT64S_IN, INT64S_IN, types.boolean, types.int64, types.int64)
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
    """Find the features that occur in records.

    Args:
        content: the buffer with the records.
        starts: where each payload begins ``[rows]``.
        stops: where each ends.
        is_sequence: whether they are SequenceExamples.
        most_keys: the number of names to make room for.
        most_key_bytes: the bytes to make room for in all names together.

    Returns:
        The number of names, or -1 if the room was too small; their bytes and offsets; 1 for a feature and 2 for a
        feature list ``[most_keys]``; per kind (1 to 3 or NO_KIND) the first row that has the feature in that kind, or
        -1 ``[most_keys, 5]``; the greatest number of values of one feature ``[most_keys]``; and 1 for non-canonical
        records ``[rows]``.
    """
    keys = np.zeros(most_key_bytes, np.uint8)
    key_offsets = np.zeros(most_keys + 1, np.int64)
    sections = np.zeros(most_keys, np.int64)
    first_rows = np.full((most_keys, 5), NOTHING, np.int64)
    most_values = np.zeros(most_keys, np.int64)
    non_canonical = np.zeros(starts.size, np.uint8)
    table = np.full(max(16, 4 * most_keys), NOTHING, np.int64)
    count = 0
    for row in range(starts.size):
        stop = stops[row]
        at = starts[row]
        while at < stop and not non_canonical[row]:
            tag = byte_at(content, at)
            section = tag >> 3
            map_start, map_stop = read_field(content, at, stop, tag)
            if map_start < 0 or (tag != 0x0A and (tag != 0x12 or not is_sequence)):
                non_canonical[row] = 1
                break
            at = map_start
            while at < map_stop:
                key_start, key_stop, value_start, value_stop, at = read_entry(content, at, map_stop)
                if at < 0:
                    non_canonical[row] = 1
                    break
                slot = hash_key(content, key_start, key_stop, section) % table.size
                while table[slot] >= 0:
                    key = table[slot]
                    if (
                        sections[key] == section
                        and key_offsets[key + 1] - key_offsets[key] == key_stop - key_start
                        and is_equal(content, key_start, keys, key_offsets[key], key_stop - key_start)
                    ):
                        break
                    slot = (slot + 1) % table.size
                key = table[slot]
                if key < 0:
                    if count == most_keys or key_offsets[count] + key_stop - key_start > most_key_bytes:
                        return NOTHING, keys, key_offsets, sections, first_rows, most_values, non_canonical
                    key = count
                    for step in range(key_stop - key_start):
                        keys[np.uintp(key_offsets[key] + step)] = content[np.uintp(key_start + step)]
                    key_offsets[key + 1] = key_offsets[key] + key_stop - key_start
                    sections[key] = section
                    table[slot] = key
                    count += 1
                if section == 1:
                    if not _note_feature(content, value_start, value_stop, key, row, first_rows, most_values):
                        non_canonical[row] = 1
                        break
                    continue
                while value_start < value_stop and not non_canonical[row]:
                    start, value_start = read_field(content, value_start, value_stop, 0x0A)
                    if start < 0 or not _note_feature(content, start, value_start, key, row, first_rows, most_values):
                        non_canonical[row] = 1
                if non_canonical[row]:
                    break
    return count, keys, key_offsets, sections, first_rows, most_values, non_canonical
