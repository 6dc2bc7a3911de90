"""Staging: a table's rows are evaluated once, divided into shards, ordered, and written as Arrow files.

A query may be slow, and may give other rows the second time (random numbers, the time of day). Spark therefore runs it
once; fitting and encoding both read the staged files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from mirrorspark.data_pipelines.dataset.manifest import SPLITS, TRAIN_SPLIT, DatasetError
from mirrorspark.data_pipelines.features import (
    HELD_BACK,
    FeatureSpec,
    candidate_lists,
    fitting,
    labels,
    raw_columns,
)
from mirrorspark.data_pipelines.sources import ORDER_COLUMN, ROW_HASH_COLUMN, Source
from mirrorspark.spark_session import partition_id
from mirrorspark.storage import StoragePath

SAMPLE_ROWS = 20_000
"""Rows of a split that are sampled for quantiles and the profile: histograms and shares are accurate to half a percent.
"""

_ADDED_COLUMNS = [ORDER_COLUMN, ROW_HASH_COLUMN]
_TOKENS_FILE = "tokens"


@dataclass(frozen=True)
class StagedFile:
    """The rows of one split in one partition, as an Arrow file with the spec's columns.

    Where the label is a list of candidates, its column has one candidate, and a further column the list
    (:func:`data_pipelines.features.candidate_lists.one_candidate_per_row`).

    Attributes:
        partition: Number of the shard that they become.
        path: URI of the file.
    """

    split: str
    partition: int
    path: str
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, without the columns that staging added."""
        for batch in self._all_columns():
            yield batch.drop_columns(_ADDED_COLUMNS)

    def first_rows(self, rows: int) -> pa.Table:
        """Return the first rows, which have the smallest key hashes, with that hash as a column."""
        parts: list[pa.RecordBatch] = []
        for batch in self._all_columns():
            parts.append(batch.slice(0, rows))
            rows -= len(parts[-1])
            if not rows:
                break
        return pa.Table.from_batches(parts)

    def _all_columns(self) -> Iterator[pa.RecordBatch]:
        with StoragePath.of(self.path).open_read() as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


