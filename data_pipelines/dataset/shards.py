"""Encoding of staged rows as shards: TFRecord files of blocks, with counts for the manifest."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.dataset.block_format import encode_blocks
from mirrorspark.data_pipelines.dataset.manifest import TRAIN_SPLIT, DatasetError, Shard
from mirrorspark.data_pipelines.dataset.staging import StagedFile
from mirrorspark.data_pipelines.features import (
    Encoded,
    Encoder,
    FeatureSpec,
    FittedFeatures,
    HeldOutMeans,
    RaggedIds,
    SparseRows,
    TargetSums,
    TrainingEncoder,
    kinds,
    labels,
    measured_values,
    non_finite,
    raw_columns,
)
from mirrorspark.data_pipelines.spark import numbers_of
from mirrorspark.data_pipelines.tfrecord import BinaryWriter, RecordWriter
from mirrorspark.storage import StoragePath
from mirrorspark.storage.publish import WriteJob, WrittenFile

# Encoding 16 blocks at once takes a third of the time of single blocks, and some megabytes.
_BLOCKS_AT_ONCE = 16


@dataclass(frozen=True)
class ShardResult:
    """A task's report to the driver on one shard that it wrote.

    Attributes:
        split: The split of its rows.
        attempt: Name of the attempt's folder.
        shard: Its entry in the manifest.
        counts: The number of rows or tokens, per ``COLUMN/WHAT``.
    """

    split: str
    partition: int
    attempt: str
    shard: Shard
    counts: Mapping[str, int]

    def written_file(self) -> WrittenFile:
        """Return the file in the form for publishing."""
        return WrittenFile(self.attempt, self.shard.path, self.shard.rows, len(self.shard.block_rows), self.shard.bytes)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "ShardResult":
        """Restore a result from its ``dataclasses.asdict`` form after JSON."""
        return cls(**{**document, "shard": Shard.from_dict(document["shard"])})


@dataclass(frozen=True)
class EncodeTask:
    """The body of one Spark task that makes shards of staged files, given by number.

    Attributes:
        job: The write that the shards belong to.
        features: URI of the fitted features.
        staged: All staged files.
        rows_per_block: Examples in one record.
        held_out_means: URI of the means of the label for training rows; empty where no feature is such a mean.
    """

    job: WriteJob
    features: str
    staged: Sequence[StagedFile]
    rows_per_block: int
    held_out_means: str = ""

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one JSON result per shard, or one with the reason for a refusal."""
        fitted = FittedFeatures.load(StoragePath.of(self.features))
        # Read once, and only where there are training rows: most tasks have one file of one split.
        means = functools.cache(
            lambda: HeldOutMeans.from_bytes(StoragePath.of(self.held_out_means).read_bytes(), fitted)
        )
        for number in numbers_of(batches):
            try:
                outcome = asdict(self._write(self.staged[number], fitted, means))
            except (raw_columns.ColumnError, DatasetError, labels.LabelError) as error:
                # Reported, not raised: Spark would try the same rows again, and hide the message under stack traces.
                outcome = {"refused": str(error)}
            yield pa.RecordBatch.from_pydict({"outcome": [json.dumps(outcome)]})

    def _write(self, staged: StagedFile, fitted: FittedFeatures, means: Callable[[], HeldOutMeans]) -> ShardResult:
        attempt = uuid4().hex
        path = f"{staged.split}/part-{staged.partition:05d}.tfrecord"
        encoder = Encoder(fitted)
        if self.held_out_means and staged.split == TRAIN_SPLIT:
            encoder = TrainingEncoder(fitted, means(), first=staged.partition)
        with self.job.attempt_file(attempt, path).open_write() as file:
            writer = _ShardWriter(staged.split, file, encoder, self.rows_per_block)
            for batch in staged.batches():
                writer.add(pa.Table.from_batches([batch]))
            shard = writer.finish(path)
        self.job.attempt_file(attempt, path).flush_to_disk()
        return ShardResult(staged.split, staged.partition, attempt, shard, dict(writer.counts))


@dataclass(frozen=True)
class TargetSumsTask:
    """The body of one Spark task that sums the label over the training rows of staged files, given by number.

    Attributes:
        features: URI of the fitted features, without means of the label.
        staged: The staged files of the training rows.
        folder: The folder for the sums, which a task that outlives the conversion does not create again.
    """

    features: str
    staged: Sequence[StagedFile]
    folder: StoragePath

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the URI of each file's sums, or the reason for a refusal."""
        fitted = FittedFeatures.load(StoragePath.of(self.features))
        for number in numbers_of(batches):
            try:
                outcome = {"sums": str(self._write(self.staged[number], fitted))}
            except (raw_columns.ColumnError, labels.LabelError) as error:
                outcome = {"refused": str(error)}
            yield pa.RecordBatch.from_pydict({"outcome": [json.dumps(outcome)]})

    def _write(self, staged: StagedFile, fitted: FittedFeatures) -> StoragePath:
        sums, place = TargetSums(fitted), staged.partition
        for batch in staged.batches():
            sums.add(batch, place)
            place += batch.num_rows
        path = self.folder / f"sums-{staged.partition:05d}-{uuid4().hex}.arrow"
        path.write_bytes(sums.to_bytes())
        return path


