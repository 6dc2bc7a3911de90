"""Runs several benchmarks one after the other, each in a process of its own, and lists the marks of all on one page."""

import argparse
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, add_common_flags, answer, scratch_folder
from benchmarks.report import SKIPPED, Report


@dataclass(frozen=True)
class Suite:
    """Benchmarks that belong together.

    Attributes:
        title: Heading of their part of the index.
        benchmarks: Their modules, in order.
    """

    title: str
    benchmarks: tuple[str, ...]


SUITES: Mapping[str, Suite] = {
    "data_path": Suite(
        "Data path",
        (
            "encode_rows",
            "spark_tfrecords",
            "read_batches",
            "growth",
            "lookup_rows",
            "jvm_connector",
        ),
    ),
    "training": Suite(
        "Training",
        (
            "train_steps",
            "train_strategies",
            "train_models",
            "starts",
            "train_kills",
            "train_local_updates",
            "train_end_to_end",
            "train_fleet",
            "train_gpu",
        ),
    ),
    "scoring": Suite(
        "Scoring",
        (
            "score_files",
            "over_connect",
            "score_djl",
            "score_sparse",
            "score_row",
            "score_parity",
            "serve_online",
            "lookup_precomputed",
            "recommend",
            "rerank",
            "fleet",
            "fleet_growth",
        ),
    ),
}
"""By name: the module that runs one, as ``python -m benchmarks.NAME``."""
INDEX = "index.md"


def run_one(name: str, scale: float, rounds: int, scratch: Path, cache: Path | None) -> tuple[Report, float]:
    """Run the benchmark called ``name`` and return its report and how many seconds it took."""
    benchmark: Benchmark = import_module(f"benchmarks.{name}").BENCHMARK
    start = time.monotonic()
    report = answer(benchmark, Options(max(1, int(benchmark.rows * scale)), rounds, scratch, cache))
    return report, time.monotonic() - start


def end_with_parent() -> None:
    """Let this process end with the one that started it: it would go on and disturb the next measurement."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes that were started call it"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def overview(folder: Path) -> str:
    """Return the index of the pages in ``folder``, with their marks in the same words.

    Pages are measured one at a time or all together, so each may have its own day and commit.
    """
    parts = ["# Benchmarks", "Each page answers one question, with both sides measured in one run."]
    for name, suite in SUITES.items():
        pages = [Page.read(path) for each in suite.benchmarks if (path := folder / f"{each}.md").is_file()]
        marks = [f"| [{page.name}]({page.name}.md) {mark}" for page in pages for mark in page.marks]
        if not pages:
            continue
        parts.append(f"## {suite.title}")
        if marks:
            head = ["| benchmark | mark | found | asked for |  |", "| --- | --- | ---: | ---: | ---: |"]
            parts.append("\n".join([*head, *marks]))
        parts.append("\n".join(f"- [{page.name}]({page.name}.md) ({page.measured}): {page.question}" for page in pages))
        parts.append(f"Run again: `python -m benchmarks.{name}`")
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Page:
    """The parts for the overview of a page that :meth:`benchmarks.report.Report.save` has written.

    Attributes:
        name: The benchmark.
        question: The question, or the reason for which it was skipped.
        marks: The rows of the table of marks, unchanged.
        measured: Day and commit.
    """

    name: str
    question: str
    marks: tuple[str, ...]
    measured: str

    @classmethod
    def read(cls, path: Path) -> "Page":
        """Read a page."""
        text = path.read_text(encoding="utf-8")
        _, question, *rest = text.split("\n\n")
        if rest and rest[0].startswith(SKIPPED):
            question = rest[0]
        table = text.partition("## Marks\n\n")[2].partition("\n\n")[0]
        facts = dict(re.findall(r"^- (date|commit): (.*)$", text, re.MULTILINE))
        return cls(path.stem, question, tuple(table.splitlines()[2:]), ", ".join(facts.values()))


def main(suite: str, description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names."""
    names = SUITES[suite].benchmarks
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{suite}", description=description)
    parser.add_argument(
        "--only",
        nargs="*",
        choices=names,
        default=names,
        help="run these (default: all); none renews the index alone",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of each one's rows; 0.05 is a quick try")
    add_common_flags(parser)
    flags = parser.parse_args(arguments)
    failed = []
    context = multiprocessing.get_context("spawn")
    for name in flags.only:
        # A folder each: leftovers of one would fill the disk for the next.
        own_process = ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
        with scratch_folder(flags.scratch) as scratch, own_process as pool:
            done = pool.submit(run_one, name, flags.scale, flags.rounds, scratch, flags.cache)
            if (error := done.exception()) is not None:
                # The others are reported nevertheless: they took an hour.
                traceback.print_exception(error)
                failed.append(name)
                continue
            report, seconds = done.result()
        print(f"{report.save(flags.output)} ({seconds:.0f} s)", flush=True)
        for mark in report.marks:
            print(
                f"  {mark.what}: {mark.found:.3g}, {mark.bound} {mark.limit:g}: {'met' if mark.is_met else 'NOT MET'}"
            )
        if report.skipped:
            print(f"  skipped: {report.skipped}")
    page = flags.output / INDEX
    page.write_text(overview(flags.output), encoding="utf-8")
    print(page)
    if failed:
        sys.exit(f"{', '.join(failed)} failed; run again with --only {' '.join(failed)}")
