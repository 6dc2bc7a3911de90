"""Does the memory of a task that writes TFRecords stay the same however many rows it writes?"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pyspark.sql import SparkSession

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, megabytes
from benchmarks.tables import Kind, parquet_files

SMALLEST_SHARE = 25
"""The largest table has this many times the rows of the smallest."""
GROWTH_MARK = 1.1
_POLL_SECONDS = 0.01


def run(options: Options) -> Report:
    """Write tables of growing size in one task each; a new Python worker every time, so that none inherits memory."""
    smallest = max(1, options.rows // SMALLEST_SHARE)
    sizes = sorted({smallest, max(1, options.rows // 5), options.rows})
    # The same files, only more of them: a reader's memory follows the size of a row group.
    file_rows = -(-smallest // 4)
    spark = _session_without_reuse()
    peaks: dict[str, list[list[int]]] = {}
    for rows in sizes:
        for name, write in _ways(spark, options.scratch, rows, file_rows).items():
            peaks.setdefault(name, []).append([_peak_of(write) for _ in range(options.rounds)])
    spark.stop()
    medians = {name: [sorted(rounds)[len(rounds) // 2] for rounds in by_size] for name, by_size in peaks.items()}
    columns = ("way", *(f"{rows:,} rows" for rows in sizes), "largest / smallest")
    cells = tuple(
        (name, *(megabytes(peak) for peak in found), f"{found[-1] / found[0]:.2f}") for name, found in medians.items()
    )
    note = (
        "Peak resident memory of the Python worker (VmHWM), its libraries included; the median of rounds. Reading "
        f"Parquet takes the memory of a row group, here of {file_rows:,} rows; the largest table is dealt to "
        "several tasks, of which the highest peak counts."
    )
    marks = tuple(
        Mark(f"{name}: {sizes[-1]:,} / {sizes[0]:,} rows", found[-1] / found[0], GROWTH_MARK, "at most")
        for name, found in medians.items()
    )
    table = Table("One slot, 42 columns of numbers", columns, cells, note)
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), marks)


def _session_without_reuse() -> SparkSession:
    # A worker that is used again keeps what it once took from the system.
    os.environ["PYSPARK_SUBMIT_ARGS"] = "--conf spark.python.worker.reuse=false pyspark-shell"
    return spark_work.session(slots=1)


def _ways(spark: SparkSession, scratch: Path, rows: int, file_rows: int) -> dict[str, Callable[[], object]]:
    from mirrorspark.data_pipelines.tfrecords import write_tfrecords, write_tfrecords_from_parquet

    files = parquet_files(scratch, Kind.NUMBERS, rows, file_rows=file_rows)
    df = spark_work.table(spark, files).coalesce(1)
    target = str(scratch / "written")
    names = [str(file) for file in files]
    return {
        "DataFrame to row layout": lambda: write_tfrecords(df, target, mode="overwrite", layout="row"),
        "DataFrame to block layout": lambda: write_tfrecords(df, target, mode="overwrite", layout="block"),
        "Parquet to block layout": lambda: write_tfrecords_from_parquet(
            spark, names, target, mode="overwrite", layout="block"
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

    The kernel keeps each process's own peak, so a look at any time before a worker's end tells of all the time before.
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


def peak_bytes(process: int, *, root: Path = Path("/proc")) -> int:
    """Return the peak resident memory of a process, in bytes; 0 where it has ended."""
    try:
        status = (root / str(process) / "status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


BENCHMARK = Benchmark("writer_memory", question_of(__doc__), 5_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
