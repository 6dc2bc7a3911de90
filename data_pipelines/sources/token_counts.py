"""Counts of tokens: summed, and ranked by their frequency."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.spark import numbered_partitions, numbers_of
from mirrorspark.spark_session import partition_id
from mirrorspark.storage import StoragePath

TOKEN_COUNTS_SCHEMA = pa.schema([("name", pa.string()), ("token", pa.string()), ("count", pa.int64())])
"""Each row counts one token of one vocabulary in a part of the training rows."""


@dataclass(frozen=True)
class TokenCountsTask:
    """The body of one Spark task that reads the token counts of some files, given by number."""

    files: tuple[str, ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the counts as they were written."""
        for number in numbers_of(batches):
            yield from _batches(self.files[number])


@dataclass(frozen=True)
class RankTask:
    """The body of one Spark task that writes the ranked tokens of its partition to one Arrow file."""

    folder: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Write all rows; yield the partition's number and file, or nothing if there are no rows."""
        partition = partition_id()
        path = StoragePath.of(self.folder) / f"{partition:05d}-{uuid4().hex}.arrow"
        if _written(path, batches):
            written = json.dumps({"partition": partition, "path": str(path)})
            yield pa.RecordBatch.from_pydict({"written": [written]})


def ranked_by_spark(
    spark: SparkSession, files: Sequence[str], least: Mapping[str, int], folder: StoragePath
) -> list[StoragePath]:
    """Sum and rank the counts by Spark, however many tokens there are; see :class:`data_pipelines.sources.Source`."""
    minimum = F.create_map(*(F.lit(part) for name, count in least.items() for part in (name, count)))
    written = (
        numbered_partitions(spark, len(files))
        .mapInArrow(TokenCountsTask(tuple(files)), "name string, token string, count long")
        .groupBy("name", "token")
        .agg(F.sum("count").alias("count"))
        .where(F.col("count") >= minimum[F.col("name")])
        .orderBy("name", F.desc("count"), "token")
        .mapInArrow(RankTask(str(folder)), "written string")
        .collect()
    )
    outcomes = sorted((json.loads(row.written) for row in written), key=lambda outcome: outcome["partition"])
    return [StoragePath.of(outcome["path"]) for outcome in outcomes]


def ranked_here(files: Sequence[str], least: Mapping[str, int], folder: StoragePath) -> list[StoragePath]:
    """Sum and rank the counts in this process's memory."""
    counts = pa.Table.from_batches([batch for file in files for batch in _batches(file)], TOKEN_COUNTS_SCHEMA)
    summed = counts.group_by(["name", "token"]).aggregate([("count", "sum")]).rename_columns(TOKEN_COUNTS_SCHEMA.names)
    minimum = pa.array(least.values(), pa.int64()).take(pc.index_in(summed["name"], pa.array(least, pa.string())))
    kept = summed.filter(pc.greater_equal(summed["count"], minimum))
    ranked = kept.sort_by([("name", "ascending"), ("count", "descending"), ("token", "ascending")])
    path = folder / f"{uuid4().hex}.arrow"
    return [path] if _written(path, ranked.to_batches()) else []


def _written(path: StoragePath, batches: Iterable[pa.RecordBatch]) -> int:
    """Write counts to a file, and return their number."""
    rows = 0
    with path.open_write() as file, pa.ipc.new_file(file, TOKEN_COUNTS_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch.cast(TOKEN_COUNTS_SCHEMA))
            rows += batch.num_rows
    return rows


def _batches(file: str) -> Iterator[pa.RecordBatch]:
    with StoragePath.of(file).open_read() as opened, pa.ipc.open_file(opened) as reader:
        yield from (reader.get_batch(place) for place in range(reader.num_record_batches))
