"""How fast do Parquet files become block TFRecords inside the tasks, next to Spark copying them as Parquet?"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.spark_work import SPARK_PARQUET, emptied
from benchmarks.tables import DATA_PATH_KINDS, Kind, parquet_files

READ = "pyarrow reading Parquet in the task"
BLOCKS = "write_tfrecords_from_parquet, block layout"
ROWS = "write_tfrecords_from_parquet, row layout"
SPEED_MARK = 3.0


def run(options: Options) -> Report:
    """Convert each table; the rows never pass through the JVM on our side."""
    spark = spark_work.session()
    tables, marks = [], []
    for kind in DATA_PATH_KINDS:
        rows = options.rows if kind is Kind.NUMBERS else max(1, options.rows // 4)
        timings = _measure(options, spark, parquet_files(options.scratch, kind, rows))
        tables.append(timing_table(f"{kind}: {rows:,} rows, {spark_work.SLOTS} cores", rows, timings, SPARK_PARQUET))
        if kind is Kind.NUMBERS:
            ratio = speed_ratio(timings, BLOCKS, SPARK_PARQUET)
            marks.append(Mark(f"{BLOCKS} / {SPARK_PARQUET}", ratio, SPEED_MARK))
    spark.stop()
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


def _measure(options: Options, spark: SparkSession, files: list[Path]) -> dict[str, Timing]:
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords_from_parquet

    target = options.scratch / "written"
    names = [str(file) for file in files]

    write = partial(write_tfrecords_from_parquet, spark, names, str(target))
    ways: dict[str, Callable[[], object]] = {
        SPARK_PARQUET: lambda: spark_work.table(spark, files).write.parquet(str(target)),
        READ: partial(spark_work.read_parquet_in_tasks, spark, files),
        BLOCKS: partial(write, layout="block"),
        ROWS: partial(write, layout="row"),
    }
    return interleave([Contender(name, work, emptied(target)) for name, work in ways.items()], options.rounds)


BENCHMARK = Benchmark("parquet_to_blocks", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
