"""Decodes blocks into slots, one block per slot, and cuts batches out of them: what the reader does to every row.

A block's rows are put into their order of the epoch while they are decoded, so that cutting a batch copies stretches of
consecutive values. Everything that touches a value is a kernel; one call decodes a whole block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from data_pipelines.kernels import READ_ONLY_BYTES, compile_inner_kernel, compile_kernel
from data_pipelines.order import RANGE_LANE, RANGE_SKIPPED, RANGE_START, RANGE_STOP
from data_pipelines.tfrecord.crc32c import MASK_DELTA, crc32c_of_span
from data_pipelines.tfrecord.records import FOOTER_BYTES, HEADER_BYTES, read_record_at

# What a column of a block is to its slot.
_FLOATS, _INT64S, _LIST_LENGTHS, _LIST_INT64S, _LIST_FLOATS = range(5)

# What is wrong with a block, as the kernel says it.
_WHOLE, _NOT_A_RECORD, _MALFORMED, _MISSING, _COUNT, _VALUES, _LENGTHS, _NO_ROOM = range(8)
_PROBLEMS = {
    _MALFORMED: "it is not laid out as blocks are written",
    _MISSING: "column '{column}' is missing or holds another kind of values",
    _COUNT: "column '{column}' has {count} values for {rows} rows",
    _VALUES: "column '{column}' is cut off inside a number",
    _LENGTHS: "the lengths in column '{column}' do not add up to its values",
}

# Tags of length-delimited fields. 1: the only one of Example, of Features and of each list, and a map entry's key.
# 2: a map entry's value, and a Feature's floats. 3: a Feature's int64s.
_FIELD_1 = 1 << 3 | 2
_FIELD_2 = 2 << 3 | 2
_FIELD_3 = 3 << 3 | 2

# Rows of a slot that stand one after the other in one step: whose slot, from which row of it on, the step, where in the
# worker's part of the batch, and how many.
_SLOT, _ROW, _STEP, _PLACE, _ROWS = range(5)
_STRETCH_COLUMNS = 5

_INT64_SPAN = types.Array(types.int64, 1, "C", readonly=True)
_STRETCHES = types.int64[:, ::1]
_LISTS_OF_ROWS = (types.int64[:, :, ::1], types.int64[:, :, ::1])  # where they start, and how long they are

Stretches = npt.NDArray[np.int64]
"""What to copy from slots into batches: int64 ``[stretches, 5]``, made by :func:`stretches_of`."""


class DamagedBlockError(ValueError):
    """A record that is whole but not the block that its dataset says it is; the message says what is wrong."""


@dataclass(frozen=True)
class ListColumn:
    """A column of lists, by the names under which a block stores its parts.

    Attributes:
        lengths: int64 per row, how many values it has.
        ids: int64, the values of all rows one after the other.
        values: float32, beside them; None where there are none.
    """

    lengths: str
    ids: str
    values: str | None = None


@dataclass(frozen=True)
class BlockLayout:
    """The columns of a block that are read, by the names under which it stores them.

    Attributes:
        floats: Columns of one float32 per row.
        int64s: Columns of one int64 per row.
        lists: Columns of lists.
    """

    floats: tuple[str, ...] = ()
    int64s: tuple[str, ...] = ()
    lists: tuple[ListColumn, ...] = ()


class BlockSlots:
    """Room for decoded blocks.

    Memory: ``slots * rows`` times 4 bytes per float column, 8 per int64 column and 16 per list column; and per slot 8
    bytes (12 where lists carry floats) for each value in the lists of the block that has most of them, an eighth more
    as reserve. Every slot has room for that fullest block, so lists cost ``slots`` times what they cost in it, however
    little the other blocks hold; while a fuller one is met, the room before it is held too.

    Attributes:
        floats: float32 ``[slots, columns, rows]``; behind the layout's columns the constant ones.
        int64s: int64 ``[slots, columns, rows]``.
    """

    def __init__(self, layout: BlockLayout, slots: int, rows: int, constants: Sequence[float] = ()) -> None:
        """Make room for ``slots`` blocks of up to ``rows`` rows; each of ``constants`` is one more float column."""
        self.floats = np.zeros((slots, len(layout.floats) + len(constants), rows), np.float32)
        for column, value in enumerate(constants, len(layout.floats)):
            self.floats[:, column] = value
        self.int64s = np.zeros((slots, len(layout.int64s), rows), np.int64)
        self._starts = np.zeros((slots, len(layout.lists), rows), np.int64)
        self._lengths = np.zeros((slots, len(layout.lists), rows), np.int64)
        self._list_int64s = np.zeros((slots, 0), np.int64)
        self._list_floats = np.zeros((slots, 0), np.float32)
        columns = [(name, _FLOATS, place) for place, name in enumerate(layout.floats)]
        columns += [(name, _INT64S, place) for place, name in enumerate(layout.int64s)]
        for place, part in enumerate(layout.lists):
            columns += [(part.lengths, _LIST_LENGTHS, place), (part.ids, _LIST_INT64S, place)]
            columns += [(part.values, _LIST_FLOATS, place)] if part.values is not None else []
        # Blocks hold their columns in the order of their names, so the next name is nearly always the next here.
        columns.sort(key=lambda column: column[0].encode())
        self._names = [name for name, _, _ in columns]
        encoded = [name.encode() for name in self._names]
        self._name_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._name_stops = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._kinds = np.array([kind for _, kind, _ in columns], np.int64)
        self._places = np.array([place for _, _, place in columns], np.int64)
        self._spans = np.zeros((len(columns), 2), np.int64)

    def decode(
        self,
        slot: int,
        content: npt.NDArray[np.uint8],
        offset: int,
        positions: npt.NDArray[np.uint32],
        *,
        name: str = "",
    ) -> None:
        """Put the block that begins at ``offset`` into ``slot``.

        Args:
            slot: Where to put it.
            content: The file's bytes ``[size]``.
            offset: Where the record begins, in bytes.
            positions: uint32 ``[rows]``, where to put each row as stored: a permutation of the numbers below ``rows``.
            name: What errors call the file.

        Raises:
            DamagedRecordError: No whole record begins there, or it does not match its checksums.
            DamagedBlockError: The record is no block with ``rows`` rows and the layout's columns.
        """
        assert len(positions) <= self.floats.shape[2]  # noqa: S101 - the kernel relies on it
        while True:
            problem, column, count = _decode_block(
                content, offset, self._name_bytes, self._name_stops, self._kinds, self._places, positions,
                slot, self.floats, self.int64s, self._starts, self._lengths, self._list_int64s, self._list_floats,
                self._spans,
            )  # fmt: skip
            if problem == _WHOLE:
                return
            if problem != _NO_ROOM:
                break
            self._make_room(count)
        if problem == _NOT_A_RECORD:
            read_record_at(content.data, offset, name=name)  # raises, and says what is wrong
        raise DamagedBlockError(
            f"{name}: the block at byte {offset} is damaged: "
            + _PROBLEMS[problem].format(column=self._names[column], count=count, rows=len(positions))
            + "; delete the dataset and convert again"
        )

    def cut(self, stretches: Stretches, floats: npt.NDArray[np.float32], int64s: npt.NDArray[np.int64]) -> None:
        """Copy the columns of one value per row to ``floats`` and ``int64s`` ``[steps, columns, batch]``."""
        _cut_floats(stretches, self.floats, floats)
        _cut_int64s(stretches, self.int64s, int64s)

    def cut_ids(self, stretches: Stretches, column: int, ids: npt.NDArray[np.int64]) -> None:
        """Copy a list column to ``ids`` ``[steps, batch, max_length]``, rows padded with 0 on the right."""
        _cut_ids(stretches, self._starts, self._lengths, column, self._list_int64s, ids)

    def cut_classes(self, stretches: Stretches, column: int, classes: npt.NDArray[np.float32]) -> None:
        """Set to 1 in ``classes`` ``[steps, batch, classes]`` whatever classes the rows of a list column name.

        Raises:
            DamagedBlockError: A class is not one of them.
        """
        if not _cut_classes(stretches, self._starts, self._lengths, column, self._list_int64s, classes):
            raise DamagedBlockError(
                f"a row names a class that is not one of {classes.shape[2]}; delete the dataset and convert again"
            )

    def cut_sparse(self, stretches: Stretches, column: int, rows: "SparseSteps") -> None:
        """Append a list column with values to ``rows``."""
        rows.make_room(_count_values(stretches, self._lengths, column))
        rows.used = _cut_sparse(
            stretches, self._starts, self._lengths, column, self._list_int64s, self._list_floats,
            rows.starts, rows.lengths, rows.indices, rows.values, rows.used,
        )  # fmt: skip

    def _make_room(self, count: int) -> None:
        # More than asked for: the blocks of a dataset differ little in size.
        more = count + count // 8 - self._list_int64s.shape[1]
        self._list_int64s = np.pad(self._list_int64s, ((0, 0), (0, more)))
        if _LIST_FLOATS in self._kinds:
            self._list_floats = np.pad(self._list_floats, ((0, 0), (0, more)))


def stretches_of(
    ranges: npt.NDArray[np.int64],
    *,
    lane_rows: npt.NDArray[np.int64],
    first_lane: int,
    first_row: int,
    batch: int,
) -> Stretches:
    """Return how to copy ``ranges`` of an epoch's order into one worker's part of every batch.

    Args:
        ranges: What :meth:`EpochOrder.ranges` returned, or some of it.
        lane_rows: int64 ``[lanes + 1]``, :attr:`EpochOrder.lane_rows`.
        first_lane: The lane whose block is in slot 0; the next lane's is in slot 1.
        first_row: Row of the global batch where the worker's part begins.
        batch: Rows of that part.
    """
    found: Stretches = _find_stretches(ranges, lane_rows, first_lane, first_row, batch)
    return found


class SparseSteps:
    """Sparse rows of several steps: gathered in any order, given out in that of the rows.

    Attributes:
        starts: int64 ``[steps, batch]``, where the entries of a row begin.
        lengths: int64 ``[steps, batch]``, how many they are; 0 for padding.
        indices: int64 ``[room]``.
        values: float32 ``[room]``.
        used: How much of the room is taken.
    """

    def __init__(self, steps: int, batch: int) -> None:
        self.starts = np.zeros((steps, batch), np.int64)
        self.lengths = np.zeros((steps, batch), np.int64)
        self.indices = np.empty(0, np.int64)
        self.values = np.empty(0, np.float32)
        self.used = 0

    def make_room(self, count: int) -> None:
        """Make room for ``count`` more entries."""
        if self.used + count > len(self.indices):
            self.indices = np.concatenate([self.indices[: self.used], np.empty(count, np.int64)])
            self.values = np.concatenate([self.values[: self.used], np.empty(count, np.float32)])

    def coordinates(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return (row, index) ``[entries, 2]``, values ``[entries]`` and where each step begins ``[steps + 1]``."""
        ends = np.cumsum(self.lengths.sum(axis=1))
        steps = np.concatenate([np.zeros(1, np.int64), ends])
        return *_in_order(self.starts, self.lengths, self.indices, self.values, int(steps[-1])), steps


