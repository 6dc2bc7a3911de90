"""How long does it take from the call of ``score`` to its first row, cold and warm?

Cold: a new driver whose Spark session has no Python worker yet; importing TensorFlow and loading the model are part of
it. Warm: once more in that session, after a job that scored the whole table. (Not right after the first row: Spark ends
a Python worker of which it wants no more rows, and starts another for the next task.)
"""

import time
from pathlib import Path
from statistics import median

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table
from benchmarks.score_model import export_model
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

COLD_MARK, WARM_MARK = 12.0, 1.0


def run(options: Options) -> Report:
    """Ask for the first row twice in a new driver, as often as there are rounds."""
    files = parquet_files(options.scratch, Kind.CLICKS, options.rows)
    model = in_new_process(export_model, options.scratch / "model", files[0])
    rounds = [in_new_process(_first_rows, files, model) for _ in range(options.rounds)]
    rows = tuple((f"{number}", f"{cold:.2f}", f"{warm:.2f}") for number, (cold, warm) in enumerate(rounds, 1))
    marks = (
        Mark("cold start to the first row, s", median(cold for cold, _ in rounds), COLD_MARK, "at most"),
        Mark("warm start to the first row, s", median(warm for _, warm in rounds), WARM_MARK, "at most"),
    )
    table = Table("Seconds from the call of score to its first row", ("round", "cold", "warm"), rows)
    conditions = {"rounds": f"median of {options.rounds}"}
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), marks, conditions=conditions)


def _first_rows(files: list[Path], model: Path) -> tuple[float, float]:
    from mirrorspark.scoring.batch import score

    session = spark_work.session()
    table = spark_work.table(session, files)

    def seconds() -> float:
        begin = time.perf_counter()
        score(table, model, keys="key").take(1)
        return time.perf_counter() - begin

    cold = seconds()
    spark_work.drain(score(table, model, keys="key"))
    warm = seconds()
    session.stop()
    return cold, warm


BENCHMARK = Benchmark("score_start", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
