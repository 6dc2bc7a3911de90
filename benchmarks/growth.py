"""Do the cost of a row and the memory stay the same, however large the table that is written, read or scored?

Costs are those of a row in the largest table next to a tenth of it. Memory is that of a task which writes a table
by itself, each time in a new Python worker; and that of workers and driver after a table was scored, each in a new
process.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil
from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave, peak_bytes
from benchmarks.report import Report, Table, megabytes, rate
from benchmarks.score_files import FILES, TABLE
from benchmarks.score_model import export_model
from benchmarks.spark_work import drain, emptied
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

STEPS = (100, 10, 1)
"""The tables have the largest one's rows divided by these."""
GROWTH_MARK = 1.1
"""Cost of a row, and memory; pyarrow's buffers vary."""
START_ROWS = 1_000
"""A job of so few rows takes hardly more than its start."""
WRITER_SHARES = (100, 20, 4)
"""Tables whose writers' memory is measured have the largest one's rows divided by these."""
_POLL_SECONDS = 0.01

Ways = Mapping[str, Callable[[], object]]


def run(options: Options) -> Report:
    """Measure costs and memory of each way on tables of growing size."""
    sizes = [max(1, options.rows // step) for step in STEPS]
    files = {rows: parquet_files(options.scratch, Kind.CLICKS, rows) for rows in (START_ROWS, *sizes)}
    model = in_new_process(export_model, options.scratch / "model", files[sizes[0]][0])
    copied = _transposed(in_new_process(_copied, options, rows) for rows in sizes)
    start = in_new_process(_scored, options, files[START_ROWS], model).timings
    found = [in_new_process(_scored, options, files[rows], model) for rows in sizes]
    by_way = copied | _transposed(scored.timings for scored in found)
    writers, writer_marks = in_new_process(_writer_memory, options)
    before, last = found[1], found[-1]
    grown = {
        "a worker's largest memory": last.worker_bytes / before.worker_bytes,
        "the driver's memory": last.driver_bytes / before.driver_bytes,
    }
    marks = (
        *(
            Mark(f"{name}: cost of a row, {_compared(sizes)}", growth(times, sizes), GROWTH_MARK, "at most")
            for name, times in by_way.items()
        ),
        *(Mark(f"scoring: {what}, {_compared(sizes)}", share, GROWTH_MARK, "at most") for what, share in grown.items()),
        *writer_marks,
    )
    tables = (*cost_tables(by_way, sizes), beyond_start(start, by_way, sizes), _memory(found, sizes), writers)
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks)


def growth(timings: Sequence[Timing], sizes: Sequence[int]) -> float:
    """Return the cost of a row in the largest table, divided by its cost in the next smaller one.

    The smallest table does not show it: starting a job takes as long as its rows.
    """
    return (timings[-1].median / sizes[-1]) / (timings[-2].median / sizes[-2])


def cost_tables(by_way: Mapping[str, Sequence[Timing]], sizes: Sequence[int]) -> list[Table]:
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


def _transposed(by_size: Iterator[Mapping[str, Timing]]) -> dict[str, list[Timing]]:
    by_way: dict[str, list[Timing]] = {}
    for timings in by_size:
        for name, timing in timings.items():
            by_way.setdefault(name, []).append(timing)
    return by_way


def _compared(sizes: Sequence[int]) -> str:
    return f"{sizes[-1]:,} / {sizes[-2]:,} rows"


def _copied(options: Options, rows: int) -> dict[str, Timing]:
    """Return the times of tables that become files, and of files that become tables."""
    from mirrorspark.data_pipelines.tfrecords import read_tfrecords, write_tfrecords, write_tfrecords_from_parquet

    spark = spark_work.session()
    files = parquet_files(options.scratch, Kind.NUMBERS, rows)
    df = spark_work.table(spark, files)
    names = [str(file) for file in files]
    target, source = options.scratch / "written", options.scratch / "to-read"
    write_tfrecords_from_parquet(spark, names, str(source), mode="overwrite", layout="block")
    ways: Ways = {
        "DataFrame to block layout": partial(write_tfrecords, df, str(target), layout="block"),
        "Parquet to block layout": partial(write_tfrecords_from_parquet, spark, names, str(target), layout="block"),
        "block layout to DataFrame": partial(drain, read_tfrecords(spark, str(source), schema=df.schema)),
    }
    # The largest takes minutes; caches and kernels are warm from the ones before it.
    timings = _timed(ways, target, options.rounds, warm_ups=0 if rows == options.rows else 1)
    spark.stop()
    return timings


def _timed(ways: Ways, target: Path, rounds: int, *, warm_ups: int = 1) -> dict[str, Timing]:
    contenders = [Contender(name, work, emptied(target)) for name, work in ways.items()]
    timings = interleave(contenders, rounds, warm_ups=warm_ups)
    emptied(target)()
    return timings


@dataclass(frozen=True)
class _Scored:
    """Times and memory of scoring one table in a process of its own.

    Attributes:
        timings: Measured times of each way.
        worker_bytes: Largest resident memory of a Python worker.
        driver_bytes: Resident memory of the driver's Python afterwards.
        jvm_bytes: Largest resident memory of the driver's JVM.
    """

    timings: Mapping[str, Timing]
    worker_bytes: int
    driver_bytes: int
    jvm_bytes: int


def _scored(options: Options, files: Sequence[Path], model: Path) -> _Scored:
    from mirrorspark.scoring.batch import score
    from mirrorspark.scoring.files import score_files
    from mirrorspark.scoring.task.counts import JobCounters

    session, target = spark_work.session(), options.scratch / "scores"
    told: list[JobCounters] = []

    def from_files() -> None:
        told.append(score_files(session, files, model, target, keys="key").counters)

    def from_table() -> None:
        score(spark_work.table(session, files), model, keys="key").write.parquet(str(target))

    timings = _timed({FILES: from_files, TABLE: from_table}, target, options.rounds)
    driver = psutil.Process()
    (jvm,) = [child for child in driver.children() if child.name() == "java"]
    worker_bytes = max(counters.peak_memory_bytes for counters in told)
    scored = _Scored(timings, worker_bytes, driver.memory_info().rss, peak_bytes(jvm.pid))
    session.stop()
    return scored


def beyond_start(start: Mapping[str, Timing], by_way: Mapping[str, Sequence[Timing]], sizes: Sequence[int]) -> Table:
    """Return the cost of a row without the start of the job, per way and size.

    Args:
        start: Times of a job of next to no rows.
        by_way: Times of tables of growing size, of these ways and of others.
        sizes: Their rows.
    """
    columns = ("way", "the start, seconds", *(f"{rows:,} rows, microseconds per row" for rows in sizes))
    cells = tuple(
        (
            name,
            f"{started.median:.3f}",
            *(
                f"{(timing.median - started.median) / rows * 1e6:.3f}"
                for rows, timing in zip(sizes, by_way[name], strict=True)
            ),
        )
        for name, started in start.items()
    )
    note = (
        f"Why a row of a small table costs more: a job of {START_ROWS:,} rows takes the seconds of the first column "
        "(Spark plans it and starts its tasks, the driver looks at files and model), which a large table's rows share "
        "and a small one's do not. The others are of what a job takes beyond that."
    )
    return Table("Beyond the start of a job", columns, cells, note)


def _memory(found: Sequence[_Scored], sizes: Sequence[int]) -> Table:
    columns = ("rows", "a worker's largest", "the driver's Python, after", "the driver's JVM, largest")
    cells = tuple(
        (f"{rows:,}", *map(megabytes, (scored.worker_bytes, scored.driver_bytes, scored.jvm_bytes)))
        for rows, scored in zip(sizes, found, strict=True)
    )
    millions, before, last = (sizes[-1] - sizes[-2]) / 1e6, found[-2], found[-1]
    note = (
        f"From {sizes[-2]:,} rows to {sizes[-1]:,}, a worker's largest memory grows by "
        f"{megabytes((last.worker_bytes - before.worker_bytes) / millions)} per million rows, the driver's Python by "
        f"{megabytes((last.driver_bytes - before.driver_bytes) / millions)}. In a local session the driver's JVM runs "
        "Spark's part of the tasks, too, and fills its heap before it clears it."
    )
    return Table("Memory of scoring", columns, cells, note)


def _writer_memory(options: Options) -> tuple[Table, tuple[Mark, ...]]:
    """Write tables of growing size in one task each; a new Python worker every time, so that none inherits memory."""
    # A worker that is used again keeps what it once took from the system.
    os.environ["PYSPARK_SUBMIT_ARGS"] = "--conf spark.python.worker.reuse=false pyspark-shell"
    sizes = [max(1, options.rows // share) for share in WRITER_SHARES]
    # The same files, only more of them: a reader's memory follows the size of a row group.
    file_rows = -(-sizes[0] // 4)
    spark = spark_work.session(slots=1)
    peaks: dict[str, list[float]] = {}
    for rows in sizes:
        for name, write in _writers(spark, options.scratch, rows, file_rows).items():
            peaks.setdefault(name, []).append(median(_peak_of(write) for _ in range(options.rounds)))
    spark.stop()
    columns = ("way", *(f"{rows:,} rows" for rows in sizes), "largest / smallest")
    cells = tuple(
        (name, *(megabytes(peak) for peak in found), f"{found[-1] / found[0]:.2f}") for name, found in peaks.items()
    )
    note = (
        "Peak resident memory of the Python worker (VmHWM), its libraries included; the median of rounds. Reading "
        f"Parquet takes the memory of a row group, here of {file_rows:,} rows; the largest table is dealt to "
        "several tasks, of which the highest peak counts."
    )
    marks = tuple(
        Mark(f"{name}: memory, {sizes[-1]:,} / {sizes[0]:,} rows", found[-1] / found[0], GROWTH_MARK, "at most")
        for name, found in peaks.items()
    )
    return Table("Memory of a task that writes: one slot, 42 columns of numbers", columns, cells, note), marks


def _writers(spark: SparkSession, scratch: Path, rows: int, file_rows: int) -> Ways:
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords, write_tfrecords_from_parquet

    files = parquet_files(scratch, Kind.NUMBERS, rows, file_rows=file_rows)
    target, names = str(scratch / "written"), [str(file) for file in files]
    of_table = partial(write_tfrecords, spark_work.table(spark, files).coalesce(1), target, mode="overwrite")
    return {
        "DataFrame to row layout": partial(of_table, layout="row"),
        "DataFrame to block layout": partial(of_table, layout="block"),
        "Parquet to block layout": partial(
            write_tfrecords_from_parquet, spark, names, target, mode="overwrite", layout="block"
        ),
    }


def _peak_of(work: Callable[[], object]) -> int:
    """Return the highest resident memory that a Python worker of Spark's reached during ``work``, in bytes."""
    with _watching() as highest:
        work()
    if not highest[0]:
        raise RuntimeError("no Python worker of Spark's was seen at work; run the benchmark again")
    return highest[0]


@contextmanager
def _watching() -> Iterator[list[int]]:
    """Yield a list whose one number is the highest memory of a worker seen so far.

    The kernel keeps each process's own peak, so a look at any time before a worker's end covers all the time before.
    """
    highest = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            highest[0] = max([highest[0], *map(peak_bytes, _workers())])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()


def _workers() -> list[int]:
    """Return the process ids of Spark's Python workers: children of its daemon, which itself runs none of the tasks.

    Benchmarks run alone, so they are looked for among all processes.
    """
    parents = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if "pyspark.daemon" in (process.info["cmdline"] or ()):
            parents[process.pid] = process.info["ppid"]
    return [process for process, parent in parents.items() if parent in parents]


BENCHMARK = Benchmark("growth", question_of(__doc__), 20_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
