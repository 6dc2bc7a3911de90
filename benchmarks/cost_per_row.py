"""Does a row cost the same in a small table and in a large one?"""

from collections.abc import Callable
from functools import partial

from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.report import Report, Table, rate
from benchmarks.spark_work import drain, emptied
from benchmarks.tables import Kind, parquet_files

STEPS = (100, 10, 1)
"""The tables have the largest one's rows divided by these."""
GROWTH_MARK = 1.1


def run(options: Options) -> Report:
    """Measure each way on tables of growing size."""
    spark = spark_work.session()
    sizes = [max(1, options.rows // step) for step in STEPS]
    by_way: dict[str, list[Timing]] = {}
    for rows in sizes:
        for name, timing in _measure(options, spark, rows).items():
            by_way.setdefault(name, []).append(timing)
    spark.stop()
    marks = tuple(
        Mark(
            f"{name}: cost of a row, {sizes[-1]:,} / {sizes[1]:,} rows", growth(timings, sizes), GROWTH_MARK, "at most"
        )
        for name, timings in by_way.items()
    )
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(cost_tables(by_way, sizes)), marks)


def growth(timings: list[Timing], sizes: list[int]) -> float:
    """Return what a row costs in the largest table over what it costs in the next smaller one.

    The smallest table does not say: starting a job takes as long as its rows do.
    """
    return (timings[-1].median / sizes[-1]) / (timings[-2].median / sizes[-2])


def cost_tables(by_way: dict[str, list[Timing]], sizes: list[int]) -> list[Table]:
    """Return one table per way, with a row per size."""
    columns = ("rows", "median seconds", "rows/s", "microseconds per row", "spread")
    return [
        Table(
            name,
            columns,
            tuple(
                (
                    f"{rows:,}",
                    f"{timing.median:.3f}",
                    rate(rows / timing.median),
                    f"{timing.median / rows * 1e6:.3f}",
                    f"{timing.spread:.0%}",
                )
                for rows, timing in zip(sizes, timings, strict=True)
            ),
        )
        for name, timings in by_way.items()
    ]


def _measure(options: Options, spark: SparkSession, rows: int) -> dict[str, Timing]:
    from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords, write_tfrecords_from_parquet

    files = parquet_files(options.scratch, Kind.NUMBERS, rows)
    df = spark_work.table(spark, files)
    names = [str(file) for file in files]
    target, source = options.scratch / "written", options.scratch / "to-read"
    write_tfrecords_from_parquet(spark, names, str(source), mode="overwrite", layout="block")
    written = read_tfrecords(spark, str(source), schema=df.schema)
    ways: dict[str, Callable[[], object]] = {
        "DataFrame to block layout": partial(write_tfrecords, df, str(target), layout="block"),
        "Parquet to block layout": partial(write_tfrecords_from_parquet, spark, names, str(target), layout="block"),
        "block layout to DataFrame": partial(drain, written),
    }
    contenders = [Contender(name, work, emptied(target)) for name, work in ways.items()]
    # The largest takes minutes; caches and kernels are warm from the ones before it.
    timings = interleave(contenders, options.rounds, warm_ups=0 if rows == options.rows else 1)
    emptied(target)()
    return timings


BENCHMARK = Benchmark("cost_per_row", question_of(__doc__), 20_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