@dataclass(frozen=True)
class Staged:
    """All staged rows of a table.

    Attributes:
        files: Their files, by split and partition.
        measured: The tasks' measurements of the training rows.
        repeated_rows: The number of rows that equal a row of another split in every column that Spark can compare.
    """

    files: tuple[StagedFile, ...]
    measured: fitting.FeatureMeasurements
    repeated_rows: int = 0

    def rows(self, split: str) -> int:
        """Return the number of rows in ``split``."""
        return sum(file.rows for file in self.files if file.split == split)

    def sample(self, split: str) -> pa.Table:
        """Return up to ``SAMPLE_ROWS`` rows of ``split``: those with the smallest key hashes.

        The same table gives the same sample, whatever the order of its rows.
        """
        files = [file for file in self.files if file.split == split]
        if not files:
            return pa.table({})
        # More than twice the fair share: almost certainly these contain the smallest hashes of all.
        quota = min(SAMPLE_ROWS, 2 * SAMPLE_ROWS // len(files) + 1_000)
        drawn = pa.concat_tables([file.first_rows(quota) for file in files])
        smallest = pc.sort_indices(drawn[ORDER_COLUMN]).slice(0, SAMPLE_ROWS)
        added = [name for name in (*_ADDED_COLUMNS, HELD_BACK) if name in drawn.column_names]
        return drawn.take(smallest).drop_columns(added).combine_chunks()


def stage(
    source: Source,
    spec: FeatureSpec,
    plans: raw_columns.ColumnPlans,
    split_column: str,
    shards: int,
    folder: StoragePath,
) -> Staged:
    """Read the rows of ``source`` and write them below ``folder``, divided among shards by their keys, and ordered.

    Raises:
        DatasetError: A row has an invalid value, for example an unknown split.
    """
    task = StageTask(folder, spec, plans, split_column)
    outcomes = source.in_shards(task, split_column, spec.columns, spec.keys, shards)
    parts = [_StagedPart.from_dict(json.loads(outcome)) for outcome in outcomes]
    for part in parts:
        if part.refused:
            raise DatasetError(part.refused)
    moments: dict[str, fitting.Moments] = {}
    for part in sorted(parts, key=lambda part: part.partition):
        for name, of_part in part.moments.items():
            moments[name] = moments.get(name, fitting.Moments()).merged(of_part)
    files = sorted((file for part in parts for file in part.files), key=lambda file: (file.split, file.partition))
    token_files = tuple(sorted(part.tokens for part in parts if part.tokens))
    return Staged(
        tuple(files), fitting.FeatureMeasurements(moments, token_files), sum(part.repeated_rows for part in parts)
    )


@dataclass(frozen=True)
class _StagedPart:
    """A task's report to the driver.

    Attributes:
        partition: The task's partition.
        files: The files of its rows, by split.
        tokens: URI of the token counts; empty if there are none.
        moments: Moments of the training rows.
        repeated_rows: The number of rows that equal a row of another split.
        refused: The reason why the rows cannot be a dataset; empty if they can.
    """

    partition: int = 0
    files: tuple[StagedFile, ...] = ()
    tokens: str = ""
    moments: Mapping[str, fitting.Moments] = field(default_factory=dict)
    repeated_rows: int = 0
    refused: str = ""

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "_StagedPart":
        files = tuple(StagedFile(**file) for file in document["files"])
        moments = {name: fitting.Moments(**of) for name, of in document["moments"].items()}
        return cls(**{**document, "files": files, "moments": moments})


@dataclass(frozen=True)
class StageTask:
    """The body of one Spark task that writes the rows of each split to a file, and measures the training rows.

    Attributes:
        folder: The folder for files; a task that outlives the conversion does not create it again.
        spec: The features to measure.
        plans: The ways in which they are read.
        split_column: The column with a row's split.
    """

    folder: StoragePath
    spec: FeatureSpec
    plans: raw_columns.ColumnPlans
    split_column: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one JSON report: the files and measurements, or the reason for a refusal."""
        yield pa.RecordBatch.from_pydict({"outcome": [self.outcome(partition_id(), batches)]})

    def outcome(self, shard: int, batches: Iterable[pa.RecordBatch]) -> str:
        """Return the JSON report on a shard."""
        try:
            part = self._stage(batches, shard)
        except (raw_columns.ColumnError, DatasetError, labels.LabelError) as error:
            # Reported, not raised: Spark would try the same rows again, and hide the message under two stack traces.
            part = _StagedPart(shard, refused=str(error))
        # Infinite moments are not standard JSON, but Python's reader accepts them.
        return json.dumps(asdict(part))

    def _stage(self, batches: Iterable[pa.RecordBatch], partition: int) -> _StagedPart:
        measurement, repeated = fitting.Measurement(self.spec, self.plans), _RepeatedRows()
        # Each attempt has its own name: a task that Spark runs twice reports once.
        attempt = self.folder / f"{partition:05d}-{uuid4().hex}"
        with _ArrowFiles(attempt) as files:
            for batch in batches:
                splits = batch.column(self.split_column)
                self._check(splits)
                repeated.add(splits, batch.column(ROW_HASH_COLUMN))
                rows = batch.drop_columns([self.split_column])
                for split in splits.unique().to_pylist():
                    is_training = split == TRAIN_SPLIT
                    of_split = rows.filter(pc.equal(splits, split))
                    for mine in candidate_lists.one_candidate_per_row(of_split, self.spec, is_training=is_training):
                        files.add(split, mine)
                        if is_training:
                            files.add_all(_TOKENS_FILE, measurement.add(mine))
            files.add_all(_TOKENS_FILE, measurement.finish())
        return _StagedPart(
            partition,
            tuple(
                StagedFile(split, partition, files.path(split), files.rows[split])
                for split in SPLITS
                if split in files.rows
            ),
            files.path(_TOKENS_FILE) if _TOKENS_FILE in files.rows else "",
            measurement.moments,
            repeated.count,
        )

    def _check(self, splits: pa.StringArray) -> None:
        for split in splits.unique().to_pylist():
            if split not in SPLITS:
                raise DatasetError(f"column '{self.split_column}' has the value {split!r}; use one of {list(SPLITS)}")


@dataclass
class _RepeatedRows:
    """Count of rows that follow an equal row of another split; equal rows are neighbours."""

    count: int = 0
    _last: tuple[str, int] | None = None

    def add(self, splits: pa.StringArray, hashes: pa.Int64Array) -> None:
        if not len(hashes):
            return
        codes = pc.index_in(splits, pa.array(SPLITS)).to_numpy()
        values = hashes.to_numpy()
        self.count += int(((values[1:] == values[:-1]) & (codes[1:] != codes[:-1])).sum())
        first, last = ((splits[place].as_py(), int(values[place])) for place in (0, -1))
        self.count += self._last is not None and self._last[1] == first[1] and self._last[0] != first[0]
        self._last = last


class _ArrowFiles:
    """Arrow files of one task attempt, each opened when it gets its first rows.

    Attributes:
        rows: The number of rows per file.
    """

    def __init__(self, folder: StoragePath) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._open = ExitStack()
        self.rows: dict[str, int] = {}

    def __enter__(self) -> "_ArrowFiles":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def path(self, name: str) -> str:
        return str(self._folder / f"{name}.arrow")

    def add(self, name: str, batch: pa.RecordBatch) -> None:
        if name not in self._writers:
            file = self._open.enter_context((self._folder / f"{name}.arrow").open_write())
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[name] = self._open.enter_context(pa.ipc.new_file(file, batch.schema, options=options))
        self._writers[name].write_batch(batch)
        self.rows[name] = self.rows.get(name, 0) + batch.num_rows

    def add_all(self, name: str, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            self.add(name, batch)
