"""Reads a dataset directory: batches for training as ``tf.data``, or plain rows block by block.

Memory of one reader, whatever the size of the dataset: one decoded block for each lane that the worker touches (at
most ``MAX_LANES``; :class:`data_pipelines.decode_blocks.BlockSlots` says how many bytes that is), and at most eight
chunks of ``CHUNK_ROWS`` rows, or of one step if that is more: those of four prefetched steps and two in hand, one that
is being assembled, and its copy. Shards are mapped into memory: what of them stays there is the operating system's.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from data_pipelines.blocks import LABEL_PREFIX, STORED_SUFFIXES, WEIGHT_PREFIX, Block, decode_block
from data_pipelines.dataset_cache import DatasetCache, Lease
from data_pipelines.decode_blocks import BlockLayout, BlockSlots, ListColumn, SparseSteps, stretches_of
from data_pipelines.features import Feature, FeatureSpec, ListFeature, Sparse
from data_pipelines.fitted import FeatureMismatchError, FittedFeatures
from data_pipelines.manifest import FEATURES_FOLDER, DatasetError, Manifest, check_directory
from data_pipelines.order import RANGE_BLOCK, RANGE_LANE, EpochOrder
from data_pipelines.storage import StoragePath
from data_pipelines.tfrecord.arrow_schema import ROW_LENGTHS_SUFFIX
from data_pipelines.tfrecord.records import read_record_at
from data_pipelines.transform import SparseRows

if TYPE_CHECKING:  # the driver reads datasets without loading TensorFlow
    import tensorflow as tf

LABEL = "\0label"
WEIGHT = "\0weight"
"""What :func:`batches` calls the two columns that are no features; no feature can have such a name."""

CHUNK_ROWS = 16_384
"""Rows that are assembled at once, or one step if that is more. A chunk costs TensorFlow 0.2 ms whatever its size; from
here on larger ones gain less than they lose by leaving the processor's cache."""

_PREFETCHED_STEPS = 4

Remainder = Literal["pad", "drop"]
Column = npt.NDArray[Any] | list[SparseRows]


@dataclass(frozen=True)
class Dataset:
    """A whole dataset directory.

    Attributes:
        path: The directory; of a remote dataset, its copy on this machine.
        manifest: What it holds.
        features: The fitted features its rows were encoded with.
        lease: Keeps the copy of a remote dataset from being evicted while this object lives.
    """

    path: Path
    manifest: Manifest
    features: FittedFeatures
    lease: Lease | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, location: str | Path | StoragePath, *, checksums: bool = False, cache: DatasetCache | None = None
    ) -> "Dataset":
        """Open the dataset at ``location`` after checking that it is whole.

        Args:
            location: A directory, or the URI of one on another store (``s3://bucket/flights``). The latter is copied to
                this machine first, once for all processes, and its checksums compared.
            checksums: Compare the checksum of every shard of a local directory too, not only its size.
            cache: Where copies of remote datasets lie; by default in the user's cache folder.

        Raises:
            DatasetError: It has no manifest, or a shard is missing or damaged.
            FeatureMismatchError: Its features are damaged, or not those its rows were encoded with.
            CacheError: The copy does not fit.
        """
        source = StoragePath.of(location)
        lease = None if source.is_local else (cache or DatasetCache()).stage(source)
        path = source.local if lease is None else lease.path
        manifest = check_directory(path, checksums=checksums)
        try:
            features = FittedFeatures.load(path / FEATURES_FOLDER)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{path / FEATURES_FOLDER} lacks a file ({error}); delete {path} and convert again"
            ) from error
        if features.hash != manifest.features_hash:
            raise FeatureMismatchError(
                f"{path} holds features {features.hash}, its rows were encoded with {manifest.features_hash}; "
                f"delete it and convert again"
            )
        return cls(path, manifest, features, lease)

    @property
    def spec(self) -> FeatureSpec:
        """The feature spec."""
        return self.features.spec

    def steps(self, split: str, global_batch_size: int, remainder: Remainder = "pad") -> int:
        """Return the number of batches in one epoch of ``split``, the padded last one included unless it is dropped."""
        rows = self.manifest.rows(split)
        return rows // global_batch_size if remainder == "drop" else -(-rows // global_batch_size)

    def blocks(self, split: str, *, keys: bool = False) -> Iterator[Block]:
        """Yield the rows of ``split`` as they are stored, block by block."""
        stored = _StoredBlocks(self, split)
        for number in range(len(stored.rows)):
            content, offset, name = stored.place(number)
            block = decode_block(read_record_at(content.data, offset, name=name), self.spec, keys=keys)
            if block.rows != stored.rows[number]:
                raise DatasetError(
                    f"{name}: the block at byte {offset} has {block.rows} rows, its manifest says "
                    f"{stored.rows[number]}; delete the dataset and convert again"
                )
            yield block


