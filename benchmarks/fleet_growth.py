"""Does an inference of `score_fleet` cost more, or take more memory, with more rows or with more models?

From files to files, packed. 500 models score tables of 20,000 rows up to 2 million, the last of which has each file of
the middle one ten times; 4,500 models score the middle one in one job. A model reads 100 of 2,000 columns.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.cost_per_row import GROWTH_MARK
from benchmarks.fleet import MANY, MANY_MARK, MODELS, Coefficients, write_wide
from benchmarks.measure import Contender, Mark, interleave
from benchmarks.report import Report, Table, megabytes, rate

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from mirrorspark.fleet.score import ScoredFleet

STEP = 10
MEMORY_MARK = 1.2


def run(options: Options) -> Report:
    """Time the smaller tables in turns, then the largest work once; then all of it with new processes."""
    from mirrorspark.fleet.score import score_fleet

    middle = max(STEP, options.rows // STEP)
    folders = {rows: options.scratch / f"rows-{rows}" for rows in (middle // STEP, middle, middle * STEP)}
    for rows in (middle // STEP, middle):
        write_wide(folders[rows], rows)
    _repeat(folders[middle], folders[middle * STEP])
    target = options.scratch / "scores"
    fleets = {models: Coefficients.of(models).fleet() for models in (MODELS, MANY)}
    cases = {f"{MODELS} models, {rows:,} rows": (rows, MODELS) for rows in folders}
    cases[f"{MANY:,} models, {middle:,} rows"] = (middle, MANY)

    def score(session: "SparkSession", rows: int, models: int) -> "ScoredFleet":
        return score_fleet(folders[rows], fleets[models], target, keys="key", layout="packed", spark=session)

    session = spark_work.session()
    ways: dict[str, Callable[[], object]] = {name: partial(score, session, *case) for name, case in cases.items()}
    contenders = [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()]
    timings = interleave(contenders[:2], options.rounds) | interleave(contenders[2:], 1, warm_ups=0)
    session.stop()
    rates = {name: rows * models / timings[name].median / spark_work.SLOTS for name, (rows, models) in cases.items()}
    memory = {}
    for name, case in cases.items():
        session = spark_work.session()  # whose Python workers are new: a process keeps the largest size that it has had
        spark_work.emptied(target)()
        memory[name] = score(session, *case).counters.peak_memory_bytes
        session.stop()
    _, usual, largest, many = cases
    marks = (
        Mark(f"cost of an inference, {largest} / {usual}", rates[usual] / rates[largest], GROWTH_MARK, "at most"),
        Mark(f"inferences/s/core, {many} / {usual}", rates[many] / rates[usual], MANY_MARK),
        Mark(f"memory of a process, {many} / {usual}", memory[many] / memory[usual], MEMORY_MARK, "at most"),
        Mark(f"memory of a process, {largest} / {usual}", memory[largest] / memory[usual], MEMORY_MARK, "at most"),
    )
    cells = tuple(
        (name, f"{timing.median:.3f}", rate(rates[name]), megabytes(memory[name]), f"{timing.spread:.0%}")
        for name, timing in timings.items()
    )
    columns = ("work", "median seconds", "inferences/s/core", "most memory of a process", "spread")
    return Report(BENCHMARK.name, BENCHMARK.question, (Table("Files to files", columns, cells),), marks)


def _repeat(folder: Path, target: Path) -> None:
    """Make a table that has each file of ``folder`` several times."""
    target.mkdir()
    for file in sorted(folder.iterdir()):
        for number in range(STEP):
            (target / f"{number}-{file.name}").hardlink_to(file)


BENCHMARK = Benchmark("fleet_growth", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
