"""Slots for decoded blocks, one block per slot, from which batches are copied.

Decoding puts a block's rows into their order of the epoch, so that a batch is copied from ranges of consecutive values.
Only kernels touch values; one call decodes a whole block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading import batch_kernels, block_kernels
from mirrorspark.data_pipelines.tfrecord import read_record_at

CopyRanges = npt.NDArray[np.int64]
"""Ranges of rows to copy from slots into batches: int64 ``[copies, 5]``, made by :func:`copy_ranges`."""


class DamagedBlockError(ClearError, ValueError):
    """An intact record that is not the block its dataset describes; the message names the difference."""


@dataclass(frozen=True)
class ListColumn:
    """The names under which a block stores the parts of a column of lists.

    Attributes:
        lengths: int64 per row, its number of values.
        ids: int64, the values of all rows concatenated.
        values: float32, parallel to ``ids``; None if the column has no floats.
    """

    lengths: str
    ids: str
    values: str | None = None


@dataclass(frozen=True)
class BlockLayout:
    """The stored names of the columns that are read from a block.

    Attributes:
        floats: Columns of one float32 per row.
        int64s: Columns of one int64 per row.
        vectors: Columns of as many float32 per row as the second of each pair says.
    """

    floats: tuple[str, ...] = ()
    int64s: tuple[str, ...] = ()
    lists: tuple[ListColumn, ...] = ()
    vectors: tuple[tuple[str, int], ...] = ()


class BlockSlots:
    """Room for decoded blocks.

    Memory: ``slots * rows`` times 4 bytes per float column, 8 per int64 column, 4 per number of a vector and 16 per
    list column; and per slot 8 bytes (12 if lists carry floats) for each list value of the fullest block, plus an
    eighth as reserve. Every slot has room for that fullest block, so lists cost ``slots`` times their size in it,
    however little the other blocks hold. While the room grows for a fuller block, the old room is still held.

    Attributes:
        floats: float32 ``[slots, columns, rows]``; the constant columns follow the layout's.
        int64s: int64 ``[slots, columns, rows]``.
        vectors: float32 ``[slots, rows, numbers]``, the vector columns side by side.
    """

    def __init__(self, layout: BlockLayout, slots: int, rows: int, constants: Sequence[float] = ()) -> None:
        """Make room for ``slots`` blocks of up to ``rows`` rows; each of ``constants`` adds a float column."""
        self.floats = np.zeros((slots, len(layout.floats) + len(constants), rows), np.float32)
        for column, value in enumerate(constants, len(layout.floats)):
            self.floats[:, column] = value
        self.int64s = np.zeros((slots, len(layout.int64s), rows), np.int64)
        self._vector_starts = np.cumsum([0, *(size for _, size in layout.vectors)], dtype=np.int64).tolist()
        self.vectors = np.zeros((slots, rows, self._vector_starts[-1]), np.float32)
        self._starts = np.zeros((slots, len(layout.lists), rows), np.int64)
        self._lengths = np.zeros((slots, len(layout.lists), rows), np.int64)
        self._list_int64s = np.zeros((slots, 0), np.int64)
        self._list_floats = np.zeros((slots, 0), np.float32)
        columns = [(name, block_kernels.FLOATS, place) for place, name in enumerate(layout.floats)]
        columns += [(name, block_kernels.INT64S, place) for place, name in enumerate(layout.int64s)]
        starts = zip(layout.vectors, self._vector_starts, strict=False)
        columns += [(name, block_kernels.VECTORS, start) for (name, _), start in starts]
        for place, part in enumerate(layout.lists):
            columns += [(part.lengths, block_kernels.LIST_LENGTHS, place), (part.ids, block_kernels.LIST_INT64S, place)]
            columns += [(part.values, block_kernels.LIST_FLOATS, place)] if part.values is not None else []
        # Blocks store their columns in the order of their names, so the next name is nearly always the next here.
        columns.sort(key=lambda column: column[0].encode())
        self._names = [name for name, _, _ in columns]
        encoded = [name.encode() for name in self._names]
        self._name_bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._name_stops = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._kinds = np.array([kind for _, kind, _ in columns], np.int64)
        self._places = np.array([place for _, _, place in columns], np.int64)
        sizes = dict(layout.vectors)
        self._widths = np.array([sizes.get(name, 1) for name in self._names], np.int64)
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
            slot: The slot's number.
            content: The file's bytes ``[size]``.
            offset: Where the record begins, in bytes.
            positions: uint32 ``[rows]``, the new place of each stored row: a permutation of the numbers below ``rows``.
            name: The file's name, for errors.

        Raises:
            DamagedRecordError: No whole record begins there, or it does not match its checksums.
            DamagedBlockError: The record is not a block with ``rows`` rows and the layout's columns.
        """
        assert len(positions) <= self.floats.shape[2]  # noqa: S101 - the kernel relies on it
        while True:
            problem, column, count = block_kernels.decode_block(
                content, offset, self._name_bytes, self._name_stops, self._kinds, self._places, self._widths,
                positions, slot, self.floats, self.int64s, self.vectors, self._starts, self._lengths,
                self._list_int64s, self._list_floats, self._spans,
            )  # fmt: skip
            if problem == block_kernels.WHOLE:
                return
            if problem != block_kernels.NO_ROOM:
                break
            self._make_room(count)
        if problem == block_kernels.NOT_A_RECORD:
            read_record_at(content.data, offset, name=name)  # raises the error that names the damage
        raise DamagedBlockError(
            f"{name}: the block at byte {offset} is damaged: "
            + block_kernels.PROBLEMS[problem].format(column=self._names[column], count=count, rows=len(positions))
            + "; delete the dataset and convert again"
        )

    def cut(self, copies: CopyRanges, floats: npt.NDArray[np.float32], int64s: npt.NDArray[np.int64]) -> None:
        """Copy the columns of one value per row to ``floats`` and ``int64s`` ``[steps, columns, batch]``."""
        batch_kernels.cut_floats(copies, self.floats, floats)
        batch_kernels.cut_int64s(copies, self.int64s, int64s)

    def cut_vectors(self, copies: CopyRanges, column: int, vectors: npt.NDArray[np.float32]) -> None:
        """Copy a vector column to ``vectors`` ``[steps, batch, size]``."""
        batch_kernels.cut_vectors(copies, self.vectors, self._vector_starts[column], vectors)

    def cut_ids(self, copies: CopyRanges, column: int, ids: npt.NDArray[np.int64]) -> None:
        """Copy a list column to ``ids`` ``[steps, batch, max_length]``, rows padded with 0 on the right."""
        batch_kernels.cut_ids(copies, self._starts, self._lengths, column, self._list_int64s, ids)

    def cut_classes(self, copies: CopyRanges, column: int, classes: npt.NDArray[np.float32]) -> None:
        """Set ``classes`` ``[steps, batch, classes]`` to 1 for the classes in the rows of a list column.

        Raises:
            DamagedBlockError: A class is out of range.
        """
        if not batch_kernels.cut_classes(copies, self._starts, self._lengths, column, self._list_int64s, classes):
            raise DamagedBlockError(
                f"a row names a class that is not one of {classes.shape[2]}; delete the dataset and convert again"
            )

    def cut_sparse(self, copies: CopyRanges, column: int, rows: "SparseSteps") -> None:
        """Append a list column with values to ``rows``."""
        rows.make_room(batch_kernels.count_values(copies, self._lengths, column))
        rows.used = batch_kernels.cut_sparse(
            copies, self._starts, self._lengths, column, self._list_int64s, self._list_floats,
            rows.starts, rows.lengths, rows.indices, rows.values, rows.used,
        )  # fmt: skip

    def _make_room(self, count: int) -> None:
        # An eighth more than needed: the blocks of a dataset differ little in size.
        more = count + count // 8 - self._list_int64s.shape[1]
        self._list_int64s = np.pad(self._list_int64s, ((0, 0), (0, more)))
        if block_kernels.LIST_FLOATS in self._kinds:
            self._list_floats = np.pad(self._list_floats, ((0, 0), (0, more)))


