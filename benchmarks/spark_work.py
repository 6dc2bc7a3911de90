"""Sessions of Spark that the benchmarks use, and what they have Spark do."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from mirrorspark.spark_session.start import open_session

SLOTS = 2

_READ_ROWS = 65_536


def session(slots: int = SLOTS) -> SparkSession:
    """Return a local session of ``slots`` cores, with the product's own settings."""
    return open_session(f"local[{slots}]", slots, app_name="mirrorspark-benchmark")


def table(spark: SparkSession, files: Sequence[Path]) -> DataFrame:
    """Return the DataFrame over Parquet files."""
    return spark.read.parquet(*map(str, files))


def drain(df: DataFrame) -> None:
    """Compute all columns of all rows of ``df`` in the JVM and drop them."""
    df.write.format("noop").mode("overwrite").save()


@dataclass(frozen=True)
class ReadParquetTask:
    """The body of a task that reads its share of Parquet files with pyarrow and only counts the rows."""

    files: tuple[str, ...]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the number of rows of the files whose numbers come in."""
        for batch in batches:
            for number in batch.column(0).to_pylist():
                with pq.ParquetFile(self.files[number]) as file:
                    rows = sum(part.num_rows for part in file.iter_batches(_READ_ROWS, use_threads=False))
                yield pa.RecordBatch.from_pydict({"rows": [rows]})


def read_parquet_in_tasks(spark: SparkSession, files: Sequence[Path]) -> None:
    """Have pyarrow read ``files`` inside the tasks: the minimum of any writer that skips the JVM."""
    task = ReadParquetTask(tuple(map(str, files)))
    spark.range(len(files), numPartitions=len(files)).mapInArrow(task, "rows long").collect()


def emptied(folder: Path) -> Callable[[], None]:
    """Return a function that removes ``folder``."""
    return lambda: shutil.rmtree(folder, ignore_errors=True)