@dataclass(frozen=True)
class ReadPlan:
    """What one worker reads.

    Attributes:
        split: Name of the split.
        global_batch_size: Rows of one batch over all workers.
        rank: This worker, from 0.
        workers: How many there are.
        seed: Fixes the order of every epoch; None reads in stored order.
        epoch: Where to begin.
        step: Step of that epoch where to begin.
        epochs: How many epochs to give; None goes on for ever.
        remainder: What becomes of the rows that do not fill the last batch: ``pad`` fills it up with rows of zeros that
            have weight 0, ``drop`` leaves them out (with a seed, others in every epoch).
    """

    split: str
    global_batch_size: int
    rank: int = 0
    workers: int = 1
    seed: int | None = None
    epoch: int = 0
    step: int = 0
    epochs: int | None = 1
    remainder: Remainder = "pad"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.workers:
            raise ValueError(f"rank {self.rank} is not one of {self.workers} workers")
        if self.global_batch_size < 1 or self.global_batch_size % self.workers:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide among {self.workers} workers; "
                f"use a multiple of {self.workers}"
            )
        if self.remainder not in ("pad", "drop"):
            raise ValueError(f"remainder {self.remainder!r} is unknown; use pad or drop")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; use 0 or more")
        if self.epoch < 0 or self.step < 0:
            raise ValueError(f"epoch {self.epoch}, step {self.step} is before the beginning; count from 0")

    @property
    def batch_size_per_worker(self) -> int:
        """Rows of one batch on this worker."""
        return self.global_batch_size // self.workers


