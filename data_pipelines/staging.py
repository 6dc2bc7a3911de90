"""The table's rows, evaluated once: dealt to shards, in their final order, and put down as Arrow files.

A query may be slow, and may answer differently the second time (random numbers, the time of day). So Spark runs it
once; what fits the features and what encodes the rows both work from the staged files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import ArrayType, DataType, MapType, StructType, UserDefinedType, VariantType

from data_pipelines.features import FeatureSpec
from data_pipelines.fitting import MEASUREMENT_SCHEMA, Measurement
from data_pipelines.labels import LabelError
from data_pipelines.manifest import SPLITS, DatasetError
from data_pipelines.storage import StoragePath
from data_pipelines.transform import ColumnError

TRAIN_SPLIT = SPLITS[0]
SAMPLE_ROWS = 20_000
"""Rows of a split that are drawn for quantiles and the profile: histograms and shares are good to half a percent."""

# Keys are dealt to shards by Spark's other hash, so the rows of a shard are a fair draw of this one.
_ORDER_COLUMN = "row order"
_OUTCOME_SCHEMA = pa.schema([*MEASUREMENT_SCHEMA, ("outcome", pa.string())])
_OUTCOME_DDL = "name string, token string, count long, mean double, m2 double, minimum double, maximum double, "
_OUTCOME_DDL += "outcome string"


@dataclass(frozen=True)
class StagedFile:
    """The rows of one split in one partition, as an Arrow file with the spec's columns.

    Attributes:
        split: Name of the split.
        partition: Number of the shard that they become.
        path: URI of the file.
        rows: How many there are.
    """

    split: str
    partition: int
    path: str
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in their order, without the columns that staging added."""
        for batch in self._all_columns():
            yield batch.drop_columns([_ORDER_COLUMN])

    def first_rows(self, rows: int) -> pa.Table:
        """Return the first rows, which have the smallest hashes of their keys, with that hash as a column."""
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
    """All rows of the table.

    Attributes:
        files: Where they are, by partition and split.
        measured: What the tasks measured of the training rows, in ``MEASUREMENT_SCHEMA``; kept by Spark until
            :meth:`release`.
        outcomes: The frame that Spark keeps.
    """

    files: tuple[StagedFile, ...]
    measured: DataFrame
    outcomes: DataFrame

    def rows(self, split: str) -> int:
        """Return the number of rows in ``split``."""
        return sum(file.rows for file in self.files if file.split == split)

    def sample(self, split: str) -> pa.Table:
        """Return up to ``SAMPLE_ROWS`` rows of ``split``: those of the smallest hashes of their keys.

        The same table gives the same sample, whatever the order of its rows.
        """
        files = [file for file in self.files if file.split == split]
        if not files:
            return pa.table({})
        # Twice the fair share and some more: the smallest hashes of all are among these, but for a freak of chance.
        quota = min(SAMPLE_ROWS, 2 * SAMPLE_ROWS // len(files) + 1_000)
        drawn = pa.concat_tables([file.first_rows(quota) for file in files])
        smallest = pc.sort_indices(drawn[_ORDER_COLUMN]).slice(0, SAMPLE_ROWS)
        return drawn.take(smallest).drop_columns([_ORDER_COLUMN]).combine_chunks()

    def release(self) -> None:
        """Let Spark forget what it kept; the files are the caller's to remove."""
        self.outcomes.unpersist()


def stage(df: DataFrame, spec: FeatureSpec, split_column: str, shards: int, folder: StoragePath) -> Staged:
    """Run the query of ``df`` and put its rows down below ``folder``.

    Rows are dealt to shards by a hash of their keys, and ordered in them by another one (rows of equal keys by their
    columns), so the same table gives the same files whatever the order of its rows.

    Raises:
        DatasetError: A row holds a value that its column cannot take, for example an unknown split.
    """
    order = F.xxhash64(*spec.keys)
    sortable = [name for name in spec.columns if _is_sortable(df.schema[name].dataType)]
    task = StageTask(str(folder), spec, split_column)
    outcomes = (
        df.select(split_column, order.alias(_ORDER_COLUMN), *spec.columns)
        .repartition(shards, *spec.keys)
        .sortWithinPartitions(_ORDER_COLUMN, *sortable)
        .mapInArrow(task, _OUTCOME_DDL)
    )
    # Without this the queries that read it would each run the source again.
    outcomes.persist()
    told = [json.loads(row.outcome) for row in outcomes.where("outcome IS NOT NULL").select("outcome").collect()]
    for outcome in told:
        if "refused" in outcome:
            outcomes.unpersist()
            raise DatasetError(outcome["refused"])
    files = sorted((StagedFile(**outcome) for outcome in told), key=lambda file: (file.split, file.partition))
    return Staged(tuple(files), outcomes.where("name IS NOT NULL").drop("outcome"), outcomes)


@dataclass(frozen=True)
class StageTask:
    """The body of one Spark task: write the rows of each split to a file, and measure the training rows.

    Attributes:
        folder: URI of the folder that files go to.
        spec: The features to measure.
        split_column: Says which split a row belongs to.
    """

    folder: str
    spec: FeatureSpec
    split_column: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield counts and moments, then a JSON outcome per file, or one that says what is refused."""
        measurement = Measurement(self.spec)
        try:
            with _StagedFiles(StoragePath.of(self.folder)) as files:
                for batch in batches:
                    for split, rows in self._by_split(batch):
                        files.add(split, rows)
                        if split == TRAIN_SPLIT:
                            yield from map(_measured, measurement.add(rows))
            yield from map(_measured, measurement.finish())
            yield from map(_told, (asdict(file) for file in files.written()))
        except (ColumnError, DatasetError, LabelError) as error:
            # Told, not raised: Spark would try the same rows again, and bury the message under two stack traces.
            yield _told({"refused": str(error)})

    def _by_split(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        names = batch.column(self.split_column)
        rows = batch.drop_columns([self.split_column])
        for split in names.unique().to_pylist():
            if split not in SPLITS:
                raise DatasetError(f"column '{self.split_column}' has the value {split!r}; use one of {list(SPLITS)}")
            yield split, rows.filter(pc.equal(names, split))


class _StagedFiles:
    """One open Arrow file per split that has rows."""

    def __init__(self, folder: StoragePath) -> None:
        context = TaskContext.get()
        self._partition = context.partitionId() if context else 0
        # A name of its own for each attempt: a task that Spark runs twice reports once.
        self._folder = folder / f"{self._partition:05d}-{uuid4().hex}"
        self._writers: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._open = ExitStack()

    def __enter__(self) -> "_StagedFiles":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def add(self, split: str, batch: pa.RecordBatch) -> None:
        if split not in self._writers:
            file = self._open.enter_context(self._path(split).open_write())
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[split] = self._open.enter_context(pa.ipc.new_file(file, batch.schema, options=options))
        self._writers[split].write_batch(batch)
        self._rows[split] = self._rows.get(split, 0) + batch.num_rows

    def written(self) -> Iterator[StagedFile]:
        for split, rows in self._rows.items():
            yield StagedFile(split, self._partition, str(self._path(split)), rows)

    def _path(self, split: str) -> StoragePath:
        return self._folder / f"{split}.arrow"


def _measured(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([*batch.columns, pa.nulls(batch.num_rows, pa.string())], schema=_OUTCOME_SCHEMA)


def _told(outcome: Mapping[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"outcome": json.dumps(outcome)}], schema=_OUTCOME_SCHEMA)


def _is_sortable(data_type: DataType) -> bool:
    """Whether Spark can order values of this type; it cannot order maps, nor what holds one."""
    if isinstance(data_type, UserDefinedType):
        return _is_sortable(data_type.sqlType())
    if isinstance(data_type, ArrayType):
        return _is_sortable(data_type.elementType)
    if isinstance(data_type, StructType):
        return all(_is_sortable(part.dataType) for part in data_type)
    return not isinstance(data_type, MapType | VariantType)
