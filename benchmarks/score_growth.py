"""Does a row cost the same in a small table and in a large one, when it is scored, and does memory stay where it is?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from benchmarks.writer_memory import peak_bytes

# A worker that has scored a hundred times as many rows may hold so much more: what pyarrow buffers varies.
MEMORY_MARK = 1.1
START_ROWS = 1_000
"""A job of so few rows takes hardly more than its start."""


@dataclass(frozen=True)
class _Scored:
    """What came of scoring one table in a session of its own.

    Attributes:
        timings: Of each way.
        worker_bytes: Largest resident memory of a Python worker.
        driver_bytes: Resident memory of the driver's Python afterwards.
        jvm_bytes: Largest resident memory of the driver's JVM so far.
    """

    timings: Mapping[str, Timing]
    worker_bytes: int
    driver_bytes: int
    jvm_bytes: int


def run(options: Options) -> Report:
    """Score tables of growing size, each in a session of its own, whose workers have held no other."""
    sizes = [max(1, options.rows // step) for step in STEPS]
    files = {rows: parquet_files(options.scratch, Kind.CLICKS, rows) for rows in (START_ROWS, *sizes)}
    model = in_new_process(export_model, options.scratch / "model", files[sizes[0]][0])
    start = _scored(options, files[START_ROWS], model).timings
    found = [_scored(options, files[rows], model) for rows in sizes]
    by_way = {name: [scored.timings[name] for scored in found] for name in (FILES, TABLE)}
    marks = [
        Mark(f"{name}: cost of a row, {sizes[-1]:,} / {sizes[1]:,} rows", growth(times, sizes), GROWTH_MARK, "at most")
        for name, times in by_way.items()
    ]
    before, last = found[1], found[-1]
    for what, grown in (
        ("a worker's largest memory", last.worker_bytes / before.worker_bytes),
        ("the driver's memory", last.driver_bytes / before.driver_bytes),
    ):
        marks.append(Mark(f"{what}, {sizes[-1]:,} / {sizes[1]:,} rows", grown, MEMORY_MARK, "at most"))
    tables = (*cost_tables(by_way, sizes), beyond_start(start, by_way, sizes), _memory(found, sizes))
    return Report(BENCHMARK.name, BENCHMARK.question, tables, tuple(marks))


def _scored(options: Options, files: list[Path], model: Path) -> _Scored:
    session = spark_work.session()
    timings, worker_bytes = _measure(options, session, files, model)
    driver = psutil.Process()
    (jvm,) = [child for child in driver.children() if child.name() == "java"]
    scored = _Scored(timings, worker_bytes, driver.memory_info().rss, peak_bytes(jvm.pid))
    session.stop()
    return scored


def _measure(options: Options, session: SparkSession, files: list[Path], model: Path) -> tuple[dict[str, Timing], int]:
    """Return the times of each way, and the largest resident memory of a worker in bytes."""
    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files
    from mirrorspark.scoring.task.scorer import JobCounters

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


def beyond_start(start: Mapping[str, Timing], by_way: Mapping[str, Sequence[Timing]], sizes: Sequence[int]) -> Table:
    """Return what a row costs of what a job takes beyond its start, per way and size.

    Args:
        start: Times of a job of next to no rows.
        by_way: Times of tables of growing size.
        sizes: Their rows.
    """
    columns = ("way", "the start, seconds", *(f"{rows:,} rows, microseconds per row" for rows in sizes))
    cells = tuple(
        (
            name,
            f"{start[name].median:.3f}",
            *(
                f"{(timing.median - start[name].median) / rows * 1e6:.3f}"
                for rows, timing in zip(sizes, timings, strict=True)
            ),
        )
        for name, timings in by_way.items()
    )
    note = (
        f"Why a row of a small table costs more: a job of {START_ROWS:,} rows takes the seconds of the first column "
        "(Spark plans it and starts its tasks, the driver looks at files and model), which a large table's rows share "
        "and a small one's do not. The others are of what a job takes beyond that."
    )
    return Table("Beyond the start of a job", columns, cells, note)


def _memory(found: Sequence[_Scored], sizes: Sequence[int]) -> Table:
    columns = ("rows", "a worker's largest", "the driver's Python, after", "the driver's JVM, largest so far")
    cells = tuple(
        (f"{rows:,}", *map(megabytes, (scored.worker_bytes, scored.driver_bytes, scored.jvm_bytes)))
        for rows, scored in zip(sizes, found, strict=True)
    )
    millions, before, last = (sizes[-1] - sizes[1]) / 1e6, found[1], found[-1]
    note = (
        f"From {sizes[1]:,} rows to {sizes[-1]:,}, a worker's largest memory grows by "
        f"{megabytes((last.worker_bytes - before.worker_bytes) / millions)} per million rows, the driver's Python by "
        f"{megabytes((last.driver_bytes - before.driver_bytes) / millions)}. In a local session the driver's JVM runs "
        "Spark's part of the tasks, too, and fills its heap before it clears it."
    )
    return Table("Memory", columns, cells, note)


BENCHMARK = Benchmark("score_growth", question_of(__doc__), 20_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
