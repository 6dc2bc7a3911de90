"""How fast does a Spark DataFrame become TFRecords of one example per record, next to Spark writing it as Parquet?"""

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.report import Report
from benchmarks.spark_work import compare_with_parquet

SPEED_MARK = 0.9


def run(options: Options) -> Report:
    """Write each table both ways."""
    return Report(BENCHMARK.name, BENCHMARK.question, *compare_with_parquet(options, "row", SPEED_MARK))


BENCHMARK = Benchmark("dataframe_to_rows", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
