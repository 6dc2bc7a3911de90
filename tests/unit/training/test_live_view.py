"""What is seen of a run while it runs: bars in a terminal, lines in a file."""

import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from training.events import Event
from training.live_view import LiveView

EPOCH_END: Event = {
    "event": "epoch_end",
    "rank": 0,
    "epoch": 2,
    "logs": {"loss": 0.51234, "auc": 0.7, "val_loss": 0.6, "val_auc": 0.6877, "val_log_loss": 0.5},
    "seconds": 3.0,
    "examples_per_second": 51_234.5,
}
PROGRESS: Event = {
    "event": "progress",
    "rank": 0,
    "epoch": 2,
    "step_in_epoch": 30,
    "steps": 100,
    "examples_per_second": 51_234.5,
    "loss": 0.51234,
}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def view(lines: list[str]) -> LiveView:
    return LiveView(epochs=5, is_interactive=False, write=lines.append)


def test_a_stage_ends_with_a_line_of_its_name_time_and_note(view: LiveView, lines: list[str]) -> None:
    with view.stage("convert") as stage:
        stage.note = "wrote 7 rows"
    assert len(lines) == 1
    assert re.fullmatch(r"convert +\d+\.\d s  wrote 7 rows", lines[0])
    assert 0 <= view.timings["convert"] < 5


def test_a_stage_that_fails_is_timed_and_leaves_the_message_to_others(view: LiveView, lines: list[str]) -> None:
    with pytest.raises(ValueError, match="no such column"), view.stage("convert"):
        raise ValueError("no such column")
    assert lines == []
    assert list(view.timings) == ["convert"]


def test_an_epoch_is_a_line_with_speed_loss_and_validation_metrics(view: LiveView, lines: list[str]) -> None:
    view.on_event(EPOCH_END)
    assert lines == ["  epoch  2/5     51,234 examples/s  loss 0.5123  val_auc 0.6877  val_log_loss 0.5000"]


def test_without_other_validation_metrics_the_line_shows_the_validation_loss(view: LiveView, lines: list[str]) -> None:
    view.on_event(EPOCH_END | {"logs": {"loss": 0.5, "val_loss": 0.6}, "examples_per_second": None})
    assert lines == ["  epoch  2/5          0 examples/s  loss 0.5000  val_loss 0.6000"]


def test_only_the_chief_tells_of_epochs(view: LiveView, lines: list[str]) -> None:
    view.on_event(EPOCH_END | {"rank": 1})
    assert lines == []


def test_a_file_gets_no_progress_within_an_epoch(view: LiveView, lines: list[str]) -> None:
    with view.stage("train"):
        view.on_event(PROGRESS)
        assert lines == []


def test_a_warning_names_its_rank(view: LiveView, lines: list[str]) -> None:
    view.on_event({"event": "log", "rank": 3, "level": "WARNING", "message": "disk nearly full"})
    assert lines == ["  rank 3: disk nearly full"]


@pytest.mark.parametrize(("rank", "who"), [(1, "rank 1"), (None, "Spark")])
def test_a_restart_names_the_attempt_and_the_first_error(
    view: LiveView, lines: list[str], rank: int | None, who: str
) -> None:
    view.on_event({"event": "restart", "attempt": 1, "error": {"rank": rank, "message": "killed by signal SIGKILL"}})
    assert lines == [f"  attempt 1 ended: {who}: killed by signal SIGKILL; going on from the last checkpoint"]


@pytest.mark.parametrize("kind", ["train_begin", "train_end", "validation", "phase", "attempt", "error", "new kind"])
def test_other_events_are_not_shown(view: LiveView, lines: list[str], kind: str) -> None:
    view.on_event({"event": kind, "rank": 0, "attempt": 1})
    assert lines == []


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView(epochs=5, is_interactive=False)
    with view.stage("score"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("score ")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> LiveView:
    """A view that draws, as often as the tests look."""
    monkeypatch.setattr("training.live_view._TICK_SECONDS", 0.01)
    return LiveView(epochs=5, is_interactive=True)


def drawn(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Wait until a bar with ``text`` is drawn, and return it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [bar for bar in capsys.readouterr().err.split("\r") if text in bar]
        if found:
            return found[-1]
        time.sleep(0.01)
    raise AssertionError(f"{text!r} was not drawn")


def test_a_terminal_gets_a_bar_with_epoch_step_speed_and_loss(
    terminal: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.stage("train"):
        terminal.on_event(PROGRESS)
        # 100 steps of the first epoch and 30 of the second, of 500 in all.
        bar = drawn("step 30/100", capsys)
        assert bar.startswith("train ")
        assert " 26% " in bar
        assert "epoch 2/5 step 30/100 51,234 examples/s loss 0.5123" in bar
        # The time that has passed and, with no speed known yet or a known one, what is left.
        assert re.search(r"\d\d:\d\d<(\d\d:\d\d|\?)", bar)


def test_the_bar_goes_on_below_the_line_of_an_epoch_and_shows_its_validation(
    terminal: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.stage("train"):
        terminal.on_event(PROGRESS)
        terminal.on_event(EPOCH_END)
        drawn("epoch  2/5     51,234 examples/s  loss 0.5123", capsys)
        terminal.on_event(PROGRESS | {"epoch": 3, "step_in_epoch": 80, "loss": None})
        bar = drawn("step 80/100", capsys)
        assert " 56% " in bar
        assert bar.rstrip().endswith("epoch 3/5 step 80/100 51,234 examples/s val_auc 0.6877 val_log_loss 0.5000")


def test_progress_before_the_number_of_steps_is_known_is_not_shown(
    terminal: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.stage("train"):
        terminal.on_event(PROGRESS | {"steps": None})
        drawn("train", capsys)
    assert "examples/s" not in capsys.readouterr().err


class FakeTracker:
    """Spark's status tracker with one stage of ten tasks, seven of them done, and one that is over."""

    def getActiveStageIds(self) -> list[int]:  # noqa: N802 - Spark's name
        return [1, 2]

    def getStageInfo(self, stage: int) -> Any:  # noqa: N802 - Spark's name
        return SimpleNamespace(numTasks=10, numCompletedTasks=7) if stage == 1 else None


def test_the_tasks_of_a_spark_job_are_counted_on_the_bar(
    terminal: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(statusTracker=FakeTracker))
    with terminal.stage("convert", spark=spark):
        assert " 70% " in drawn("7/10 Spark tasks", capsys)


def test_no_thread_is_left_when_a_stage_is_over(terminal: LiveView) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"}  # tqdm's own

    before = threads()
    with terminal.stage("convert"):
        assert threads() > before
    assert threads() == before
