"""How fast does a Spark DataFrame become TFRecords of one example per record, next to Spark writing it as Parquet?"""

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark, speed_ratio
from benchmarks.report import Report, timing_table
from benchmarks.tables import Kind

LAYOUT = "row"
SPEED_MARK = 0.9


def run(options: Options) -> Report:
    """Write each table both ways; all columns come from Parquet files that Spark reads."""
    spark = spark_work.session()
    tables, marks = [], []
    for kind in Kind:
        rows = options.rows if kind is Kind.NUMBERS else max(1, options.rows // 4)
        timings = spark_work.measure_layout(options, spark, kind, rows, LAYOUT)
        tables.append(timing_table(f"{kind}: {rows:,} rows, {spark_work.SLOTS} cores", rows, timings, PARQUET))
        ours = next(name for name in timings if name.startswith("write_tfrecords"))
        if kind is Kind.NUMBERS:
            marks.append(Mark(f"{ours} / {PARQUET}", speed_ratio(timings, ours, PARQUET), SPEED_MARK))
    spark.stop()
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks))


PARQUET = spark_work.SPARK_PARQUET
BENCHMARK = Benchmark("dataframe_to_rows", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
