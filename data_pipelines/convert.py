"""A Spark DataFrame becomes a dataset directory: fit the features, write the shards, publish the whole at once."""

import errno
import hashlib
import json
import os
import platform
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from data_pipelines.blocks import ROWS_PER_BLOCK, LabelError, binary_label, check_columns, encode_block
from data_pipelines.dataset import Dataset
from data_pipelines.features import MISSING_ID, OUT_OF_VOCABULARY_ID, FeatureSpec, Numeric
from data_pipelines.fitted import FittedFeatures
from data_pipelines.fitting import EmptySplitError, fit_features
from data_pipelines.manifest import (
    FEATURES_FOLDER,
    FORMAT_VERSION,
    MANIFEST_FILE,
    SPLITS,
    DatasetError,
    Manifest,
    Shard,
)
from data_pipelines.records import RecordWriter
from data_pipelines.spark_errors import task_message
from data_pipelines.transform import ColumnError, Encoded, Encoder, RaggedIds, numeric_values, raw_column, raw_inputs

TRAIN_SPLIT = SPLITS[0]
EXAMPLE_FILE = "example.parquet"
EXAMPLE_ROWS = 5
_ATTEMPTS_FOLDER = ".attempts"
# The clock may have been set meanwhile, which moves the time that a process is said to have started at.
_SAME_START_SECONDS = 2.0


class DatasetExistsError(DatasetError):
    """A whole dataset is at the path already, of an earlier conversion or of one that ran at the same time."""


@dataclass(frozen=True)
class ConversionOptions:
    """How rows become shards.

    Attributes:
        split_column: String column that says which split a row belongs to; other values than ``SPLITS`` are refused.
        shards: Files per split.
        rows_per_block: Examples in one record.
    """

    split_column: str = "split"
    shards: int = 8
    rows_per_block: int = ROWS_PER_BLOCK

    def __post_init__(self) -> None:
        for name in ("shards", "rows_per_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")


def dataset_address(source: Mapping[str, Any], spec: FeatureSpec, options: ConversionOptions) -> str:
    """Return twelve hex digits that name what a conversion would write: same inputs, same address."""
    document = json.dumps([FORMAT_VERSION, source, spec.hash, vars(options)], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:12]