@dataclass
class _ShardWriter:
    """Writer that collects rows into blocks, and counts for the manifest."""

    split: str
    file: BinaryWriter
    encoder: Encoder
    rows_per_block: int
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._records = RecordWriter(self.file)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._offsets: list[int] = []
        self._rows: list[int] = []
        self._last_key: pa.Table | None = None

    @property
    def _spec(self) -> FeatureSpec:
        return self.encoder.fitted.spec

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= _BLOCKS_AT_ONCE * self.rows_per_block:
            self._write(self._waiting_rows // self.rows_per_block * self.rows_per_block)

    def finish(self, path: str) -> Shard:
        if self._waiting_rows:
            self._write(self._waiting_rows)
        return Shard(
            path=path,
            rows=sum(self._rows),
            bytes=self._records.bytes_written,
            crc32c=self._records.file_crc32c,
            block_offsets=tuple(self._offsets),
            block_rows=tuple(self._rows),
        )

    def _write(self, rows: int) -> None:
        waiting = pa.concat_tables(self._waiting)
        table, rest = waiting.slice(0, rows).combine_chunks(), waiting.slice(rows)
        records, encoded = encode_blocks(table, self.encoder, self._spec, self.rows_per_block)
        if self.split != TRAIN_SPLIT:
            self._check_keys(table.select(self._spec.keys))
        for number, record in enumerate(records):
            self._offsets.append(self._records.write(record))
            self._rows.append(min(self.rows_per_block, rows - number * self.rows_per_block))
        self._count(table, encoded)
        self._waiting, self._waiting_rows = [rest], rest.num_rows

    def _check_keys(self, keys: pa.Table) -> None:
        """Refuse repeated keys: equal keys share a partition, which is sorted, so they are neighbours."""
        # The previous key may have been written with the previous rows.
        keys = pa.concat_tables([*([self._last_key] if self._last_key else []), keys]).combine_chunks()
        is_repeated = np.ones(keys.num_rows - 1, bool)
        for column in keys.columns:
            is_repeated &= pc.equal(column[1:], column[:-1]).to_numpy()
        if is_repeated.any():
            repeated = keys.slice(int(np.flatnonzero(is_repeated)[0]), 1).to_pylist()[0]
            key = ", ".join(f"{name} = {value!r}" for name, value in repeated.items())
            raise DatasetError(
                f"the key {key} occurs in more than one row of split '{self.split}'; a key identifies one row: filter "
                f"repeated rows out of the table, or add a column to keys"
            )
        self._last_key = keys.slice(keys.num_rows - 1)

    def _count(self, table: pa.Table, encoded: Mapping[str, Encoded]) -> None:
        for feature in self._spec:
            for what, count in _counts(feature, table, encoded[feature.name]).items():
                self.counts[f"{feature.name}/{what}"] += count
        label = self._spec.label
        if label.kind == "binary":
            self.counts["label/positive"] += int(labels.binary_label(table, label.name, label.positive).sum())


def _counts(feature: kinds.Feature, table: pa.Table, column: Encoded) -> dict[str, int]:
    """Return the counts of rows without a value, tokens, unknown tokens and infinite numbers, as they apply."""
    if isinstance(column, SparseRows):
        return {"missing": int((column.row_lengths == 0).sum()), "infinite": non_finite(column)}
    if isinstance(feature, kinds.TargetEncoding):  # A missing token is a group, too.
        return {"infinite": non_finite(column)}
    if feature.form == "value":
        missing = int(np.isnan(measured_values(feature, raw_columns.raw_column(table, feature))).sum())
        return {"missing": missing, "infinite": non_finite(column)}
    if feature.form == "vector":
        lengths = raw_columns.list_lengths(raw_columns.raw_column(table, feature))
        return {"missing": int((lengths == 0).sum()), "infinite": non_finite(column)}
    if isinstance(column, RaggedIds):
        ids, missing = column.values, int((column.row_lengths == 0).sum())
    else:
        ids, missing = column, int((column == kinds.MISSING_ID).sum())
    tokens = int((ids != kinds.MISSING_ID).sum())
    return {"missing": missing, "tokens": tokens, "out_of_vocabulary": int((ids == kinds.OUT_OF_VOCABULARY_ID).sum())}
