"""Assembly of one worker's part of batches: it finds blocks in mapped shards, decodes them, and copies steps from them.

:class:`BatchColumns` describes a batch. This module also decides on the number of steps that are made at once, and so
on a reader's memory.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.dataset import Shard, block_format
from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.data_pipelines.reading.decode_blocks import (
    BlockLayout,
    BlockSlots,
    ListColumn,
    SparseSteps,
    copy_ranges,
)
from mirrorspark.data_pipelines.reading.order import RANGE_BLOCK, RANGE_LANE, EpochOrder
from mirrorspark.data_pipelines.tfrecord import arrow_schema

LABEL = "\0label"
WEIGHT = "\0weight"
"""Names of the two columns that are not features; no feature can have such a name."""

CHUNK_ROWS = 16_384
"""Rows that are assembled at once, or one step if that is more. A chunk costs TensorFlow 0.2 ms whatever its size;
beyond this size, larger chunks gain less than they lose by leaving the processor's cache.
"""

CHUNK_BYTES = 64 * 2**20
"""The largest chunk, unless a single step takes more: fewer wide rows, for example labels of 5,000 classes, are
assembled at once.
"""

# A stored sparse entry takes 5 bytes or more: a float32 and an index of at least one byte. In a chunk it takes 12 as
# collected and 20 in order.
_STORED_ENTRY_BYTES = 5
_ENTRY_BYTES = 12 + 20


@dataclass(frozen=True)
class BatchColumns:
    """The columns of a batch, in the order of a chunk's arrays, and the stored columns they come from.

    Attributes:
        layout: The stored columns. Its lists are in the order of ``ids``, ``classes``, ``sparse``.
        floats: Names of the float32 columns; the last ones are the ``constants``.
        constants: Values of columns that are not stored: weight 1 without a weight, label 0 if the label is a feature.
        int64s: Names of the int64 columns.
        ids: Name and length of the columns of padded ids.
        classes: Name (the label's) and number of classes of the columns of zeros and ones.
        sparse: Name and size of the sparse columns.
        vectors: Name and size of the columns of vectors.
    """

    layout: BlockLayout
    floats: tuple[str, ...]
    constants: tuple[float, ...]
    int64s: tuple[str, ...]
    ids: Mapping[str, int]
    classes: Mapping[str, int]
    sparse: Mapping[str, int]
    vectors: Mapping[str, int]

    @classmethod
    def of(cls, fitted: FittedFeatures) -> "BatchColumns":
        """Return the columns of the features, the label and the weight."""
        spec = fitted.spec
        floats = {feature.name: feature.name for feature in spec if feature.form == "value"}
        int64s = {feature.name: feature.name for feature in spec if feature.form == "id"}
        ids = [feature for feature in spec if isinstance(feature, kinds.ListFeature)]
        sparse = [feature for feature in spec if isinstance(feature, kinds.Sparse)]
        vectors = {feature.name: feature.size for feature in spec if isinstance(feature, kinds.VectorFeature)}
        lists = [_list_column(feature) for feature in ids]
        classes = {}
        constants = {}
        label = f"{block_format.LABEL_PREFIX}{spec.label.stored}"
        if spec.label.stored is None:
            constants[LABEL] = 0.0
        elif spec.label.form == "multi_class":
            int64s[LABEL] = label
        elif spec.label.kind == "multi_label":
            classes[LABEL] = fitted.classes
            lists.append(ListColumn(label + arrow_schema.ROW_LENGTHS_SUFFIX, label))
        else:
            floats[LABEL] = label
        if spec.weight is None:
            constants[WEIGHT] = 1.0
        else:
            floats[WEIGHT] = block_format.WEIGHT_PREFIX + spec.weight
        return cls(
            layout=BlockLayout(
                tuple(floats.values()),
                tuple(int64s.values()),
                (*lists, *(_list_column(feature) for feature in sparse)),
                tuple(vectors.items()),
            ),
            floats=(*floats, *constants),
            constants=tuple(constants.values()),
            int64s=tuple(int64s),
            ids={feature.name: feature.max_length for feature in ids},
            classes=classes,
            sparse={feature.name: feature.size for feature in sparse},
            vectors=vectors,
        )

    def row_bytes(self, stored_row_bytes: float) -> float:
        """Return the most bytes that a row takes in a chunk, from the mean bytes of a stored row."""
        entries = stored_row_bytes / _STORED_ENTRY_BYTES
        return (
            4 * (len(self.floats) + sum(self.vectors.values()))
            + 8 * (len(self.int64s) + sum(self.ids.values()) + 2 * len(self.sparse))
            + 4 * sum(self.classes.values())
            + (_ENTRY_BYTES * entries if self.sparse else 0)
        )


def _list_column(feature: kinds.Feature) -> ListColumn:
    names = [feature.name + suffix for suffix in block_format.STORED_SUFFIXES[feature.form]]
    *values, lengths = names
    return ListColumn(lengths, *values)


def steps_per_chunk(columns: BatchColumns, shards: Sequence[Shard], batch: int) -> int:
    """Return the number of steps of ``batch`` rows that ``CHUNK_ROWS`` and ``CHUNK_BYTES`` allow at once."""
    rows = sum(shard.rows for shard in shards)
    row_bytes = columns.row_bytes(sum(shard.bytes for shard in shards) / max(rows, 1))
    return max(1, int(min(CHUNK_ROWS, CHUNK_BYTES / max(row_bytes, 1)) // batch))


@dataclass(frozen=True)
class Chunk:
    """Several steps of one worker.

    Attributes:
        floats: float32 ``[steps, columns, batch]``.
        int64s: int64 ``[steps, columns, batch]``.
        ids: Per column int64 ``[steps, batch, max_length]``.
        classes: Per column float32 ``[steps, batch, classes]``.
        sparse: Per column the rows of the steps.
        vectors: Per column float32 ``[steps, batch, size]``.
    """

    floats: npt.NDArray[np.float32]
    int64s: npt.NDArray[np.int64]
    ids: list[npt.NDArray[np.int64]]
    classes: list[npt.NDArray[np.float32]]
    sparse: list[SparseSteps]
    vectors: list[npt.NDArray[np.float32]]

    @classmethod
    def empty(cls, columns: BatchColumns, steps: int, batch: int, *, padded: bool) -> "Chunk":
        """Return a chunk to fill; if it is ``padded``, rows that stay unfilled are zeros."""
        make = np.zeros if padded else np.empty
        return cls(
            floats=make((steps, len(columns.floats), batch), np.float32),
            int64s=make((steps, len(columns.int64s), batch), np.int64),
            ids=[make((steps, batch, length), np.int64) for length in columns.ids.values()],
            classes=[np.zeros((steps, batch, classes), np.float32) for classes in columns.classes.values()],
            sparse=[SparseSteps(steps, batch) for _ in columns.sparse],
            vectors=[make((steps, batch, size), np.float32) for size in columns.vectors.values()],
        )


class EpochReader:
    """Reader of one worker's part of the batches of one epoch."""

    def __init__(
        self,
        stored: "StoredBlocks",
        columns: BatchColumns,
        order: EpochOrder,
        rows: range,
        slots: BlockSlots | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            stored: The blocks of the split.
            columns: The columns of a batch.
            order: The order of the epoch.
            rows: The worker's part of every global batch.
            slots: The slots of another epoch's reader, to reuse.
        """
        self._stored = stored
        self._columns = columns
        self._order = order
        self._batch = len(rows)
        self._first_row = rows.start
        self._first_lane, self._last_lane = order.lanes_of(rows.start, rows.stop)
        self._lane_rows = order.lane_rows
        lanes = self._last_lane - self._first_lane
        self.slots = slots or BlockSlots(columns.layout, lanes, int(stored.rows.max()), columns.constants)
        # A lane continues in the block where its last chunk ended, so each lane keeps that block.
        self._open = np.full(lanes, -1, np.int64)

    def read(self, first_step: int, last_step: int) -> Chunk:
        """Return the steps from ``first_step`` up to, not including, ``last_step``.

        Raises:
            DamagedRecordError, DamagedBlockError: A shard is damaged.
        """
        chunk = Chunk.empty(
            self._columns, last_step - first_step, self._batch, padded=last_step > self._order.full_steps
        )
        ranges = self._order.ranges(self._first_lane, self._last_lane, first_step, last_step)
        while len(ranges):
            # The first range of each lane; a lane's further blocks have to wait for its slot.
            is_first = np.ones(len(ranges), bool)
            is_first[1:] = ranges[1:, RANGE_LANE] != ranges[:-1, RANGE_LANE]
            self._read_blocks(ranges[is_first])
            self._cut(ranges[is_first], chunk)
            ranges = ranges[~is_first]
        return chunk

    def _read_blocks(self, ranges: npt.NDArray[np.int64]) -> None:
        slots = ranges[:, RANGE_LANE] - self._first_lane
        is_new = self._open[slots] != ranges[:, RANGE_BLOCK]
        for slot, block in zip(slots[is_new].tolist(), ranges[is_new, RANGE_BLOCK].tolist(), strict=True):
            content, offset, name = self._stored.place(block)
            self.slots.decode(slot, content, offset, self._order.row_positions(block), name=name)
            self._open[slot] = block

    def _cut(self, ranges: npt.NDArray[np.int64], chunk: Chunk) -> None:
        copies = copy_ranges(
            ranges,
            lane_rows=self._lane_rows,
            first_lane=self._first_lane,
            first_row=self._first_row,
            batch=self._batch,
        )
        self.slots.cut(copies, chunk.floats, chunk.int64s)
        for column, vectors in enumerate(chunk.vectors):
            self.slots.cut_vectors(copies, column, vectors)
        column = 0
        for ids in chunk.ids:
            self.slots.cut_ids(copies, column, ids)
            column += 1
        for classes in chunk.classes:
            self.slots.cut_classes(copies, column, classes)
            column += 1
        for rows in chunk.sparse:
            self.slots.cut_sparse(copies, column, rows)
            column += 1


class StoredBlocks:
    """The places of a split's blocks in its shards, which are mapped into memory, not read ahead.

    Attributes:
        rows: int64 ``[blocks]``.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        """Prepare to map ``shards`` of the dataset in ``directory``."""
        shards = [shard for shard in shards if shard.rows]  # an empty file cannot be mapped
        self._paths = [directory / shard.path for shard in shards]
        self.rows = np.array([rows for shard in shards for rows in shard.block_rows], np.int64)
        self._places = [(number, offset) for number, shard in enumerate(shards) for offset in shard.block_offsets]
        self._contents: dict[int, npt.NDArray[np.uint8]] = {}

    def place(self, block: int) -> tuple[npt.NDArray[np.uint8], int, str]:
        """Return the bytes of the block's file, the offset of its record, and the file's name."""
        shard, offset = self._places[block]
        if shard not in self._contents:
            with self._paths[shard].open("rb") as file:
                # The map closes with the last array that refers to it.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._contents[shard] = np.frombuffer(content, np.uint8)
        return self._contents[shard], offset, str(self._paths[shard])
