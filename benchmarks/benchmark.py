"""Common parts of the benchmarks: options, command line, data, scratch folder."""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.report import REPOSITORY, Report, conditions

Result = TypeVar("Result")

PAGES = REPOSITORY / "docs" / "benchmarks"

# TensorFlow reads these when it is imported, Spark's Python workers when they start.
_ENVIRONMENT = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True)
class Options:
    """Settings of one run of a benchmark.

    Attributes:
        rows: Rows of its main table.
        rounds: Measurements per side; the page shows medians.
        scratch: Folder for tables and outputs, there before and removed after.
        cache: Folder that keeps downloads from registries; None downloads them again into ``scratch``.
    """

    rows: int
    rounds: int
    scratch: Path
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")


@dataclass(frozen=True)
class Benchmark:
    """One question.

    Attributes:
        name: Its module below ``benchmarks``, and its page.
        question: The question, in a sentence or two.
        rows: Default number of rows of its main table.
        run: Measures and answers.
    """

    name: str
    question: str
    rows: int
    run: Callable[[Options], Report]


def question_of(module: str | None) -> str:
    """Return a module's docstring as the page's Markdown has it."""
    return " ".join((module or "").split()).replace("``", "`")


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that one benchmark and all of them share."""
    parser.add_argument("--rounds", type=int, default=3, help="measurements per side, at least 3 for a page to keep")
    parser.add_argument("--output", type=Path, default=PAGES, help="folder of the pages (default: docs/benchmarks)")
    parser.add_argument("--scratch", type=Path, help="folder for tables and outputs (default: a temporary one)")
    parser.add_argument("--cache", type=Path, help="folder that keeps what is fetched from registries")


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark by its command line, print its page and write it."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}", description=benchmark.question)
    parser.add_argument("--rows", type=int, default=benchmark.rows, help=f"default {benchmark.rows:,}")
    add_common_flags(parser)
    flags = parser.parse_args(arguments)
    with scratch_folder(flags.scratch) as scratch:
        report = answer(benchmark, Options(flags.rows, flags.rounds, scratch, flags.cache))
    print(report.markdown())
    print(f"written to {report.save(flags.output)}")


def answer(benchmark: Benchmark, options: Options) -> Report:
    """Run ``benchmark`` in this process and return its report, with all that the page has next to the figures."""
    prepare_environment()
    report = benchmark.run(options)
    rows = "" if options.rows == benchmark.rows else f" --rows {options.rows}"
    rounds = "" if options.rounds == 3 else f" --rounds {options.rounds}"
    return dataclasses.replace(
        report,
        conditions=conditions(options.rounds) | dict(report.conditions),
        command=f"python -m benchmarks.{benchmark.name}{rows}{rounds}",
    )


def prepare_environment() -> None:
    """Set the variables that TensorFlow and Spark need before they are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Spark's Python workers import the benchmarks' task bodies; the benchmarks are not installed.
    paths = [
        str(REPOSITORY / "src"),
        str(REPOSITORY),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


@contextlib.contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Yield a new folder below ``parent`` (None: the system's temporary folder) and remove it at the end."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mirrorspark-benchmark-", dir=parent) as folder:
        yield Path(folder)


def on_one_core(function: Callable[..., Result], *arguments: object) -> Result:
    """Return the result of ``function`` in a new process whose threads all run on one core."""
    # A core is chosen before any library starts threads, which is why this takes a process of its own.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_pin_to_one_core) as pool:
        return pool.submit(function, *arguments).result()


def _pin_to_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