@compile_inner_kernel
def _field(content: npt.NDArray[np.uint8], at: int, stop: int, tag: int) -> tuple[Any, Any]:
    """Return where the content of the length-delimited field ``tag`` at ``at`` starts and stops; -1 where none is."""
    if at >= stop or content[at] != tag:
        return -1, -1
    at += 1
    length: Any = 0
    shift = 0
    while at < stop and shift < 35:
        byte = np.int64(content[at])
        at += 1
        length |= (byte & 127) << shift
        if byte < 128:
            return (at, at + length) if length <= stop - at else (-1, -1)
        shift += 7
    return -1, -1


@compile_inner_kernel
def _find_name(
    content: npt.NDArray[np.uint8], start: int, stop: int, names: npt.NDArray[np.uint8], name_stops: Any, expected: int
) -> int:
    """Return the number of the name in ``content[start:stop]``, -1 where it is not one of ``names``."""
    for tried in range(name_stops.size):
        number = (expected + tried) % name_stops.size
        begin = name_stops[number - 1] if number else 0
        if name_stops[number] - begin != stop - start:
            continue
        same = True
        for index in range(stop - start):
            same &= content[start + index] == names[begin + index]
        if same:
            return number
    return -1


@compile_inner_kernel
def _find_columns(
    content: npt.NDArray[np.uint8],
    at: int,
    stop: int,
    names: npt.NDArray[np.uint8],
    name_stops: Any,
    kinds: Any,
    spans: Any,
) -> bool:
    """Fill ``spans`` with where the values of each column lie; stays -1 where it is not there. False if malformed."""
    for column in range(name_stops.size):
        spans[column, 0] = -1
        spans[column, 1] = -1
    if at == stop:
        return True
    at, features_stop = _field(content, at, stop, _FIELD_1)
    if at < 0 or features_stop != stop:
        return False
    expected = 0
    while at < stop:
        entry, entry_stop = _field(content, at, stop, _FIELD_1)
        if entry < 0:
            return False
        key, key_stop = _field(content, entry, entry_stop, _FIELD_1)
        if key < 0:
            return False
        feature, feature_stop = _field(content, key_stop, entry_stop, _FIELD_2)
        if feature < 0 or feature_stop != entry_stop:
            return False
        column = _find_name(content, key, key_stop, names, name_stops, expected)
        if column >= 0:
            is_float = kinds[column] == _FLOATS or kinds[column] == _LIST_FLOATS
            start, list_stop = _field(content, feature, feature_stop, _FIELD_2 if is_float else _FIELD_3)
            if start >= 0 and list_stop == feature_stop:
                if start == list_stop:
                    spans[column, 0] = start
                    spans[column, 1] = start
                else:
                    packed, packed_stop = _field(content, start, list_stop, _FIELD_1)
                    if packed < 0 or packed_stop != list_stop:
                        return False
                    spans[column, 0] = packed
                    spans[column, 1] = packed_stop
            expected = column + 1
        at = entry_stop
    return True


