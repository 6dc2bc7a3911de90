"""Reading of a dataset directory: batches for training as ``tf.data``, or plain rows block by block.

Memory of one reader, whatever the size of the dataset: one decoded block for each lane that the worker touches (at
most ``MAX_LANES``, each with the room of the fullest block; :class:`data_pipelines.reading.decode_blocks.BlockSlots`
gives the bytes), and at most eight chunks of ``CHUNK_ROWS`` rows or ``CHUNK_BYTES`` bytes, whichever is less, or of one
step if that is more: for four prefetched steps, two in use, one that is being assembled, and its copy. Shards are
mapped into memory; the operating system decides how much of them stays there.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.dataset import (
    FEATURES_FOLDER,
    TEST_ROWS_FILE,
    DatasetCache,
    DatasetError,
    Manifest,
    Shard,
    block_format,
    check_directory,
)
from mirrorspark.data_pipelines.features import FeatureMismatchError, FeatureSpec, FittedFeatures, SparseRows
from mirrorspark.data_pipelines.reading.batching import (
    LABEL,
    WEIGHT,
    BatchColumns,
    Chunk,
    EpochReader,
    StoredBlocks,
    steps_per_chunk,
)
from mirrorspark.data_pipelines.reading.decode_blocks import SparseSteps
from mirrorspark.data_pipelines.reading.order import RANGE_BLOCK, EpochOrder
from mirrorspark.data_pipelines.reading.step_tensors import StepTensors
from mirrorspark.data_pipelines.tfrecord import read_record_at
from mirrorspark.lazy import quiet_tensorflow
from mirrorspark.pages import (
    details_html,
    findings_html,
    heading_html,
    panel_html,
    paragraph_html,
    remark_html,
    rows_html,
)
from mirrorspark.storage import StoragePath, host_cache, without_credentials

if TYPE_CHECKING:  # the driver reads datasets without loading TensorFlow
    import pyarrow as pa
    import tensorflow as tf

_PREFETCHED_STEPS = 4

Remainder = Literal["pad", "drop"]
Column = npt.NDArray[Any] | list[SparseRows]


@dataclass(frozen=True)
class Dataset:
    """A whole dataset directory.

    Attributes:
        path: The directory, or a remote dataset's copy on this machine.
        features: The fitted features its rows were encoded with.
        lease: Keeps the copy of a remote dataset from being evicted while this object lives.
    """

    path: Path
    manifest: Manifest
    features: FittedFeatures
    lease: host_cache.Lease | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, location: str | Path | StoragePath, *, checksums: bool = False, cache: DatasetCache | None = None
    ) -> "Dataset":
        """Open the dataset at ``location`` after checking that it is whole.

        Args:
            location: A directory, or the URI of one on another store (``s3://bucket/flights``). The latter is copied to
                this machine first, once for all processes, and its checksums compared.
            checksums: Compare the checksums of a local directory's shards too, not only their sizes.
            cache: The cache for copies of remote datasets; by default in the user's cache folder.

        Raises:
            DatasetError: It has no manifest, or a shard is missing or damaged.
            FeatureMismatchError: Its features are damaged, or differ from those its rows were encoded with.
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

    def __repr__(self) -> str:
        """Return the path and the content in one line."""
        rows = ", ".join(f"{split} {self.manifest.rows(split):,}" for split in self.manifest.splits)
        return f"Dataset({str(self.path)!r}, rows: {rows}, features: {len(self.spec.features)})"

    def _repr_html_(self) -> str:
        from mirrorspark.data_pipelines.quality import PAGE_FILE  # workers need no templates

        manifest, label = self.manifest, self.spec.label
        splits = [
            (
                split,
                f"{manifest.rows(split):,}",
                f"{len(shards):,}",
                _megabytes(shards),
            )
            for split, shards in manifest.splits.items()
        ]
        about = f"label {label.name} ({label.kind}), keys {', '.join(self.spec.keys)}"
        page = self.path / PAGE_FILE
        found = [{name: without_credentials(text) for name, text in each.items()} for each in manifest.findings]
        return panel_html(
            heading_html(f"Dataset {self.path.name}"),
            remark_html(without_credentials(str(self.path))),
            rows_html(("split", "rows", "shards", "MB"), splits, numbers=(1, 2, 3)),
            details_html(f"{len(self.spec.features)} features; {about}", self.spec.features_html()),
            heading_html("Findings in the data"),
            findings_html(found) if found else paragraph_html("nothing found"),
            remark_html(without_credentials(f"All columns: {page}")) if page.is_file() else "",
        )

    @property
    def spec(self) -> FeatureSpec:
        """The feature spec."""
        return self.features.spec

    def kept_test_rows(self) -> "pa.Table | None":
        """Return the raw test rows that conversion kept, some thousands; None for a dataset of an earlier version."""
        import pyarrow.parquet as pq  # workers read no Parquet

        file = self.path / TEST_ROWS_FILE
        return pq.read_table(file) if file.is_file() else None

    def steps(self, split: str, global_batch_size: int, remainder: Remainder = "pad") -> int:
        """Return the number of batches in one epoch of ``split``, including a padded last one unless it is dropped.

        Raises:
            DatasetError: There is no such split, or it has no rows (with ``drop``: no whole batch).
        """
        rows = sum(shard.rows for shard in self._shards(split))
        steps = rows // global_batch_size if remainder == "drop" else -(-rows // global_batch_size)
        if not rows:
            raise DatasetError(f"split '{split}' of {self.path} has no rows; fix the split column, and convert again")
        if not steps:
            raise DatasetError(
                f"split '{split}' of {self.path} has {rows} rows, fewer than one batch of {global_batch_size}; use a "
                f"smaller batch, or remainder='pad'"
            )
        return steps

    def blocks(self, split: str, *, keys: bool = False) -> Iterator[block_format.Block]:
        """Yield the rows of ``split`` as they are stored, block by block.

        Raises:
            DatasetError: There is no such split, or a block's number of rows differs from the manifest.
            DamagedRecordError: A shard is damaged.
        """
        stored = StoredBlocks(self.path, self._shards(split))
        for number in range(len(stored.rows)):
            content, offset, name = stored.place(number)
            block = block_format.decode_block(read_record_at(content.data, offset, name=name), self.spec, keys=keys)
            if block.rows != stored.rows[number]:
                raise DatasetError(
                    f"{name}: the block at byte {offset} has {block.rows} rows, its manifest says "
                    f"{stored.rows[number]}; delete the dataset and convert again"
                )
            yield block

    def class_counts(self, split: str) -> npt.NDArray[np.float64]:
        """Return the sum of the weights of the rows of each class: ``[classes]``, of a binary label ``[2]``.

        Reads the rows only if they have weights, or conversion has not counted the classes.

        Raises:
            DatasetError: There is no such split, or the label has no classes of which a row has one.
            DamagedRecordError: A shard is damaged.
        """
        label = self.spec.label
        if label.form not in ("binary", "multi_class"):
            raise DatasetError(f"label '{label.name}' of kind {label.kind} has no classes of which a row has one")
        known = self._known_counts(split)
        if known is not None:
            return known
        counts = np.zeros(2 if label.form == "binary" else self.features.classes)
        stored = StoredBlocks(self.path, self._shards(split))
        for number in range(len(stored.rows)):
            content, offset, name = stored.place(number)
            classes, weight = block_format.decode_classes(read_record_at(content.data, offset, name=name), self.spec)
            counts += np.bincount(classes, weight, len(counts))
        return counts

    def _known_counts(self, split: str) -> npt.NDArray[np.float64] | None:
        """Return the rows of each class of a label with classes as conversion counted them; None if it did not."""
        label, rows = self.spec.label, sum(shard.rows for shard in self._shards(split))
        if self.spec.weight is not None:
            return None
        if label.form == "binary":
            positive = self.manifest.statistics.get("label", {}).get(f"{split}_positive")
            return None if positive is None else np.array([rows - positive, positive], np.float64)
        if split != "train" or label.name not in self.features.vocabularies:
            return None
        counts = self.features.vocabularies[label.name].counts.to_numpy().astype(np.float64)
        return counts if len(counts) == self.features.classes and counts.sum() == rows else None

    def records_of(self, plan: "ReadPlan", epoch: int, step: int) -> dict[str, tuple[int, ...]]:
        """Return, by file, the records from which the worker of ``plan`` takes its part of a step, counted from 0."""
        shards = [shard for shard in self._shards(plan.split) if shard.rows]
        places = [(shard.path, number) for shard in shards for number in range(len(shard.block_rows))]
        block_rows = np.array([rows for shard in shards for rows in shard.block_rows], np.int64)
        order = EpochOrder(block_rows, plan.global_batch_size, plan.seed, epoch)
        lanes = order.lanes_of(plan.share.start, plan.share.stop)
        found: dict[str, set[int]] = {}
        for block in order.ranges(*lanes, step, step + 1)[:, RANGE_BLOCK].tolist():
            path, number = places[block]
            found.setdefault(path, set()).add(number)
        return {path: tuple(sorted(found[path])) for path in sorted(found)}

    def _shards(self, split: str) -> tuple[Shard, ...]:
        if split not in self.manifest.splits:
            raise DatasetError(f"{self.path} has no split '{split}'; it has {sorted(self.manifest.splits)}")
        return self.manifest.splits[split]


@dataclass(frozen=True)
class ReadPlan:
    """The part of a dataset that one worker reads.

    Attributes:
        global_batch_size: Rows of one batch over all workers.
        rank: This worker, from 0.
        seed: Fixes the order of every epoch; None reads in stored order.
        epoch: The first epoch.
        step: The first step of that epoch.
        epochs: The number of epochs; None never ends.
        remainder: The treatment of rows that do not fill the last batch: ``pad`` fills it up with rows of zeros that
            have weight 0, ``drop`` leaves them out (with a seed, different ones in every epoch).
        class_weights: Factor of a row's weight by the number of its class, of a binary, multi-class or ordinal label;
            empty leaves the weights as they are.
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
    class_weights: tuple[float, ...] = ()

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

    @property
    def share(self) -> range:
        """The rows of every global batch that are this worker's."""
        return range(self.rank * self.batch_size_per_worker, (self.rank + 1) * self.batch_size_per_worker)


def load_dataset(
    location: str | Path | StoragePath, *, checksums: bool = False, cache: DatasetCache | None = None
) -> Dataset:
    """Open a dataset directory written by :func:`data_pipelines.convert`, after checking that it is whole.

    The arguments and errors are those of :meth:`Dataset.open`.
    """
    return Dataset.open(location, checksums=checksums, cache=cache)


def load_batches(
    dataset: Dataset | str | Path | StoragePath,
    plan: ReadPlan,
    *,
    values_as: str | None = None,
    scaled_to: Literal["batch", "share"] | None = None,
    busy: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> "tf.data.Dataset":
    """Return batches ``(features, label, weight)`` for one worker.

        load_batches("s3://bucket/flights", ReadPlan("train", global_batch_size=4096, seed=1))

    Features are a dict of tensors. Depending on the form of the feature these are float32 ``[batch]``, int64
    ``[batch]``, int64 ``[batch, max_length]``, float32 ``[batch, size]`` or a float32 ``tf.SparseTensor`` ``[batch,
    size]``, whose rows are in order and which is never made dense. The weight is float32 ``[batch]``; padding rows have
    weight 0. A binary label is float32 ``[batch]``, a multi-class label int64 ``[batch]``, a multi-label one float32
    ``[batch, classes]`` of zeros and ones. If the label is itself a feature (a candidate to retrieve), the label tensor
    is the rating, float32 ``[batch]``, or all zeros without one.

    This module's docstring gives the bound on memory.

    Args:
        dataset: The dataset or its location.
        plan: The split, batch size, order and rank to read.
        values_as: Name of one tensor, float32 ``[batch, features]``, in which all features of the form ``value`` come
            instead of a tensor for each: a hundred of them cost a millisecond per batch, and more per iterator.
        scaled_to: Return each batch as a :class:`data_pipelines.reading.padding.PaddedBatch`: with the scale of the
            global ``batch``, which is that of all workers, or of the worker's ``share``, for updates of its own.
        busy: A context that is entered while rows are read and assembled: an input that is always busy slows the
            training.

    Raises:
        DatasetError: There is no whole dataset or no such split, or it has no rows (with ``drop``: no whole batch).
        tf.errors.InvalidArgumentError: While iterating, with the name and message of the error that :func:`batches`
            raises.
    """
    with quiet_tensorflow():
        import tensorflow as tf  # deferred: see above

    if not isinstance(dataset, Dataset):
        dataset = Dataset.open(dataset)
    # An unreadable split is refused here: within the pipeline the error would come late, and wrapped twice.
    dataset.steps(plan.split, plan.global_batch_size, plan.remainder)
    tensors = StepTensors(
        BatchColumns.of(dataset.features), plan.batch_size_per_worker, dataset.spec, values_as, scaled_to is not None
    )
    scaled_rows = plan.share if scaled_to == "share" else range(plan.global_batch_size)

    def chunks() -> Iterator[dict[str, Any]]:
        upcoming = _chunks(dataset, plan)
        while True:
            with busy():
                found = next(upcoming, None)
            if found is None:
                return
            chunk, order, first_step = found
            yield tensors.arrays(chunk, _scales(order, first_step, len(chunk.floats), scaled_rows))

    options = tf.data.Options()
    # There is nothing to tune here, and the tuner's thread sleeps up to a minute before it releases an iterator.
    options.autotune.enabled = False
    # Converting by AutoGraph would be a quarter of the time in which the input is made.
    steps = tf.autograph.experimental.do_not_convert(tensors.steps)
    loaded = tf.data.Dataset.from_generator(chunks, output_signature=tensors.signature()).flat_map(steps)
    return loaded.prefetch(_PREFETCHED_STEPS).with_options(options)


def _megabytes(shards: Iterable[Shard]) -> str:
    size = sum(shard.bytes for shard in shards) / 1e6
    return f"{size:,.1f}" if size >= 0.1 or not size else f"{size:.1g}"


def batches(dataset: Dataset, plan: ReadPlan) -> Iterator[dict[str, Column]]:
    """Yield several steps at a time as NumPy arrays, with the content of :func:`load_batches`.

    Each feature, ``LABEL`` and ``WEIGHT`` is an array ``[steps, batch_size_per_worker, ...]``; a sparse feature is a
    list of compressed sparse rows, one for each step.

    Raises:
        DatasetError: The split does not exist or has no rows (with ``drop``: no whole batch).
        DamagedRecordError, DamagedBlockError: A shard is damaged.
    """
    columns = BatchColumns.of(dataset.features)
    for chunk, _, _ in _chunks(dataset, plan):
        yield {
            **{name: chunk.floats[:, place] for place, name in enumerate(columns.floats)},
            **{name: chunk.int64s[:, place] for place, name in enumerate(columns.int64s)},
            **dict(zip(columns.ids, chunk.ids, strict=True)),
            **dict(zip(columns.classes, chunk.classes, strict=True)),
            **dict(zip(columns.vectors, chunk.vectors, strict=True)),
            **{name: _sparse_rows(rows) for name, rows in zip(columns.sparse, chunk.sparse, strict=True)},
        }


def _sparse_rows(rows: SparseSteps) -> list[SparseRows]:
    coordinates, values, starts = rows.coordinates()
    return [
        SparseRows(coordinates[start:stop, 1], values[start:stop], lengths)
        for start, stop, lengths in zip(starts, starts[1:], rows.lengths, strict=False)
    ]


def _weighed(chunk: Chunk, columns: BatchColumns, class_weights: tuple[float, ...]) -> Chunk:
    """Multiply the weights of a chunk's rows by those of their classes, and return it."""
    if class_weights:
        arrays, names = (chunk.int64s, columns.int64s) if LABEL in columns.int64s else (chunk.floats, columns.floats)
        classes = arrays[:, names.index(LABEL)].astype(np.int64)
        chunk.floats[:, columns.floats.index(WEIGHT)] *= np.array(class_weights, np.float32)[classes]
    return chunk


def _scales(order: EpochOrder, first_step: int, steps: int, part: range) -> npt.NDArray[np.float32]:
    """Return :attr:`data_pipelines.reading.padding.PaddedBatch.scale` of some steps, of a part of their rows."""
    scales = np.ones(steps, np.float32)
    last = first_step + steps - 1
    # A part that is nothing but padding has no loss to scale.
    scales[-1] = len(part) / max(order.real_rows(last, part.start, part.stop), 1)
    return scales


def _chunks(dataset: Dataset, plan: ReadPlan) -> Iterator[tuple[Chunk, EpochOrder, int]]:
    """Yield chunks, each with the order of its epoch and its first step."""
    steps = dataset.steps(plan.split, plan.global_batch_size, plan.remainder)
    shards, batch = dataset.manifest.splits[plan.split], plan.batch_size_per_worker
    stored, columns = StoredBlocks(dataset.path, shards), BatchColumns.of(dataset.features)
    at_once = steps_per_chunk(columns, shards, batch)
    reader: EpochReader | None = None
    epoch, step = plan.epoch, plan.step
    while plan.epochs is None or epoch < plan.epoch + plan.epochs:
        order = EpochOrder(stored.rows, plan.global_batch_size, plan.seed, epoch)
        reader = EpochReader(stored, columns, order, plan.share, reader.slots if reader else None)
        while step < steps:
            last = min(step + at_once, steps)
            yield _weighed(reader.read(step, last), columns, plan.class_weights), order, step
            step = last
        epoch, step = epoch + 1, 0