def copy_ranges(
    ranges: npt.NDArray[np.int64],
    *,
    lane_rows: npt.NDArray[np.int64],
    first_lane: int,
    first_row: int,
    batch: int,
) -> CopyRanges:
    """Return the copies that bring ``ranges`` of an epoch's order into one worker's part of every batch.

    Args:
        ranges: Rows of the result of :meth:`data_pipelines.reading.order.EpochOrder.ranges`.
        lane_rows: int64 ``[lanes + 1]``, :meth:`data_pipelines.reading.order.EpochOrder.lane_rows`.
        first_lane: The lane whose block is in slot 0; the next lane's is in slot 1.
        first_row: Row of the global batch where the worker's part begins.
        batch: Rows of that part.
    """
    found: CopyRanges = batch_kernels.find_copy_ranges(ranges, lane_rows, first_lane, first_row, batch)
    return found


class SparseSteps:
    """Sparse rows of several steps: collected in any order, returned in the order of the rows.

    Attributes:
        starts: int64 ``[steps, batch]``, where the entries of a row begin.
        lengths: int64 ``[steps, batch]``, their number; 0 for padding.
        indices: int64 ``[room]``.
        values: float32 ``[room]``.
        used: Entries in use.
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
        return *batch_kernels.in_order(self.starts, self.lengths, self.indices, self.values, int(steps[-1])), steps