@compile_inner_kernel
def _little_endian(content: npt.NDArray[np.uint8], at: int, size: int) -> np.uint64:
    value = np.uint64(0)
    for index in range(size):
        value |= np.uint64(content[at + index]) << np.uint64(8 * index)
    return value


@compile_inner_kernel
def _has_checksum(content: npt.NDArray[np.uint8], start: int, stop: Any) -> bool:
    """Return whether the four bytes at ``stop`` are the masked CRC-32C of ``content[start:stop]``."""
    crc = crc32c_of_span(content, start, stop, 0)
    masked = (np.uint32(crc >> np.uint32(15)) | np.uint32(crc << np.uint32(17))) + np.uint32(MASK_DELTA)
    return np.uint32(masked) == np.uint32(_little_endian(content, stop, 4))


@compile_inner_kernel
def _find_payload(content: npt.NDArray[np.uint8], offset: int) -> tuple[Any, Any]:
    """Return where the payload of the record at ``offset`` starts and stops; -1 where no whole one is."""
    room = content.size - offset - HEADER_BYTES - FOOTER_BYTES
    if room < 0 or not _has_checksum(content, offset, offset + 8):
        return -1, -1
    length = _little_endian(content, offset, 8)
    start = offset + HEADER_BYTES
    if length > np.uint64(room) or not _has_checksum(content, start, start + np.int64(length)):
        return -1, -1
    return start, start + np.int64(length)