def load_dataset(dataset: Dataset | str | Path | StoragePath, plan: ReadPlan) -> "tf.data.Dataset":
    """Return batches ``(features, label, weight)`` for one worker.

        load_dataset("s3://bucket/flights", ReadPlan("train", global_batch_size=4096, seed=1))

    Features are a dict, by the form of the feature: float32 ``[batch]``, int64 ``[batch]``, int64 ``[batch,
    max_length]`` or a float32 ``tf.SparseTensor`` ``[batch, size]``, whose rows lie in order and which is never made
    dense. The weight is float32 ``[batch]``; padding rows have weight 0. The label is float32 ``[batch]``, of several
    classes int64 ``[batch]``, of several at once float32 ``[batch, classes]`` of zeros and ones. Where the label is
    itself a feature (a candidate to retrieve), the label tensor is all zeros and only the features count.

    Memory is bounded as this module's first lines say.

    Args:
        dataset: The dataset, or where to open it.
        plan: What to read of it.

    Raises:
        DatasetError: No whole dataset is there.
        tf.errors.InvalidArgumentError: When iterating, with the name and message of the error that :func:`batches`
            raises.
    """
    import tensorflow as tf  # deferred: see above

    if not isinstance(dataset, Dataset):
        dataset = Dataset.open(dataset)
    columns = _Columns.of(dataset.features)
    batch = plan.batch_size_per_worker
    signature = {
        "floats": tf.TensorSpec((None, len(columns.floats), batch), tf.float32),
        "int64s": tf.TensorSpec((None, len(columns.int64s), batch), tf.int64),
        "ids": tuple(tf.TensorSpec((None, batch, length), tf.int64) for length in columns.ids.values()),
        "classes": tuple(tf.TensorSpec((None, batch, classes), tf.float32) for classes in columns.classes.values()),
        "sparse": tuple(
            (tf.TensorSpec((None, 2), tf.int64), tf.TensorSpec((None,), tf.float32), tf.TensorSpec((None,), tf.int64))
            for _ in columns.sparse
        ),
    }

    def chunks() -> Iterator[dict[str, Any]]:
        for chunk in _chunks(dataset, plan):
            yield {
                "floats": chunk.floats,
                "int64s": chunk.int64s,
                "ids": tuple(chunk.ids),
                "classes": tuple(chunk.classes),
                "sparse": tuple(rows.coordinates() for rows in chunk.sparse),
            }

    def step_of(chunk: dict[str, Any], step: tf.Tensor) -> tuple[Any, tf.Tensor, tf.Tensor]:
        # Few large arrays come in and are taken apart here: slices along the first axis copy nothing.
        tensors = dict(zip(columns.floats, tf.unstack(chunk["floats"][step], len(columns.floats)), strict=True))
        tensors |= zip(columns.int64s, tf.unstack(chunk["int64s"][step], len(columns.int64s)), strict=True)
        tensors |= {name: ids[step] for name, ids in zip(columns.ids, chunk["ids"], strict=True)}
        tensors |= {name: hot[step] for name, hot in zip(columns.classes, chunk["classes"], strict=True)}
        for (name, size), (coordinates, values, starts) in zip(columns.sparse.items(), chunk["sparse"], strict=True):
            span = slice(starts[step], starts[step + 1])
            tensors[name] = tf.SparseTensor(coordinates[span], values[span], (batch, size))
        label, weight = tensors.pop(LABEL), tensors.pop(WEIGHT)
        return {feature.name: tensors[feature.name] for feature in dataset.spec}, label, weight

    def steps_of(chunk: dict[str, Any]) -> tf.data.Dataset:
        steps = tf.data.Dataset.range(tf.shape(chunk["floats"], tf.int64)[0])
        return steps.map(lambda step: step_of(chunk, step))

    options = tf.data.Options()
    # There is nothing to tune here, and the tuner's thread sleeps up to a minute before it lets an iterator go.
    options.autotune.enabled = False
    steps = tf.data.Dataset.from_generator(chunks, output_signature=signature).flat_map(steps_of)
    return steps.prefetch(_PREFETCHED_STEPS).with_options(options)


def batches(dataset: Dataset, plan: ReadPlan) -> Iterator[dict[str, Column]]:
    """Yield several steps at a time, as NumPy arrays: what :func:`load_dataset` gives to TensorFlow.

    Per feature, and as ``LABEL`` and ``WEIGHT``, an array ``[steps, batch_size_per_worker, ...]``; of a sparse feature
    a list of compressed sparse rows, one for each step.

    Raises:
        DatasetError: The split is not there or has no rows (with ``drop``: no whole batch).
        DamagedRecordError, DamagedBlockError: A shard is damaged.
    """
    columns = _Columns.of(dataset.features)
    for chunk in _chunks(dataset, plan):
        yield {
            **{name: chunk.floats[:, place] for place, name in enumerate(columns.floats)},
            **{name: chunk.int64s[:, place] for place, name in enumerate(columns.int64s)},
            **dict(zip(columns.ids, chunk.ids, strict=True)),
            **dict(zip(columns.classes, chunk.classes, strict=True)),
            **{name: _sparse_rows(rows) for name, rows in zip(columns.sparse, chunk.sparse, strict=True)},
        }


def _sparse_rows(rows: SparseSteps) -> list[SparseRows]:
    coordinates, values, starts = rows.coordinates()
    return [
        SparseRows(coordinates[start:stop, 1], values[start:stop], lengths)
        for start, stop, lengths in zip(starts, starts[1:], rows.lengths, strict=False)
    ]