def convert(
    df: DataFrame,
    spec: FeatureSpec,
    path: str | Path,
    *,
    source: Mapping[str, Any] | None = None,
    options: ConversionOptions = ConversionOptions(),
) -> Dataset:
    """Fit ``spec`` on the training rows of ``df`` and write all rows as TFRecord shards to ``path``.

    ``path`` appears at once and whole, or not at all. Rows are dealt to shards, and ordered in them, by a hash of
    their keys (rows of equal keys by their columns), so the same table gives the same shards. Outside the training
    split a key names one row: predictions are found by it.

    Args:
        df: The table; it needs the spec's columns and ``options.split_column``.
        spec: What the columns mean.
        path: Directory to create. It must be reachable from the executors.
        source: What the rows come from, for the manifest and for :func:`dataset_address`.
        options: How rows become shards.

    Raises:
        DatasetExistsError: ``path`` holds a dataset already, or does so by the time that this one is whole.
        DatasetError: Something else is at ``path``, the label of a split has one class only, two rows of the
            validation or test split have the same key, or a row holds a value that its column cannot take (an unknown
            split, a null key, a label that is neither 0 nor 1).
        EmptySplitError: A split has no rows, or nothing can be learnt from the training rows.
        ColumnError: A column is missing or has the wrong type, or the training rows hold an infinite number.
        LabelError: The label has the wrong type.
    """
    path = Path(path).absolute()
    if is_published(path):
        raise DatasetExistsError(f"{path} exists already; open it with Dataset.open, or delete it to convert again")
    if path.exists():
        raise DatasetError(f"{path} exists already and is no dataset; choose another path, or delete it")
    _check_columns(df, spec, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_staging(path)
    staging = path.parent / f"{_staging_prefix(path)}{_staging_owner()}-{uuid4().hex[:8]}"
    staging.mkdir()
    try:
        manifest = _write(df, spec, staging, dict(source or {}), options)
        manifest.save(staging)
        _publish(staging, path)
    except (Py4JJavaError, PySparkException) as error:
        raise DatasetError(f"the table cannot be converted: {task_message(error)}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Dataset.open(path)


def _write(
    df: DataFrame, spec: FeatureSpec, staging: Path, source: dict[str, Any], options: ConversionOptions
) -> Manifest:
    fitted = fit_features(df.where(F.col(options.split_column) == TRAIN_SPLIT), spec)
    fitted.save(staging / FEATURES_FOLDER)
    task = WriteTask(str(staging), options)
    rows = (
        df.select(options.split_column, *spec.columns)
        .repartition(options.shards, *spec.keys)
        .sortWithinPartitions(F.xxhash64(*spec.keys), *spec.columns)
        .mapInArrow(task, "result string")
        .collect()
    )
    # One result per (partition, split): a task that Spark ran twice reports once, its other files stay behind.
    outcomes = [json.loads(row.result) for row in rows]
    for outcome in outcomes:
        if "refused" in outcome:
            raise DatasetError(outcome["refused"])
    results = [ShardResult.from_dict(outcome) for outcome in outcomes]
    splits = {split: _published(staging, results, split) for split in SPLITS}
    first_test_shard = min((r for r in results if r.split == SPLITS[-1]), key=lambda result: result.partition)
    _example_of(Path(first_test_shard.attempt_path)).rename(staging / FEATURES_FOLDER / EXAMPLE_FILE)
    shutil.rmtree(staging / _ATTEMPTS_FOLDER, ignore_errors=True)
    return Manifest(
        features_hash=fitted.hash,
        splits=splits,
        statistics=_statistics(results, fitted),
        source=source,
        options=vars(options),
        versions=library_versions(),
    )


@dataclass(frozen=True)
class ShardResult:
    """What a task tells the driver of one shard that it wrote."""

    split: str
    partition: int
    attempt_path: str
    shard: Shard
    counts: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        return vars(self) | {"shard": vars(self.shard)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "ShardResult":
        """Read what :meth:`to_dict` returned."""
        shard = document["shard"]
        lists = {name: tuple(shard[name]) for name in ("block_offsets", "block_rows")}
        return cls(**{**document, "shard": Shard(**shard | lists)})


@dataclass(frozen=True)
class WriteTask:
    """The body of one Spark task: one shard per split that its rows belong to."""

    staging: str
    options: ConversionOptions

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write the rows of the partition; yield one JSON result per shard, or one that says what is refused."""
        try:
            outcomes = [result.to_dict() for result in self._write(batches)]
        except (ColumnError, DatasetError, LabelError) as error:
            # Told, not raised: Spark would try the same rows again, and bury the message under two stack traces.
            outcomes = [{"refused": str(error)}]
        lines = pa.array([json.dumps(outcome) for outcome in outcomes], pa.string())
        yield pa.RecordBatch.from_pydict({"result": lines})

    def _write(self, batches: Iterable[pa.RecordBatch]) -> list[ShardResult]:
        fitted = FittedFeatures.load(Path(self.staging) / FEATURES_FOLDER)
        encoder = Encoder(fitted)
        context = TaskContext.get()
        partition = context.partitionId() if context else 0
        folder = Path(self.staging) / _ATTEMPTS_FOLDER / f"{partition:05d}-{uuid4().hex}"
        folder.mkdir(parents=True)
        writers: dict[str, _ShardWriter] = {}
        with ExitStack() as files:
            for batch in batches:
                table = pa.Table.from_batches([batch])
                names = table.column(self.options.split_column)
                for split in names.unique().to_pylist():
                    if split not in SPLITS:
                        raise DatasetError(
                            f"column '{self.options.split_column}' has the value {split!r}; use one of {list(SPLITS)}"
                        )
                    if split not in writers:
                        file = files.enter_context(_attempt_path(folder, split).open("wb"))
                        example = _example_of(_attempt_path(folder, split))
                        writers[split] = _ShardWriter(split, file, example, encoder, fitted, self.options)
                    writers[split].add(table.filter(pc.equal(names, split)))
            return [
                ShardResult(
                    split=split,
                    partition=partition,
                    attempt_path=str(_attempt_path(folder, split)),
                    shard=writer.finish(_shard_path(split, partition)),
                    counts=writer.counts,
                )
                for split, writer in writers.items()
            ]


@dataclass
class _ShardWriter:
    """Gathers rows into blocks and writes them; counts what the manifest tells of them."""

    split: str
    file: IO[bytes]
    example: Path
    encoder: Encoder
    fitted: FittedFeatures
    options: ConversionOptions
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._records = RecordWriter(self.file)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._offsets: list[int] = []
        self._rows: list[int] = []
        self._last_key: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        while self._waiting_rows >= self.options.rows_per_block:
            self._write_block(self.options.rows_per_block)

    def _write_block(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        block, rest = table.slice(0, rows), table.slice(rows)
        if not self._rows:
            pq.write_table(raw_inputs(block.slice(0, EXAMPLE_ROWS), self.fitted.spec), self.example)
        payload, encoded = encode_block(block, self.encoder, self.fitted.spec)
        if self.split != TRAIN_SPLIT:
            self._check_keys(block.select(self.fitted.spec.keys))
        self._offsets.append(self._records.write(payload))
        self._rows.append(rows)
        self._count(block, encoded)
        self._waiting, self._waiting_rows = [rest], rest.num_rows

    def _check_keys(self, keys: pa.Table) -> None:
        """Refuse a key that two rows have: equal keys share a partition, which is sorted, so they are neighbours."""
        # The one before may stand in the block before.
        keys = pa.concat_tables([*([self._last_key] if self._last_key else []), keys]).combine_chunks()
        is_repeated = np.ones(keys.num_rows - 1, bool)
        for column in keys.columns:
            is_repeated &= pc.equal(column[1:], column[:-1]).to_numpy()
        if is_repeated.any():
            repeated = keys.slice(int(np.flatnonzero(is_repeated)[0]), 1).to_pylist()[0]
            key = ", ".join(f"{name} = {value!r}" for name, value in repeated.items())
            raise DatasetError(
                f"the key {key} stands on more than one row of split '{self.split}'; a key names one row: filter "
                f"repeated rows out of the table, or add a column to keys"
            )
        self._last_key = keys.slice(keys.num_rows - 1)

    def _count(self, block: pa.Table, encoded: Mapping[str, Encoded]) -> None:
        for feature in self.fitted.spec:
            ids = encoded[feature.name]
            if isinstance(feature, Numeric):
                values = numeric_values(raw_column(block, feature))
                self.counts[f"{feature.name}/missing"] += int(np.isnan(values).sum())
            elif isinstance(ids, RaggedIds):
                self.counts[f"{feature.name}/missing"] += int((ids.row_lengths == 0).sum())
                self.counts[f"{feature.name}/out_of_vocabulary"] += int((ids.values == OUT_OF_VOCABULARY_ID).sum())
            else:
                self.counts[f"{feature.name}/missing"] += int((ids == MISSING_ID).sum())
                self.counts[f"{feature.name}/out_of_vocabulary"] += int((ids == OUT_OF_VOCABULARY_ID).sum())
        if self.fitted.spec.label.kind == "binary":
            self.counts["label/positive"] += int(binary_label(block, self.fitted.spec.label.name).sum())

    def finish(self, final_path: str) -> Shard:
        if self._waiting_rows:
            self._write_block(self._waiting_rows)
        self.file.flush()
        os.fsync(self.file.fileno())
        return Shard(
            path=final_path,
            rows=sum(self._rows),
            bytes=self._records.bytes_written,
            crc32c=self._records.file_crc32c,
            block_offsets=tuple(self._offsets),
            block_rows=tuple(self._rows),
        )


def _example_of(shard: Path) -> Path:
    """Return where a task puts the first raw rows of ``shard``: what the exported model shows as its input example."""
    return shard.with_suffix(f".{EXAMPLE_FILE}")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries whose behaviour the shards and the model depend on."""
    packages = ("mirrorspark", "pyspark", "pyarrow", "numpy")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def _check_columns(df: DataFrame, spec: FeatureSpec, options: ConversionOptions) -> None:
    """Compare names and types before any task starts."""
    missing = [name for name in (*spec.columns, options.split_column) if name not in df.columns]
    if missing:
        raise ColumnError(f"the table lacks the columns {missing}; it has {df.columns}")
    check_columns(df.select(*spec.columns).limit(0).toArrow(), spec)


def _published(staging: Path, results: list[ShardResult], split: str) -> tuple[Shard, ...]:
    """Move the shards of ``split`` to their final names; refuse a split that nothing can be learnt from."""
    mine = sorted((result for result in results if result.split == split), key=lambda result: result.partition)
    rows = sum(result.shard.rows for result in mine)
    if not rows:
        raise EmptySplitError(f"split '{split}' has no rows; check the table or the rule that makes its split column")
    positives = [result.counts["label/positive"] for result in mine if "label/positive" in result.counts]
    if positives and sum(positives) in (0, rows):
        raise DatasetError(
            f"the label has one class only ({int(sum(positives) > 0)}) in all {rows} rows of split '{split}'; "
            f"a model needs rows of both classes"
        )
    (staging / split).mkdir()
    for result in mine:
        Path(result.attempt_path).rename(staging / result.shard.path)
    return tuple(result.shard for result in mine)


def _statistics(results: list[ShardResult], fitted: FittedFeatures) -> dict[str, dict[str, float]]:
    statistics: dict[str, dict[str, float]] = {feature.name: {} for feature in fitted.spec}
    for name, numbers in fitted.statistics.items():
        statistics[name] |= vars(numbers)
    for feature in fitted.spec.token_features:
        statistics[feature.name]["vocabulary"] = len(fitted.vocabulary(feature))
    for result in results:
        for key, count in result.counts.items():
            name, _, what = key.rpartition("/")
            entry = statistics.setdefault(name, {})
            column = f"{result.split}_{what}"
            entry[column] = entry.get(column, 0) + count
    return statistics


def _attempt_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.tfrecord"


def _shard_path(split: str, partition: int) -> str:
    return f"{split}/part-{partition:05d}.tfrecord"


def _staging_prefix(path: Path) -> str:
    return f".{path.name}.staging-"


def _staging_owner() -> str:
    """Return what names this process: host, process id, and when it started, for the id may be given out again."""
    return f"{socket.gethostname()}-{os.getpid()}-{psutil.Process().create_time():.0f}"


def _is_abandoned(owner: str) -> bool:
    """Whether ``owner`` is a process of this host that is gone; one of another host may be at work."""
    # The name of a host may have dashes too.
    host, *numbers = owner.rsplit("-", 2)
    if host != socket.gethostname() or len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        return False
    process, started = map(int, numbers)
    try:
        return abs(psutil.Process(process).create_time() - started) > _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def _remove_abandoned_staging(path: Path) -> None:
    """Remove what conversions to ``path`` left behind whose process on this host is gone."""
    prefix = _staging_prefix(path)
    for folder in path.parent.iterdir():
        owner, _, _ = folder.name.removeprefix(prefix).rpartition("-")
        if folder.name.startswith(prefix) and _is_abandoned(owner):
            # Another conversion may be removing it as well.
            shutil.rmtree(folder, ignore_errors=True)


def _publish(staging: Path, path: Path) -> None:
    """Give a whole dataset its name, unless another conversion was faster."""
    try:
        staging.rename(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise DatasetExistsError(f"another conversion has made {path} meanwhile; open it with Dataset.open") from error


def is_published(path: Path) -> bool:
    """Return whether a conversion to ``path`` has been published."""
    return (path / MANIFEST_FILE).is_file()
