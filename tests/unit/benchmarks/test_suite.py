"""Running of benchmarks: options, processes, the index of the pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.benchmark import Benchmark, Options, answer, on_one_core, question_of, scratch_folder
from benchmarks.measure import Mark
from benchmarks.report import REPOSITORY, Report, Table
from benchmarks.suite import overview


def cores_in_use() -> int:
    """Return the number of cores that the process may run on; it is called in another one."""
    return len(os.sched_getaffinity(0))


@pytest.mark.parametrize("knob", ["rows", "rounds"])
def test_options_below_one_are_refused(knob: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{knob} 0 is below 1"):
        Options(**{"rows": 1, "rounds": 1, "scratch": tmp_path} | {knob: 0})


@pytest.mark.process
def test_report_says_how_to_run_it_again(tmp_path: Path) -> None:
    benchmark = Benchmark("sizes", "How large?", 100, lambda options: Report("sizes", "How large?", ()))

    usual = answer(benchmark, Options(100, 3, tmp_path))
    other = answer(benchmark, Options(7, 5, tmp_path))

    assert usual.command == "python -m benchmarks.sizes"
    assert other.command == "python -m benchmarks.sizes --rows 7 --rounds 5"
    assert {"machine", "commit", "packages"} <= set(usual.conditions)


def test_question_is_the_docstring_in_markdown() -> None:
    assert question_of("How fast?\n\nIts ``noop`` format.\n") == "How fast? Its `noop` format."


def test_scratch_folder_is_removed(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "scratch") as folder:
        (folder / "table").write_bytes(b"rows")

    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.process
def test_a_benchmark_ends_with_the_suite_that_is_killed() -> None:
    """Its process has the pipe, too: that is at its end when both are."""
    program = """
import concurrent.futures, multiprocessing, time
from benchmarks.suite import end_with_parent
context = multiprocessing.get_context("spawn")
pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)
print(pool.submit(len, "at work").result(), flush=True)
pool.submit(time.sleep, 300).result()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as suite:
        assert suite.stdout is not None
        assert suite.stdout.readline() == "7\n"
        suite.kill()
        assert suite.communicate(timeout=60)[0] == ""


def test_one_core_means_one_core() -> None:
    assert on_one_core(cores_in_use) == 1


def test_the_index_lists_the_marks_of_the_pages_that_lie_there_and_how_to_run_again(tmp_path: Path) -> None:
    measured = {"date": "2026-01-31", "commit": "0123456789"}
    table = Table("Sizes", ("way", "size"), (("row", "9"),))
    Report("train_steps", "How fast?", (table,), (Mark("a / b", 2.0, 3.0),), conditions=measured).save(tmp_path)
    Report("jvm_connector", "How fast?", (), skipped="Maven cannot be reached.", conditions=measured).save(tmp_path)

    page = overview(tmp_path)

    titles = [line for line in page.splitlines() if line.startswith("#")]
    assert titles == ["# Benchmarks", "## Data path", "## Training"]
    assert "- [train_steps](train_steps.md) (2026-01-31, 0123456789): How fast?\n" in page
    assert "- [jvm_connector](jvm_connector.md) (2026-01-31, 0123456789): **Skipped**: Maven cannot be reached." in page
    assert "| [train_steps](train_steps.md) | a / b | 2.00 | at least 3.00 | **not met** |" in page
    assert page.endswith("Run again: `python -m benchmarks.training`\n")