@dataclass(frozen=True)
class _Columns:
    """What a batch holds, in the order in which chunks hold it, and where blocks have it from.

    Attributes:
        layout: The stored columns. Its lists stand in the order of ``ids``, ``classes``, ``sparse``.
        floats: Names of the float32 columns; those behind the layout's are ``constants``.
        constants: What rows have where nothing is stored: weight 1 without a weight, label 0 where it is a feature.
        int64s: Names of the int64 columns.
        ids: Name and length of the columns of padded ids.
        classes: Name (the label's) and number of classes of the columns of zeros and ones.
        sparse: Name and size of the sparse columns.
    """

    layout: BlockLayout
    floats: tuple[str, ...]
    constants: tuple[float, ...]
    int64s: tuple[str, ...]
    ids: Mapping[str, int]
    classes: Mapping[str, int]
    sparse: Mapping[str, int]

    @classmethod
    def of(cls, fitted: FittedFeatures) -> "_Columns":
        spec = fitted.spec
        floats = {feature.name: feature.name for feature in spec if feature.form == "value"}
        int64s = {feature.name: feature.name for feature in spec if feature.form == "id"}
        ids = [feature for feature in spec if isinstance(feature, ListFeature)]
        sparse = [feature for feature in spec if isinstance(feature, Sparse)]
        lists = [_list_column(feature) for feature in ids]
        classes = {}
        constants = {}
        label = LABEL_PREFIX + spec.label.name
        if spec.label.kind == "binary":
            floats[LABEL] = label
        elif spec.label.kind == "multi_class":
            int64s[LABEL] = label
        elif spec.label.kind == "multi_label":
            classes[LABEL] = fitted.classes
            lists.append(ListColumn(label + ROW_LENGTHS_SUFFIX, label))
        else:
            constants[LABEL] = 0.0
        if spec.weight is None:
            constants[WEIGHT] = 1.0
        else:
            floats[WEIGHT] = WEIGHT_PREFIX + spec.weight
        return cls(
            layout=BlockLayout(
                tuple(floats.values()), tuple(int64s.values()), (*lists, *(_list_column(feature) for feature in sparse))
            ),
            floats=(*floats, *constants),
            constants=tuple(constants.values()),
            int64s=tuple(int64s),
            ids={feature.name: feature.max_length for feature in ids},
            classes=classes,
            sparse={feature.name: feature.size for feature in sparse},
        )


def _list_column(feature: Feature) -> ListColumn:
    names = [feature.name + suffix for suffix in STORED_SUFFIXES[feature.form]]
    *values, lengths = names
    return ListColumn(lengths, *values)


@dataclass(frozen=True)
class _Chunk:
    """Several steps of one worker.

    Attributes:
        floats: float32 ``[steps, columns, batch]``.
        int64s: int64 ``[steps, columns, batch]``.
        ids: Per column int64 ``[steps, batch, max_length]``.
        classes: Per column float32 ``[steps, batch, classes]``.
        sparse: Per column the rows of the steps.
    """

    floats: npt.NDArray[np.float32]
    int64s: npt.NDArray[np.int64]
    ids: list[npt.NDArray[np.int64]]
    classes: list[npt.NDArray[np.float32]]
    sparse: list[SparseSteps]

    @classmethod
    def empty(cls, columns: _Columns, steps: int, batch: int, *, padded: bool) -> "_Chunk":
        """Return a chunk to fill; ``padded`` when not every row will be, and the others have to be zeros."""
        make = np.zeros if padded else np.empty
        return cls(
            floats=make((steps, len(columns.floats), batch), np.float32),
            int64s=make((steps, len(columns.int64s), batch), np.int64),
            ids=[make((steps, batch, length), np.int64) for length in columns.ids.values()],
            classes=[np.zeros((steps, batch, classes), np.float32) for classes in columns.classes.values()],
            sparse=[SparseSteps(steps, batch) for _ in columns.sparse],
        )


