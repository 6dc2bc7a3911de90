"""Runs several benchmarks one after the other, each in a process of its own, and lists their marks on one page."""

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, add_common_flags, answer, scratch_folder
from benchmarks.report import Report, conditions, marks_table


@dataclass(frozen=True)
class Suite:
    """Benchmarks that belong together.

    Attributes:
        name: The module below ``benchmarks`` that runs them.
        title: Heading of the page that lists them.
        benchmarks: Their modules, in order.
        page: Name of that page.
        command: How to run it again.
    """

    name: str
    title: str
    benchmarks: tuple[str, ...]
    page: str
    command: str


def run_one(name: str, scale: float, rounds: int, scratch: Path, cache: Path | None) -> tuple[Report, float]:
    """Run the benchmark called ``name`` and return its report and how many seconds it took."""
    benchmark: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    start = time.monotonic()
    report = answer(benchmark, Options(max(1, int(benchmark.rows * scale)), rounds, scratch, cache))
    return report, time.monotonic() - start


def overview(suite: Suite, reports: Sequence[Report], rounds: int) -> str:
    """Return the page that lists the marks of all reports and links to them."""
    marks = [(f"[{report.name}]({report.name}.md)", mark) for report in reports for mark in report.marks]
    without = [f"- [{report.name}]({report.name}.md): {report.skipped or report.question}" for report in reports]
    parts = [f"# {suite.title}", "Each page answers one question, with both sides measured in one run."]
    if marks:
        parts.append(marks_table("Marks", marks).markdown())
    parts.append("\n".join(["## Pages", "", *without]))
    parts.append("\n".join(["## Measured on", "", *(f"- {key}: {it}" for key, it in conditions(rounds).items())]))
    return "\n\n".join([*parts, f"Run again: `{suite.command}`"]) + "\n"


def main(suite: Suite, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    names = suite.benchmarks
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{suite.name}", description=description)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="run these (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of each one's rows; 0.05 is a quick try")
    add_common_flags(parser)
    flags = parser.parse_args(arguments)
    reports, failed = [], []
    context = multiprocessing.get_context("spawn")
    for name in flags.only:
        # A folder each: what one leaves behind would fill the disk for the next.
        with scratch_folder(flags.scratch) as scratch, ProcessPoolExecutor(1, mp_context=context) as pool:
            done = pool.submit(run_one, name, flags.scale, flags.rounds, scratch, flags.cache)
            if (error := done.exception()) is not None:
                # The others are told all the same: they took an hour.
                traceback.print_exception(error)
                failed.append(name)
                continue
            report, seconds = done.result()
        reports.append(report)
        print(f"{report.save(flags.output)} ({seconds:.0f} s)", flush=True)
        for mark in report.marks:
            print(
                f"  {mark.what}: {mark.found:.3g}, {mark.bound} {mark.limit:g}: {'met' if mark.is_met else 'NOT MET'}"
            )
        if report.skipped:
            print(f"  skipped: {report.skipped}")
    if failed:
        sys.exit(f"{', '.join(failed)} failed; run again with --only {' '.join(failed)}")
    if flags.only == names:
        page = flags.output / suite.page
        page.write_text(overview(suite, reports, flags.rounds), encoding="utf-8")
        print(page)
