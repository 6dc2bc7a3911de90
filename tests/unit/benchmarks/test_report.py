"""Pages: tables, marks, conditions."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.measure import Mark, Timing
from benchmarks.report import (
    Report,
    Table,
    commit,
    conditions,
    marks_table,
    megabytes,
    rate,
    significant,
    timing_table,
)


def test_timing_table_shows_median_rate_spread_and_ratio() -> None:
    timings = {"slow": Timing("slow", (4.0, 4.0, 5.0)), "fast": Timing("fast", (0.5, 0.4, 0.6))}

    table = timing_table("2,000,000 rows", 2_000_000, timings, reference="slow")

    assert table.markdown().splitlines() == [
        "## 2,000,000 rows",
        "",
        "| way | median seconds | rows/s | spread | times 'slow' |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| slow | 4.000 | 500 k | 25% | 1.00 |",
        "| fast | 0.500 | 4.00 M | 40% | 8.00 |",
    ]


def test_table_refuses_a_row_of_another_width() -> None:
    with pytest.raises(ValueError, match="has 2 columns"):
        Table("sizes", ("a", "b"), (("1",),))


def test_marks_table_tells_what_was_asked_for_and_whether_it_is_met() -> None:
    table = marks_table([Mark("blocks / rows", 0.2, 0.25, "at most")])

    assert table.rows == (("blocks / rows", "0.2", "at most 0.25", "met"),)


def test_mark_that_is_missed_stands_out() -> None:
    [row] = marks_table([Mark("a / b", 0.5, 3.0)]).rows

    assert row[-1] == "**not met**"


def test_page_holds_question_marks_tables_conditions_and_command(tmp_path: Path) -> None:
    report = Report(
        name="sizes",
        question="How large are they?",
        tables=(Table("numbers", ("way", "size"), (("row", "9"),), note="Once is enough."),),
        marks=(Mark("block / row", 0.2, 0.25, "at most"),),
        command="python -m benchmarks.sizes",
        conditions={"machine": "two cores"},
    )

    page = report.save(tmp_path / "pages")

    assert page == tmp_path / "pages" / "sizes.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# sizes", "", "How large are they?"]
    assert [line for line in lines if line.startswith("## ")] == ["## Marks", "## numbers", "## Measured on"]
    assert "Once is enough." in lines
    assert "- machine: two cores" in lines
    assert lines[-1] == "Run again: `python -m benchmarks.sizes`"


def test_skipped_page_says_why() -> None:
    text = Report("jvm", "How fast?", (), skipped="Maven cannot be reached.").markdown()

    assert "**Skipped**: Maven cannot be reached." in text
    assert "## Marks" not in text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(12_900.0, "12.90 k"), (545_123.0, "545 k"), (2_956_000.0, "2.96 M"), (123_456_789.0, "123 M"), (12.0, "0.012 k")],
)
def test_rates(per_second: float, text: str) -> None:
    assert rate(per_second) == text


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (12.345, "12.35"), (0.87654, "0.877"), (0.0, "0")])
def test_figures_keep_three_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_sizes_are_decimal() -> None:
    assert megabytes(1_234_567_890) == "1,234.6 MB"


@pytest.mark.process
def test_commit_says_whether_files_differ(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1", encoding="utf-8")
    git("add", "a")
    git("commit", "--message", "one")
    clean = commit(tmp_path)
    (tmp_path / "a").write_text("2", encoding="utf-8")

    assert clean == commit(tmp_path).removesuffix(", with changes")
    assert commit(tmp_path).endswith(", with changes")
    assert len(clean) == 10


@pytest.mark.process
def test_commit_outside_a_checkout_is_unknown(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown (not a git checkout)"


@pytest.mark.process
def test_conditions_name_machine_versions_and_rounds() -> None:
    found = conditions(5)

    assert set(found) == {"date", "commit", "machine", "speed", "system", "packages", "rounds"}
    assert found["rounds"].startswith("median of 5")
    assert "pyarrow" in found["packages"]