def _chunks(dataset: Dataset, plan: ReadPlan) -> Iterator[_Chunk]:
    stored = _StoredBlocks(dataset, plan.split)
    columns = _Columns.of(dataset.features)
    if not dataset.steps(plan.split, plan.global_batch_size, plan.remainder):
        rows = stored.rows.sum()
        raise DatasetError(
            f"split '{plan.split}' of {dataset.path} has no rows"
            if not rows
            else f"split '{plan.split}' of {dataset.path} has {rows} rows, fewer than one batch of "
            f"{plan.global_batch_size}; use a smaller batch, or remainder='pad'"
        )
    reader: _EpochReader | None = None
    epoch, step = plan.epoch, plan.step
    while plan.epochs is None or epoch < plan.epoch + plan.epochs:
        order = EpochOrder(stored.rows, plan.global_batch_size, plan.seed, epoch)
        reader = _EpochReader(stored, columns, order, plan, reader.slots if reader else None)
        steps = order.full_steps if plan.remainder == "drop" else order.steps
        steps_per_chunk = max(1, CHUNK_ROWS // plan.batch_size_per_worker)
        while step < steps:
            last = min(step + steps_per_chunk, steps)
            yield reader.read(step, last)
            step = last
        epoch, step = epoch + 1, 0


class _EpochReader:
    """Assembles one worker's part of the batches of one epoch."""

    def __init__(
        self, stored: "_StoredBlocks", columns: _Columns, order: EpochOrder, plan: ReadPlan, slots: BlockSlots | None
    ) -> None:
        self._stored = stored
        self._columns = columns
        self._order = order
        self._batch = plan.batch_size_per_worker
        self._first_row = plan.rank * self._batch
        self._first_lane = self._first_row // order.rows_per_lane_and_step
        self._last_lane = -(-(self._first_row + self._batch) // order.rows_per_lane_and_step)
        lanes = self._last_lane - self._first_lane
        self.slots = slots or BlockSlots(columns.layout, lanes, int(stored.rows.max()), columns.constants)
        # A lane goes on in the block where its last chunk ended, so each keeps that one block.
        self._open = np.full(lanes, -1, np.int64)

    def read(self, first_step: int, last_step: int) -> _Chunk:
        chunk = _Chunk.empty(
            self._columns, last_step - first_step, self._batch, padded=last_step > self._order.full_steps
        )
        ranges = self._order.ranges(self._first_lane, self._last_lane, first_step, last_step)
        while len(ranges):
            # The first range of each lane; what lanes read of further blocks has to wait for the lane's slot.
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

    def _cut(self, ranges: npt.NDArray[np.int64], chunk: _Chunk) -> None:
        stretches = stretches_of(
            ranges,
            first_lane=self._first_lane,
            width=self._order.rows_per_lane_and_step,
            first_row=self._first_row,
            batch=self._batch,
        )
        self.slots.cut(stretches, chunk.floats, chunk.int64s)
        column = 0
        for ids in chunk.ids:
            self.slots.cut_ids(stretches, column, ids)
            column += 1
        for classes in chunk.classes:
            self.slots.cut_classes(stretches, column, classes)
            column += 1
        for rows in chunk.sparse:
            self.slots.cut_sparse(stretches, column, rows)
            column += 1


class _StoredBlocks:
    """Where the blocks of a split lie; shards are mapped into memory, not read ahead.

    Attributes:
        rows: int64 ``[blocks]``.
    """

    def __init__(self, dataset: Dataset, split: str) -> None:
        if split not in dataset.manifest.splits:
            raise DatasetError(f"{dataset.path} has no split '{split}'; it has {sorted(dataset.manifest.splits)}")
        shards = [shard for shard in dataset.manifest.splits[split] if shard.rows]  # an empty file cannot be mapped
        self._paths = [dataset.path / shard.path for shard in shards]
        self.rows = np.array([rows for shard in shards for rows in shard.block_rows], np.int64)
        self._places = [(number, offset) for number, shard in enumerate(shards) for offset in shard.block_offsets]
        self._contents: dict[int, npt.NDArray[np.uint8]] = {}

    def place(self, block: int) -> tuple[npt.NDArray[np.uint8], int, str]:
        """Return the bytes of the block's file, the offset of its record in them, and the file's name."""
        shard, offset = self._places[block]
        if shard not in self._contents:
            with self._paths[shard].open("rb") as file:
                # The map closes when the last array that looks into it is gone.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._contents[shard] = np.frombuffer(content, np.uint8)
        return self._contents[shard], offset, str(self._paths[shard])