@compile_inner_kernel
def _put_floats(content: npt.NDArray[np.uint8], start: int, positions: Any, target: npt.NDArray[np.float32]) -> None:
    # The payload holds them little-endian, as the machine does, but not aligned: LLVM makes one load of the four.
    words = target.view(np.uint32)
    at = np.uint64(start)
    for row in range(positions.size):
        words[positions[row]] = (
            np.uint32(content[at])
            | np.uint32(content[at + np.uint64(1)]) << np.uint32(8)
            | np.uint32(content[at + np.uint64(2)]) << np.uint32(16)
            | np.uint32(content[at + np.uint64(3)]) << np.uint32(24)
        )
        at += np.uint64(4)


@compile_inner_kernel
def _read_varint(content: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[Any, int]:
    """Return the varint at ``at`` and where it ends, -1 where it is cut off or too long."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < stop and shift < np.uint64(64):
        byte = np.uint64(content[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return value, at
        shift += np.uint64(7)
    return value, -1


@compile_inner_kernel
def _put_int64s(
    content: npt.NDArray[np.uint8], start: int, stop: int, positions: Any, target: npt.NDArray[np.int64]
) -> int:
    """Decode one varint per position; returns where the last one ends, -1 where one is damaged.

    Up to three bytes are read without a loop (1.4 ns against 1.9 ns per value of mixed lengths).
    """
    row = 0
    at: Any = start
    one = np.uint64(1)
    while row < positions.size and at + 3 <= stop:
        place = np.uint64(at)
        value = np.uint64(content[place])
        place += one
        if value >= np.uint64(128):
            byte = np.uint64(content[place])
            place += one
            value += (byte << np.uint64(7)) - np.uint64(1 << 7)
            if byte >= np.uint64(128):
                byte = np.uint64(content[place])
                place += one
                value += (byte << np.uint64(14)) - np.uint64(1 << 14)
                if byte >= np.uint64(128):
                    value, at = _read_varint(content, at, stop)
                    if at < 0:
                        return -1
                    place = np.uint64(at)
        target[positions[row]] = np.int64(value)
        row += 1
        at = np.int64(place)
    while row < positions.size:
        value, at = _read_varint(content, at, stop)
        if at < 0:
            return -1
        target[positions[row]] = np.int64(value)
        row += 1
    return at


@compile_inner_kernel
def _count_varints(content: npt.NDArray[np.uint8], start: int, stop: int) -> int:
    count = 0
    for at in range(start, stop):
        count += content[at] < 128
    return count


@compile_inner_kernel
def _set_starts(
    lengths: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], positions: Any, first: int, most: int
) -> int:
    """Fill in where the list of each row starts, ``first`` on; returns where the last ends, -1 if above ``most``."""
    at = first
    for row in range(positions.size):
        place = positions[row]
        if lengths[place] < 0 or lengths[place] > most - (at - first):
            return -1
        starts[place] = at
        at += lengths[place]
    return at


@compile_inner_kernel
def _put_list(
    content: npt.NDArray[np.uint8],
    start: int,
    stop: int,
    begin: int,
    count: int,
    is_int64: bool,
    list_int64s: npt.NDArray[np.int64],
    list_floats: npt.NDArray[np.float32],
) -> bool:
    """Decode ``count`` values to ``begin`` on; returns whether they fill ``content[start:stop]``."""
    if not is_int64:
        words = list_floats.view(np.uint32)
        for index in range(count):
            words[begin + index] = np.uint32(_little_endian(content, start + 4 * index, 4))
        return start + 4 * count == stop
    at = start
    for index in range(count):
        value, at = _read_varint(content, at, stop)
        if at < 0:
            return False
        list_int64s[begin + index] = np.int64(value)
    return at == stop


@compile_inner_kernel
def _decode_lists(
    content: npt.NDArray[np.uint8],
    kinds: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    positions: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    list_int64s: npt.NDArray[np.int64],
    list_floats: npt.NDArray[np.float32],
    spans: npt.NDArray[np.int64],
) -> tuple[int, int, int]:
    """Decode the values of all lists; ids and floats of one list begin at the same place."""
    used = 0
    bounds = np.zeros((len(starts), 2), np.int64)
    for column in range(kinds.size):
        if kinds[column] == _LIST_LENGTHS:
            place = places[column]
            end = _set_starts(lengths[place], starts[place], positions, used, content.size)
            if end < 0:
                return _LENGTHS, column, 0
            bounds[place, 0] = used
            bounds[place, 1] = end
            used = end
    for column in range(kinds.size):
        kind = kinds[column]
        if kind in (_LIST_INT64S, _LIST_FLOATS):
            start = spans[column, 0]
            end = spans[column, 1]
            count = _count_varints(content, start, end) if kind == _LIST_INT64S else (end - start) // 4
            begin = bounds[places[column], 0]
            if count != bounds[places[column], 1] - begin:
                return _LENGTHS, column, count
            if used > (list_int64s.size if kind == _LIST_INT64S else list_floats.size):
                return _NO_ROOM, column, used
            if not _put_list(content, start, end, begin, count, kind == _LIST_INT64S, list_int64s, list_floats):
                return _VALUES, column, 0
    return _WHOLE, 0, 0


@compile_kernel(
    types.UniTuple(types.int64, 3)(
        READ_ONLY_BYTES, types.int64, READ_ONLY_BYTES, _INT64_SPAN, _INT64_SPAN, _INT64_SPAN, types.uint32[::1],
        types.int64, types.float32[:, :, ::1], types.int64[:, :, ::1], types.int64[:, :, ::1], types.int64[:, :, ::1],
        types.int64[:, ::1], types.float32[:, ::1], types.int64[:, ::1],
    )
)  # fmt: skip
def _decode_block(
    content: npt.NDArray[np.uint8],
    offset: int,
    names: npt.NDArray[np.uint8],
    name_stops: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    positions: npt.NDArray[np.uint32],
    slot: int,
    floats: npt.NDArray[np.float32],
    int64s: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    list_int64s: npt.NDArray[np.int64],
    list_floats: npt.NDArray[np.float32],
    spans: npt.NDArray[np.int64],
) -> tuple[int, int, int]:
    """Decode the block at ``offset`` into ``slot``; returns what is wrong, with which column, and a count beside it.

    Nothing outside of ``content`` and the slot is touched, whatever the bytes. ``spans`` ``[columns, 2]`` is scratch.
    """
    rows = positions.size
    at, stop = _find_payload(content, offset)
    if at < 0:
        return _NOT_A_RECORD, 0, 0
    if not _find_columns(content, at, stop, names, name_stops, kinds, spans):
        return _MALFORMED, 0, 0
    for column in range(kinds.size):
        if spans[column, 0] < 0:
            return _MISSING, column, 0
        kind = kinds[column]
        if kind in (_LIST_INT64S, _LIST_FLOATS):
            continue
        is_float = kind == _FLOATS
        start = spans[column, 0]
        end = spans[column, 1]
        count = (end - start) // 4 if is_float else _count_varints(content, start, end)
        if count != rows:
            return _COUNT, column, count
        if is_float:
            if (end - start) % 4:
                return _VALUES, column, 0
            _put_floats(content, start, positions, floats[slot, places[column]])
        else:
            target = int64s[slot, places[column]] if kind == _INT64S else lengths[slot, places[column]]
            if _put_int64s(content, start, end, positions, target) != end:
                return _VALUES, column, 0
    return _decode_lists(
        content, kinds, places, positions, starts[slot], lengths[slot], list_int64s[slot], list_floats[slot], spans
    )


@compile_kernel(_STRETCHES(types.int64[:, ::1], _INT64_SPAN, types.int64, types.int64, types.int64))
def _find_stretches(
    ranges: npt.NDArray[np.int64], lane_rows: npt.NDArray[np.int64], first_lane: int, first_row: int, batch: int
) -> npt.NDArray[np.int64]:
    """Cut ``ranges`` at the ends of steps and at the borders of the worker's part of the batch."""
    count = 0
    for number in range(len(ranges)):
        lane = ranges[number, RANGE_LANE]
        width = lane_rows[lane + 1] - lane_rows[lane]
        count += (ranges[number, RANGE_STOP] - ranges[number, RANGE_START]) // width + 2
    stretches = np.empty((count, _STRETCH_COLUMNS), np.int64)
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
                stretches[count, _SLOT] = lane - first_lane
                stretches[count, _ROW] = row + begin - place
                stretches[count, _STEP] = skipped // width
                stretches[count, _PLACE] = begin
                stretches[count, _ROWS] = end - begin
                count += 1
            row += rows
            skipped += rows
    return stretches[:count]


@compile_inner_kernel
def _cut(stretches: Any, slots: Any, target: Any) -> None:
    """Copy columns ``[slots, columns, rows]`` to ``[steps, columns, batch]``."""
    for number in range(len(stretches)):
        row = np.uint64(stretches[number, _ROW])
        place = np.uint64(stretches[number, _PLACE])
        rows = np.uint64(stretches[number, _ROWS])
        for column in range(target.shape[1]):
            source = slots[stretches[number, _SLOT], column]
            batch = target[stretches[number, _STEP], column]
            for index in range(rows):
                batch[place + np.uint64(index)] = source[row + np.uint64(index)]


@compile_kernel(types.void(_STRETCHES, types.float32[:, :, ::1], types.float32[:, :, ::1]))
def _cut_floats(stretches: Any, slots: Any, target: Any) -> None:
    _cut(stretches, slots, target)


@compile_kernel(types.void(_STRETCHES, types.int64[:, :, ::1], types.int64[:, :, ::1]))
def _cut_int64s(stretches: Any, slots: Any, target: Any) -> None:
    _cut(stretches, slots, target)


@compile_kernel(types.void(_STRETCHES, *_LISTS_OF_ROWS, types.int64, types.int64[:, ::1], types.int64[:, :, ::1]))
def _cut_ids(
    stretches: npt.NDArray[np.int64], starts: Any, lengths: Any, column: int, int64s: Any, target: npt.NDArray[np.int64]
) -> None:
    for number in range(len(stretches)):
        slot = stretches[number, _SLOT]
        for index in range(stretches[number, _ROWS]):
            row = stretches[number, _ROW] + index
            batch_row = target[stretches[number, _STEP], stretches[number, _PLACE] + index]
            count = min(lengths[slot, column, row], batch_row.size)
            for item in range(count):
                batch_row[item] = int64s[slot, starts[slot, column, row] + item]
            for item in range(count, batch_row.size):
                batch_row[item] = 0


@compile_kernel(types.boolean(_STRETCHES, *_LISTS_OF_ROWS, types.int64, types.int64[:, ::1], types.float32[:, :, ::1]))
def _cut_classes(
    stretches: npt.NDArray[np.int64],
    starts: Any,
    lengths: Any,
    column: int,
    int64s: Any,
    target: npt.NDArray[np.float32],
) -> bool:
    """Set the classes of each row to 1; returns whether all of them are in range."""
    for number in range(len(stretches)):
        slot = stretches[number, _SLOT]
        for index in range(stretches[number, _ROWS]):
            row = stretches[number, _ROW] + index
            batch_row = target[stretches[number, _STEP], stretches[number, _PLACE] + index]
            for item in range(lengths[slot, column, row]):
                label = int64s[slot, starts[slot, column, row] + item]
                if label < 0 or label >= batch_row.size:
                    return False
                batch_row[label] = 1.0
    return True


@compile_kernel(types.int64(_STRETCHES, types.int64[:, :, ::1], types.int64))
def _count_values(stretches: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], column: int) -> int:
    count = 0
    for number in range(len(stretches)):
        for index in range(stretches[number, _ROWS]):
            count += lengths[stretches[number, _SLOT], column, stretches[number, _ROW] + index]
    return count


@compile_kernel(
    types.int64(
        _STRETCHES, *_LISTS_OF_ROWS, types.int64, types.int64[:, ::1], types.float32[:, ::1],
        types.int64[:, ::1], types.int64[:, ::1], types.int64[::1], types.float32[::1], types.int64,
    )
)  # fmt: skip
def _cut_sparse(
    stretches: npt.NDArray[np.int64],
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
    """Append the lists of each row, for which there is room; returns how much of it is used then."""
    for number in range(len(stretches)):
        slot = stretches[number, _SLOT]
        step = stretches[number, _STEP]
        for index in range(stretches[number, _ROWS]):
            row = stretches[number, _ROW] + index
            batch_row = stretches[number, _PLACE] + index
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
def _in_order(
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
