"""What does a validation of 50 slices cost, next to scoring the rows with both models alone, and does it grow?

Candidate and champion score every row, and ``validate`` measures all rows and 50 slices of them in the same pass. The
rows that are scored alone stay in their tasks.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.cost_per_row import GROWTH_MARK, STEPS, cost_tables, growth
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.report import Report
from benchmarks.score_model import KEY, export_model
from benchmarks.spark_work import drain
from benchmarks.tables import Kind, parquet_files
from benchmarks.train_work import in_new_process

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from mirrorspark.lifecycle.gate.slices import Slicing

SCORED, ALL, SLICED = "scored by both, not measured", "validated, all rows", "validated, 50 slices"
SLICE_MARK = 1.5
# 50 slices: by two columns of ids, which are in the logs more often the smaller they are, and by a hash.
_SLICES = {"few": ("int_00", 2), "some": ("int_12 % 8", 8), "hashed": ("pmod(xxhash64(key), 40)", 40)}


def run(options: Options) -> Report:
    """Validate tables of growing size; the largest is measured once."""
    sizes = [max(4, options.rows // step) for step in STEPS]
    files = {rows: parquet_files(options.scratch, Kind.CLICKS, rows) for rows in sizes}
    folders = [options.scratch / name for name in ("candidate", "champion")]
    models = [in_new_process(export_model, folder, files[sizes[0]][0]) for folder in folders]
    session = spark_work.session()
    by_way: dict[str, list[Timing]] = {}
    for rows in sizes:
        contenders = _contenders(spark_work.table(session, files[rows]), models)
        is_largest = rows == sizes[-1]
        timings = interleave(contenders, 1 if is_largest else options.rounds, warm_ups=0 if is_largest else 1)
        for way, timing in timings.items():
            by_way.setdefault(way, []).append(timing)
    session.stop()
    slices = by_way[SLICED][-1].median / by_way[SCORED][-1].median
    marks = (
        Mark(
            f"{SLICED}: cost of a row, {sizes[-1]:,} / {sizes[1]:,} rows",
            growth(by_way[SLICED], sizes),
            GROWTH_MARK,
            "at most",
        ),
        Mark(f"{SLICED} / {SCORED}, {sizes[-1]:,} rows", slices, SLICE_MARK, "at most"),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(cost_tables(by_way, sizes)), marks)


def _contenders(table: "DataFrame", models: list[Path]) -> list[Contender]:
    from mirrorspark.lifecycle.gate.slices import Slicing

    slices = [Slicing(expression, name) for name, (expression, _) in _SLICES.items()]
    ways: dict[str, Callable[[], object]] = {
        SCORED: partial(_score, table, models),
        ALL: partial(_validate, table, models, []),
        SLICED: partial(_validate, table, models, slices),
    }
    return [Contender(name, work) for name, work in ways.items()]


def _score(table: "DataFrame", models: list[Path]) -> None:
    from mirrorspark.scoring.batch import score

    kept = list(table.columns)
    for place, model in enumerate(models):
        table = score(table, model, keys=kept, with_version=False).withColumnRenamed("score", f"score_{place}")
        kept.append(f"score_{place}")
    drain(table.select("label", "score_0", "score_1"))


def _validate(table: "DataFrame", models: list[Path], slices: "list[Slicing]") -> None:
    from mirrorspark.lifecycle.gate.validate import validate

    candidate, champion = models
    found = validate(candidate, champion, table, slices, label="label", keys=KEY, single_rows=0)
    of_slices = sum(count for _, count in _SLICES.values()) if slices else 0
    if len(found.facts.slices) != 1 + of_slices:
        raise RuntimeError(f"{len(found.facts.slices)} slices were measured, not {1 + of_slices}")


BENCHMARK = Benchmark("validate_slices", question_of(__doc__), 20_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
