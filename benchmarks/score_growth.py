"""Does a row cost the same in a small table and in a large one, when it is scored, and does memory stay where it is?"""

from pathlib import Path

import psutil
from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.cost_per_row import GROWTH_MARK, STEPS, cost_tables, growth
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.report import Report, Table, megabytes
from benchmarks.score_files import FILES, TABLE
from benchmarks.score_model import export_model
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

# A worker that has scored a hundred times as many rows may hold so much more: what pyarrow buffers varies.
MEMORY_MARK = 1.1


def run(options: Options) -> Report:
    """Score tables of growing size, each in a session of its own, whose workers have held no other."""
    sizes = [max(1, options.rows // step) for step in STEPS]
    files = {rows: parquet_files(options.scratch, Kind.CLICKS, rows) for rows in sizes}
    model = in_new_process(export_model, options.scratch / "model", files[sizes[0]][0])
    by_way: dict[str, list[Timing]] = {FILES: [], TABLE: []}
    memory: list[tuple[int, int]] = []
    for rows in sizes:
        session = spark_work.session()
        timings, of_worker = _measure(options, session, files[rows], model)
        memory.append((of_worker, psutil.Process().memory_info().rss))
        session.stop()
        for name, timing in timings.items():
            by_way[name].append(timing)
    marks = [
        Mark(f"{name}: cost of a row, {sizes[-1]:,} / {sizes[1]:,} rows", growth(found, sizes), GROWTH_MARK, "at most")
        for name, found in by_way.items()
    ]
    for place, name in enumerate(("a worker's largest memory", "the driver's memory")):
        grown = memory[-1][place] / memory[1][place]
        marks.append(Mark(f"{name}, {sizes[-1]:,} / {sizes[1]:,} rows", grown, MEMORY_MARK, "at most"))
    rows_of_memory = tuple(
        (f"{rows:,}", megabytes(of_worker), megabytes(of_driver))
        for rows, (of_worker, of_driver) in zip(sizes, memory, strict=True)
    )
    held = Table("Memory", ("rows", "a worker's largest", "the driver's Python, after"), rows_of_memory)
    return Report(BENCHMARK.name, BENCHMARK.question, (*cost_tables(by_way, sizes), held), tuple(marks))


def _measure(options: Options, session: SparkSession, files: list[Path], model: Path) -> tuple[dict[str, Timing], int]:
    """Return the times of each way, and the largest resident memory of a worker in bytes."""
    from scoring.batch import score
    from scoring.counters import JobCounters
    from scoring.files import score_files

    target = options.scratch / "scores"
    told: list[JobCounters] = []

    def from_files() -> None:
        told.append(score_files(session, files, model, target, keys="key").counters)

    def from_table() -> None:
        score(spark_work.table(session, files), model, keys="key").write.parquet(str(target))

    ways = {FILES: from_files, TABLE: from_table}
    contenders = [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()]
    timings = interleave(contenders, options.rounds)
    return timings, max(counters.peak_memory_bytes for counters in told)


BENCHMARK = Benchmark("score_growth", question_of(__doc__), 20_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
