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
    from mirrorspark.scoring.fleet.score import ScoredFleet

STEP = 10
MEMORY_MARK = 1.2


def run(options: Options) -> Report:
    """Time the tables in turns; the largest one counts once."""
    from mirrorspark.scoring.fleet.score import score_fleet

    middle = max(STEP, options.rows // STEP)
    folders = {rows: options.scratch / f"rows-{rows}" for rows in (middle // STEP, middle, middle * STEP)}
    for rows in (middle // STEP, middle):
        write_wide(folders[rows], rows)
    _repeat(folders[middle], folders[middle * STEP])
    session, target = spark_work.session(), options.scratch / "scores"
    fleets = {models: Coefficients.of(models).fleet() for models in (MODELS, MANY)}
    found: dict[str, ScoredFleet] = {}

    def score(name: str, rows: int, models: int) -> None:
        found[name] = score_fleet(
            folders[rows],
            fleets[models],
            target,
            keys="key",
            layout="packed",
            outputs=("binary", "Rank"),
            spark=session,
        )

    cases = {f"{MODELS} models, {rows:,} rows": (rows, MODELS) for rows in folders}
    cases[f"{MANY:,} models, {middle:,} rows"] = (middle, MANY)
    ways: dict[str, Callable[[], object]] = {name: partial(score, name, *case) for name, case in cases.items()}
    timings = interleave(
        [Contender(name, work, spark_work.emptied(target)) for name, work in ways.items()], options.rounds
    )
    session.stop()
    rates = {name: rows * models / timings[name].median / spark_work.SLOTS for name, (rows, models) in cases.items()}
    memory = {name: scored.counters.peak_memory_bytes for name, scored in found.items()}
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
