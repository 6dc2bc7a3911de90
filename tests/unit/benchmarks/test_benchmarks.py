"""The benchmarks' own arithmetic, and what they say where they cannot measure."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import data_path, quality, scoring, training
from benchmarks.benchmark import Benchmark, Options, answer, on_one_core, question_of, scratch_folder
from benchmarks.cost_per_row import cost_tables, growth
from benchmarks.file_sizes import size_table
from benchmarks.jvm_connector import ARTIFACT, reason_in
from benchmarks.measure import Mark, Timing
from benchmarks.printed import print_cells, print_titles
from benchmarks.report import REPOSITORY, Report
from benchmarks.score_growth import beyond_start
from benchmarks.suite import overview
from benchmarks.writer_memory import peak_bytes


def cores_in_use() -> int:
    """Return how many cores the process may run on; it is called in another one."""
    return len(os.sched_getaffinity(0))


@pytest.mark.parametrize("name", [*data_path.SUITE.benchmarks, *scoring.SUITE.benchmarks])
def test_every_benchmark_goes_by_the_name_of_its_file_and_asks_a_question(name: str) -> None:
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK

    assert benchmark.name == name
    assert "?" in benchmark.question


def test_every_benchmark_of_the_folder_is_run_by_one_of_the_commands() -> None:
    with_command = {
        path.stem
        for path in (REPOSITORY / "benchmarks").glob("*.py")
        if "BENCHMARK = Benchmark(" in path.read_text(encoding="utf-8")
    }

    suites = (data_path.SUITE, training.SUITE, scoring.SUITE)
    assert with_command == {name for suite in suites for name in suite.benchmarks}


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


def test_growth_compares_the_cost_of_a_row_in_the_two_largest_tables() -> None:
    timings = [Timing("write", (1.0,)), Timing("write", (2.0,)), Timing("write", (30.0,))]

    # 30 s / 2,000 rows = 15 ms per row, against 2 s / 200 rows = 10 ms.
    assert growth(timings, [20, 200, 2_000]) == pytest.approx(1.5)


def test_the_cost_of_a_row_is_reported_without_the_start_of_a_job() -> None:
    start = {"write": Timing("write", (0.25,))}
    timings = [Timing("write", (0.5,)), Timing("write", (3.25,))]

    table = beyond_start(start, {"write": timings}, [200_000, 2_000_000])

    # 0.25 s for 200,000 rows, and 3 s for ten times as many.
    assert table.rows == (("write", "0.250", "1.250", "1.500"),)
    assert "a job of 1,000 rows takes the seconds of the first column" in table.note


def test_cost_table_shows_microseconds_per_row() -> None:
    [table] = cost_tables({"write": [Timing("write", (0.5, 0.5, 0.75))]}, [200_000])

    assert table.rows == (("200,000", "0.500", "400 k", "2.500", "50%"),)


def test_sizes_are_shown_as_shares_of_the_row_layout() -> None:
    table = size_table("numbers", 1_000, {"row layout": 800_000, "block layout": 160_000})

    assert table.rows == (("row layout", "0.8 MB", "800.0", "1.000"), ("block layout", "0.2 MB", "160.0", "0.200"))


def test_peak_memory_is_the_kernels_high_water_mark(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    (tmp_path / "17" / "status").write_text("Name:\tpython\nVmPeak:\t  99 kB\nVmHWM:\t  12 kB\n", encoding="utf-8")

    assert peak_bytes(17, root=tmp_path) == 12 * 1024
    assert peak_bytes(18, root=tmp_path) == 0


def test_connector_that_maven_lacks_is_skipped_with_the_way_out() -> None:
    log = "Setting default log level\n:: UNRESOLVED DEPENDENCIES ::\nRuntimeException: [unresolved dependency: x]"

    assert ARTIFACT in reason_in(log)
    assert "--cache" in reason_in(log)


def test_other_ends_of_the_connector_are_told_by_its_last_error() -> None:
    log = "WARN something\nException in thread main java.lang.NoClassDefFoundError: org/x\n\tat a.b\n"

    assert reason_in(log).endswith("java.lang.NoClassDefFoundError: org/x")


def test_overview_lists_all_marks_and_what_was_skipped(tmp_path: Path) -> None:
    reports = [
        Report("file_sizes", "How large?", (), (Mark("block / row", 0.2, 0.25, "at most"),)),
        Report("jvm_connector", "How fast?", (), skipped="Maven cannot be reached.", conditions={"date": "2026-01-31"}),
    ]

    for report in reports:
        report.save(tmp_path)

    page = overview(data_path.SUITE, tmp_path)

    assert "| [file_sizes](file_sizes.md) | block / row | 0.2 | at most 0.25 | met |" in page
    assert "- [jvm_connector](jvm_connector.md) (2026-01-31): **Skipped**: Maven cannot be reached." in page


def test_the_page_of_quality_has_the_tables_of_what_was_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections that are not measured anew stay as they are."""
    for names in (("model", "AUC"), ("model", "seconds")):
        print_titles(*names)
        print("epoch 1 of 2")
        print_cells("plain", 0.9)
    said = capsys.readouterr().out.splitlines(keepends=True)
    monkeypatch.setattr(quality, "run", lambda command, folder: quality.Run(command, 3.2, said))
    written = tmp_path / "quality.md"
    measure = ["DATA", "--output", str(written), "--only"]
    for commit, titles in (("one", ["Gowalla", "Ratings"]), ("two", ["Ratings", "Adult"])):
        monkeypatch.setattr(quality, "conditions", lambda rounds, at=commit: {"commit": at, "rounds": "1"})
        assert quality.main([*measure, *titles]) == 0
    table = "| model | AUC |\n|---|---|\n| plain | 0.9 |\n\n| model | seconds |\n|---|---|\n| plain | 0.9 |"
    ratings = f"## Ratings\n\n`python -m benchmarks.quality_ratings DATA/ml_latest_small`, 3 s:\n\n{table}"
    page = written.read_text(encoding="utf-8")
    assert f"{ratings}\n\nMeasured: commit two.\n\n## Gowalla\n" in page
    assert [part.partition("\n")[0] for part in page.split("\n## ")] == ["# quality", "Adult", "Ratings", "Gowalla"]
    assert page.endswith("Measured: commit one.\n")
