"""Reads a dataset directory: batches for training as ``tf.data``, or plain rows block by block.

Memory of one reader: one decoded block per lane that the worker touches (at most ``MAX_LANES``), and one chunk of
about a thousand rows per lane; both are bounded by the batch size, never by the size of the dataset.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.blocks import ROWS_PER_BLOCK, Block, decode_block
from data_pipelines.features import FeatureSpec, MultiValued, Numeric
from data_pipelines.fitted import FeatureMismatchError, FittedFeatures
from data_pipelines.manifest import FEATURES_FOLDER, DatasetError, Manifest, check_directory
from data_pipelines.order import EpochOrder, RowRange
from data_pipelines.records import read_record_at

if TYPE_CHECKING:  # the driver reads datasets without loading TensorFlow
    import tensorflow as tf

_LABEL = "\0label"
_WEIGHT = "\0weight"


@dataclass(frozen=True)
class Dataset:
    """A whole dataset directory.

    Attributes:
        path: The directory.
        manifest: What it holds.
        features: The fitted features its rows were encoded with.
    """

    path: Path
    manifest: Manifest
    features: FittedFeatures

    @classmethod
    def open(cls, path: Path, *, checksums: bool = False) -> "Dataset":
        """Open ``path`` after checking that it is whole.

        Raises:
            DatasetError: It has no manifest, or a shard is missing or damaged.
            FeatureMismatchError: Its features are damaged, or not those its rows were encoded with.
        """
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
        return cls(path, manifest, features)

    @property
    def spec(self) -> FeatureSpec:
        """The feature spec."""
        return self.features.spec

    def steps(self, split: str, global_batch_size: int) -> int:
        """Return the number of batches in one epoch of ``split``, the padded last one included."""
        return -(-self.manifest.rows(split) // global_batch_size)

    def blocks(self, split: str, *, keys: bool = False) -> Iterator[Block]:
        """Yield the rows of ``split`` as they are stored, block by block."""
        with _Blocks(self, split, keys=keys) as blocks:
            for block in range(len(blocks.rows)):
                yield blocks.read(block)


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
    """

    split: str
    global_batch_size: int
    rank: int = 0
    workers: int = 1
    seed: int | None = None
    epoch: int = 0
    step: int = 0
    epochs: int | None = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.workers:
            raise ValueError(f"rank {self.rank} is not one of {self.workers} workers")
        if self.global_batch_size % self.workers:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} does not divide among {self.workers} workers; "
                f"use a multiple of {self.workers}"
            )

    @property
    def batch_size_per_worker(self) -> int:
        """Rows of one batch on this worker."""
        return self.global_batch_size // self.workers


def load_dataset(dataset: Dataset, plan: ReadPlan) -> "tf.data.Dataset":
    """Return batches ``(features, label, weight)`` for one worker.

    Features are a dict of float32 ``[batch]``, int64 ``[batch]`` or int64 ``[batch, max_length]`` tensors; label and
    weight are float32 ``[batch]``. Padding rows have weight 0. Where the label is itself a feature (a candidate to
    retrieve), the label tensor is all zeros and only the features count.
    """
    import tensorflow as tf  # deferred: see above

    batch = plan.batch_size_per_worker
    signature = {
        feature.name: tf.TensorSpec(
            (None, batch, feature.max_length) if isinstance(feature, MultiValued) else (None, batch),
            tf.float32 if isinstance(feature, Numeric) else tf.int64,
        )
        for feature in dataset.spec
    }
    row = tf.TensorSpec((None, batch), tf.float32)

    def chunks() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]]:
        for chunk in batches(dataset, plan):
            label, weight = chunk.pop(_LABEL), chunk.pop(_WEIGHT)
            yield chunk, label, weight

    stacked = tf.data.Dataset.from_generator(chunks, output_signature=(signature, row, row))
    options = tf.data.Options()
    # There is nothing to tune here, and the tuner's thread sleeps up to a minute before it lets an iterator go.
    options.autotune.enabled = False
    return stacked.unbatch().prefetch(4).with_options(options)


