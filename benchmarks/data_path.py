"""Runs all benchmarks of the data path one after the other, each in a process of its own, and lists their marks."""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, add_common_flags, answer, scratch_folder
from benchmarks.report import Report, conditions, marks_table

NAMES = (
    "encode_rows",
    "dataframe_to_rows",
    "dataframe_to_blocks",
    "parquet_to_blocks",
    "dataframe_from_tfrecords",
    "read_batches",
    "file_sizes",
    "writer_memory",
    "cost_per_row",
    "lookup_rows",
    "flights_conversion",
    "jvm_connector",
)


def run_one(name: str, scale: float, rounds: int, scratch: Path, cache: Path | None) -> tuple[Report, float]:
    """Run the benchmark called ``name`` and return its report and how many seconds it took."""
    benchmark: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    start = time.monotonic()
    report = answer(benchmark, Options(max(1, int(benchmark.rows * scale)), rounds, scratch, cache))
    return report, time.monotonic() - start


def overview(reports: Sequence[Report], rounds: int) -> str:
    """Return the page that lists the marks of all reports and links to them."""
    marks = [(f"[{report.name}]({report.name}.md)", mark) for report in reports for mark in report.marks]
    without = [f"- [{report.name}]({report.name}.md): {report.skipped or report.question}" for report in reports]
    parts = ["# Benchmarks of the data path", "Each page answers one question, with both sides measured in one run."]
    if marks:
        parts.append(marks_table("Marks", marks).markdown())
    parts.append("\n".join(["## Pages", "", *without]))
    parts.append("\n".join(["## Measured on", "", *(f"- {key}: {it}" for key, it in conditions(rounds).items())]))
    return "\n\n".join([*parts, "Run again: `make benchmarks`"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_path", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="run these (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each one's rows; 0.05 is a quick try")
    add_common_flags(parser)
    flags = parser.parse_args(arguments)
    reports = []
    context = multiprocessing.get_context("spawn")
    for name in flags.only:
        # A folder each: what one leaves behind would fill the disk for the next.
        with scratch_folder(flags.scratch) as scratch, ProcessPoolExecutor(1, mp_context=context) as pool:
            done = pool.submit(run_one, name, flags.scale, flags.rounds, scratch, flags.cache)
            report, seconds = done.result()
        reports.append(report)
        print(f"{report.save(flags.output)} ({seconds:.0f} s)", flush=True)
        for mark in report.marks:
            print(
                f"  {mark.what}: {mark.found:.3g}, {mark.bound} {mark.limit:g}: {'met' if mark.is_met else 'NOT MET'}"
            )
        if report.skipped:
            print(f"  skipped: {report.skipped}")
    if flags.only == NAMES:
        page = flags.output / "index.md"
        page.write_text(overview(reports, flags.rounds), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
