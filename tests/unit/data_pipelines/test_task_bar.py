"""The bar of calls that wait for Spark: in a terminal, in a notebook, and not in a file (H9)."""

import builtins
import io
import re
import sys
import time
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mirrorspark.data_pipelines.spark import task_bar as module_under_test
from mirrorspark.data_pipelines.spark.job_tasks import SparkTasks, Tasks
from mirrorspark.data_pipelines.spark.task_bar import TerminalBar, notebook_display, task_bar, work_bar
from mirrorspark.data_pipelines.spark.tasks import progress_bar


class FakeSpark:
    """A session with one active stage, whose number and tasks are set by the test."""

    def __init__(self) -> None:
        self.stage, self.done, self.total = 1, 0, 10
        self.is_lost = False
        self.sparkContext = SimpleNamespace(statusTracker=lambda: self)  # Spark's name

    def getActiveStageIds(self) -> list[int]:  # noqa: N802 - Spark's name
        if self.is_lost:
            raise ConnectionRefusedError(111, "Connection refused")
        return [self.stage] if self.total else []

    def getStageInfo(self, stage: int) -> Any:  # noqa: N802 - Spark's name
        assert stage == self.stage
        return SimpleNamespace(numTasks=self.total, numCompletedTasks=self.done)


@pytest.fixture
def spark() -> Any:
    return FakeSpark()


def test_the_time_left_follows_from_the_speed_of_the_active_stages(spark: Any) -> None:
    counted = SparkTasks(spark)
    assert counted.at(100.0) == Tasks(0, 10)
    spark.done = 4
    # Four tasks in 8 s, six are left.
    assert counted.at(108.0) == Tasks(4, 10, 12.0)
    spark.stage, spark.done, spark.total = 2, 5, 20
    assert counted.at(109.0) == Tasks(5, 20)  # another stage is measured anew
    spark.total = 0
    assert counted.at(110.0) is None
    spark.is_lost = True
    assert counted.at(111.0) is None


def test_a_terminal_gets_a_line_of_which_nothing_is_left() -> None:
    stream = io.StringIO()
    bar = TerminalBar("score", stream)
    bar.show(12.0, Tasks(4, 10, 12.0))
    assert stream.getvalue() == (
        "\r\x1b[J\nscore       40% ━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌ 0:00:12, 0:00:12 left  4/10 Spark tasks\r\x1b[1A"
    )
    bar.end(13.0, has_failed=False)
    assert stream.getvalue().endswith("\r\x1b[1A\r\x1b[J")


def test_the_line_of_a_narrow_terminal_has_no_bar_and_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = io.StringIO()
    TerminalBar("score", stream).show(12.0, Tasks(4, 10, 12.0))
    assert stream.getvalue() == "\r\x1b[J\nscore       40% 0:00:12, 0:00:12 left  4/10 Spark tasks\r\x1b[1A"


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand for a notebook, and return its outputs."""
    found: list[str] = []

    def display(contents: Mapping[str, str], *, raw: bool, display_id: bool) -> Any:
        def update(contents: Mapping[str, str], *, raw: bool) -> None:
            found[-1] = contents["text/html"]

        found.append(contents["text/html"])
        return SimpleNamespace(update=update)

    monkeypatch.setattr(module_under_test, "notebook_display", lambda: display)
    monkeypatch.setattr(module_under_test, "_TICK_SECONDS", 0.01)
    return found


def test_a_notebook_gets_one_output_that_ends_with_the_time(
    spark: Any, outputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    spark.done = 3
    with task_bar(spark, "score <all>"):
        while "3/10 Spark tasks" not in outputs[-1]:
            time.sleep(0.01)
    (shown,) = outputs
    assert "✓" in shown
    assert "score &lt;all&gt;" in shown
    assert re.search(r"\d\.\d s</p>", shown)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_other_work_that_is_counted_gets_the_bar_too(outputs: list[str]) -> None:
    with work_bar("refresh") as tell:
        tell("loading", 0, 0)
        tell("items embedded", 3, 10)
        while "3/10 items embedded" not in outputs[-1]:
            time.sleep(0.01)
    assert "✓" in outputs[-1]


def test_what_fails_is_marked_and_its_error_goes_on(spark: Any, outputs: list[str]) -> None:
    with pytest.raises(ValueError, match="no such column"), task_bar(spark, "score"):
        raise ValueError("no such column")
    assert "did not finish" in outputs[-1]


def test_a_call_within_another_one_has_no_bar_of_its_own(
    spark: Any, outputs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "get_ipython", object, raising=False)
    with progress_bar(spark, "plan"), progress_bar(spark, "score"):
        pass
    with progress_bar(spark, "score"):
        pass
    assert ["plan" in one for one in outputs] == [True, False]


def test_a_file_gets_nothing(spark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with task_bar(spark, "score"):
        pass
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_notebook_is_recognised_by_its_kernel_and_the_ipython_of_a_terminal_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ipython, module = ModuleType("IPython"), ModuleType("IPython.display")
    vars(module)["display"] = display = object()
    vars(ipython)["display"] = module
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook_display() is None
    assert "IPython" not in sys.modules
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    for shell, found in (
        (None, None),
        (SimpleNamespace(), None),
        (SimpleNamespace(kernel=None), None),
        (SimpleNamespace(kernel="a kernel"), display),
    ):
        vars(ipython)["get_ipython"] = lambda shell=shell: shell
        assert notebook_display() is found
