"""Does an inference of `score_fleet` cost more time or memory in a larger fleet, and does `plan_fleet` predict a run?

From files to files, packed. 500 models score tables of 20,000 rows up to 2 million, the last of which has each file of
the middle one ten times; 4,500 models score the middle one in one job. A model reads 100 of 2,000 columns. A plan is
measured on a sample, for the cores of this machine; `run_fleet` takes its sizes for a tenth, a third and all of the
middle table.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.fleet import MANY, MANY_MARK, MODELS, Coefficients, write_wide
from benchmarks.growth import GROWTH_MARK
from benchmarks.measure import Contender, Mark, interleave
from benchmarks.report import Report, Table, megabytes, rate, significant

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from mirrorspark.fleet.score import ScoredFleet

STEP = 10
MEMORY_MARK = 1.2
PLANNED_SHARES = (10, 3, 1)
PLAN_MARK = 0.2
LAYOUT = "packed"


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
        return score_fleet(folders[rows], fleets[models], target, keys="key", layout=LAYOUT, spark=session)

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
    plans, mark = _plans(options, middle)
    tables = (Table("Files to files", columns, cells), plans)
    return Report(BENCHMARK.name, BENCHMARK.question, tables, (*marks, mark))


def _plans(options: Options, all_rows: int) -> tuple[Table, Mark]:
    """Plan and run a tenth, a third and all of the rows."""
    from mirrorspark.fleet.runs.planning.probe import plan_fleet
    from mirrorspark.fleet.runs.run import run_fleet

    session, fleet = spark_work.session(), Coefficients.of(MODELS).fleet()
    lines, errors = [], []
    for share in PLANNED_SHARES:
        rows = max(1, all_rows // share)
        folder = options.scratch / f"wide-{share}"
        write_wide(folder, rows)
        plan = plan_fleet(session, fleet, folder, keys="key", cores=spark_work.SLOTS, layout=LAYOUT)
        seconds = []
        for number in range(options.rounds):
            begin = time.perf_counter()
            run_fleet(
                session,
                fleet,
                folder,
                options.scratch / f"scores-{share}-{number}",
                keys="key",
                layout=LAYOUT,
                models_per_microbatch=plan.models_per_microbatch,
                rows_per_microbatch=plan.rows_per_microbatch,
                at_once=plan.at_once,
            )
            seconds.append(time.perf_counter() - begin)
        took, predicted = median(seconds), plan.hours * 3600
        errors.append(abs(predicted / took - 1))
        parts = [plan.read_core_hours, plan.compute_core_hours, plan.write_core_hours]
        starts = 3600 * (plan.start_hours + plan.waiting_hours)
        of_parts = " / ".join(f"{part / sum(parts):.0%}" for part in parts)
        cells = (
            f"{rows:,}",
            f"{predicted:.1f}",
            f"{starts:.1f}",
            f"{took:.1f}",
            f"{predicted / took - 1:+.0%}",
            of_parts,
        )
        lines.append((*cells, plan.bottleneck, significant(plan.workload.inferences / took / spark_work.SLOTS / 1e6)))
    session.stop()
    columns = ("rows", "predicted, s", "starts, s", "measured, s", "difference", "read / compute / write", "bottleneck")
    table = Table(f"Plans: {MODELS} models, {spark_work.SLOTS} cores", (*columns, "M inferences/s/core"), tuple(lines))
    mark = Mark("largest difference of prediction and measurement", max(errors), PLAN_MARK, "at most")
    return table, mark


def _repeat(folder: Path, target: Path) -> None:
    """Make a table that has each file of ``folder`` several times."""
    target.mkdir()
    for file in sorted(folder.iterdir()):
        for number in range(STEP):
            (target / f"{number}-{file.name}").hardlink_to(file)


BENCHMARK = Benchmark("fleet_growth", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
