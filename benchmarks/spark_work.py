"""What the benchmarks have Spark do: the sessions they use, and the sides that are Spark's own."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from benchmarks.benchmark import Options
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Table, timing_table
from benchmarks.tables import DATA_PATH_KINDS, Kind, parquet_files
from mirrorspark.spark_session.start import open_session

SLOTS = 2
SPARK_PARQUET = "Spark's own Parquet write"
ARROW_HOP = "bare JVM to Arrow hop"

_READ_ROWS = 65_536


def session(slots: int = SLOTS) -> SparkSession:
    """Return a local session of ``slots`` cores, with the product's own settings."""
    return open_session(f"local[{slots}]", slots, app_name="mirrorspark-benchmark")


def table(spark: SparkSession, files: Sequence[Path]) -> DataFrame:
    """Return the DataFrame over Parquet files."""
    return spark.read.parquet(*map(str, files))


def cross_into_arrow(df: DataFrame) -> None:
    """Send all rows of ``df`` to Python workers, which only count them: what any writer in Python starts from."""
    df.mapInArrow(_count_rows, "rows long").collect()


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
    """Have pyarrow read ``files`` inside the tasks: what any writer that skips the JVM starts from."""
    task = ReadParquetTask(tuple(map(str, files)))
    spark.range(len(files), numPartitions=len(files)).mapInArrow(task, "rows long").collect()


def emptied(folder: Path) -> Callable[[], None]:
    """Return what removes ``folder``."""
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def writers(df: DataFrame, folder: Path, ours: Mapping[str, Callable[[Path], object]]) -> list[Contender]:
    """Return Spark's Parquet write, the bare hop, and ``ours``: per name what writes into the folder it is given.

    All write to the same folder, which is emptied before each: what one leaves in the page cache, to be written to
    disk later, would slow down the next.
    """
    target = folder / "written"

    return [
        Contender(SPARK_PARQUET, partial(df.write.parquet, str(target)), emptied(target)),
        Contender(ARROW_HOP, partial(cross_into_arrow, df), emptied(target)),
        *(Contender(name, partial(write, target), emptied(target)) for name, write in ours.items()),
    ]


def measure_layout(options: Options, spark: SparkSession, kind: Kind, rows: int, layout: str) -> dict[str, Timing]:
    """Time Spark's Parquet write, the bare hop and :func:`write_tfrecords` in ``layout`` on one table."""
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords

    df = table(spark, parquet_files(options.scratch, kind, rows))
    ours = {f"write_tfrecords, {layout} layout": partial(write_tfrecords, df, layout=layout)}
    return interleave(writers(df, options.scratch, ours), options.rounds)


def _count_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pydict({"rows": [sum(batch.num_rows for batch in batches)]})


def compare_with_parquet(
    options: Options, layout: str, speed_mark: float
) -> tuple[tuple[Table, ...], tuple[Mark, ...]]:
    """Write each kind of table in ``layout`` and as Parquet; return the times, and what the numbers reach of the mark.

    All columns come from Parquet files that Spark reads.
    """
    spark = session()
    tables, marks = [], []
    for kind in DATA_PATH_KINDS:
        rows = options.rows if kind is Kind.NUMBERS else max(1, options.rows // 4)
        timings = measure_layout(options, spark, kind, rows, layout)
        tables.append(timing_table(f"{kind}: {rows:,} rows, {SLOTS} cores", rows, timings, SPARK_PARQUET))
        ours = next(name for name in timings if name.startswith("write_tfrecords"))
        if kind is Kind.NUMBERS:
            marks.append(Mark(f"{ours} / {SPARK_PARQUET}", speed_ratio(timings, ours, SPARK_PARQUET), speed_mark))
    spark.stop()
    return tuple(tables), tuple(marks)