def batches(dataset: Dataset, plan: ReadPlan) -> Iterator[dict[str, np.ndarray]]:
    """Yield several steps at a time: per column an array ``[steps, batch_size_per_worker, ...]``."""
    with _Blocks(dataset, plan.split) as blocks:
        epoch, step = plan.epoch, plan.step
        while plan.epochs is None or epoch < plan.epoch + plan.epochs:
            order = EpochOrder(blocks.rows, plan.global_batch_size, plan.seed, epoch)
            if not order.rows:
                raise DatasetError(f"split '{plan.split}' of {dataset.path} has no rows")
            reader = _EpochReader(blocks, order, plan)
            steps_per_chunk = max(1, ROWS_PER_BLOCK // order.rows_per_lane_and_step)
            while step < order.steps:
                last = min(step + steps_per_chunk, order.steps)
                yield reader.read(step, last)
                step = last
            epoch, step = epoch + 1, 0


class _EpochReader:
    """Assembles one worker's slice of the batches of one epoch."""

    def __init__(self, blocks: "_Blocks", order: EpochOrder, plan: ReadPlan) -> None:
        self._blocks = blocks
        self._order = order
        self._batch = plan.batch_size_per_worker
        self._first_row = plan.rank * self._batch
        # A lane goes on in the block where its last chunk ended, so each keeps that one block.
        self._open: dict[int, tuple[int, dict[str, np.ndarray]]] = {}

    def read(self, first_step: int, last_step: int) -> dict[str, np.ndarray]:
        steps, width = last_step - first_step, self._order.rows_per_lane_and_step
        chunk = self._blocks.padding((steps, self._batch))
        first_lane = self._first_row // width
        last_lane = -(-(self._first_row + self._batch) // width)
        for lane in range(first_lane, last_lane):
            columns = self._lane(lane, self._order.lane_rows(lane, first_step, last_step))
            # The lane's rows stand at [lane_start, lane_start + width) of the global batch; keep what is ours of them.
            lane_start = lane * width
            begin = max(lane_start, self._first_row)
            end = min(lane_start + width, self._first_row + self._batch)
            here = slice(begin - self._first_row, end - self._first_row)
            there = slice(begin - lane_start, end - lane_start)
            for name, values in columns.items():
                full = len(values) // width
                chunk[name][:full, here] = values[: full * width].reshape(full, width, *values.shape[1:])[:, there]
                rest = values[full * width :][there]
                if len(rest):
                    chunk[name][full, here.start : here.start + len(rest)] = rest
        return chunk

    def _lane(self, lane: int, ranges: list[RowRange]) -> dict[str, np.ndarray]:
        parts = [
            {name: values[rows.start : rows.stop] for name, values in self._block(lane, rows.block).items()}
            for rows in ranges
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}

    def _block(self, lane: int, block: int) -> dict[str, np.ndarray]:
        if self._open.get(lane, (None,))[0] != block:
            columns = _as_columns(self._blocks.read(block))
            permutation = self._order.row_permutation(block)
            if permutation is not None:
                columns = {name: values[permutation] for name, values in columns.items()}
            self._open[lane] = (block, columns)
        return self._open[lane][1]


class _Blocks:
    """Random access to the blocks of a split; shards are mapped into memory, not read ahead."""

    def __init__(self, dataset: Dataset, split: str, *, keys: bool = False) -> None:
        if split not in dataset.manifest.splits:
            raise DatasetError(f"{dataset.path} has no split '{split}'; it has {sorted(dataset.manifest.splits)}")
        self._spec = dataset.spec
        self._keys = keys
        shards = [shard for shard in dataset.manifest.splits[split] if shard.rows]  # an empty file cannot be mapped
        self._paths = [dataset.path / shard.path for shard in shards]
        self.rows = np.array([rows for shard in shards for rows in shard.block_rows], np.int64)
        self._places = [(number, offset) for number, shard in enumerate(shards) for offset in shard.block_offsets]
        self._maps: dict[int, mmap.mmap] = {}

    def __enter__(self) -> "_Blocks":
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.clear()  # the maps close when the last array that looks into them is gone

    def read(self, block: int) -> Block:
        shard, offset = self._places[block]
        if shard not in self._maps:
            with self._paths[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        payload = read_record_at(memoryview(self._maps[shard]), offset, name=str(self._paths[shard]))
        decoded = decode_block(payload, self._spec, keys=self._keys)
        if decoded.rows != self.rows[block]:
            raise DatasetError(
                f"{self._paths[shard]}: the block at byte {offset} has {decoded.rows} rows, "
                f"its manifest says {self.rows[block]}; delete the dataset and convert again"
            )
        return decoded

    def padding(self, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return zeros for every column: what padding rows hold."""
        columns = {
            feature.name: np.zeros((*shape, feature.max_length), np.int64)
            if isinstance(feature, MultiValued)
            else np.zeros(shape, np.float32 if isinstance(feature, Numeric) else np.int64)
            for feature in self._spec
        }
        return columns | {_LABEL: np.zeros(shape, np.float32), _WEIGHT: np.zeros(shape, np.float32)}


def _as_columns(block: Block) -> dict[str, np.ndarray]:
    label = np.zeros(block.rows, np.float32) if block.label is None else block.label
    return {**block.features, _LABEL: label, _WEIGHT: block.weight}
