"""Cell of a notebook for a run, while it runs and when it is over (H2, H9)."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.data_pipelines.spark.job_tasks import Tasks
from mirrorspark.training.run_records.live.notebook import NotebookScreen, best_epoch, page
from mirrorspark.training.run_records.live.picture import Details, EpochResult, Monitored, Picture, RunningStage
from mirrorspark.training.run_records.live.state import TrainingState
from mirrorspark.training.run_records.live.view import LiveView
from tests.unit.notebook_outputs import ADDRESS, HOSTILE, SECRET, epochs, picture
from tests.unit.training.test_live_view import EPOCH_END, PROGRESS

TRAINING = RunningStage("train", 74.0, is_training=True)


class Cell:
    """Stands for the outputs of a notebook's cell, with the threads that made and updated them."""

    def __init__(self) -> None:
        self.outputs: list[Mapping[str, str]] = []
        self.makers: list[threading.Thread] = []
        self.updates = 0

    def display(self, contents: Mapping[str, str], *, raw: bool, display_id: bool) -> Any:
        """Add an output, and return its handle."""
        assert raw
        assert display_id
        self.outputs.append(contents)
        self.makers.append(threading.current_thread())
        return SimpleNamespace(update=self._update)

    def _update(self, contents: Mapping[str, str], *, raw: bool) -> None:
        assert raw
        self.outputs[-1] = contents
        self.updates += 1

    @property
    def html(self) -> str:
        """HTML that a notebook shows."""
        return self.outputs[-1]["text/html"]


@pytest.fixture
def cell() -> Cell:
    return Cell()


@pytest.fixture
def view(cell: Cell) -> LiveView:
    return LiveView(epochs=5, is_interactive=True, screen=NotebookScreen(cell.display))


def test_all_stages_of_a_run_are_one_output_that_stays(
    view: LiveView, cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("infer", "convert"):
        with view.stage(name) as stage:
            stage.note = f"the note of {name}"
            stage.details = Details(("a line",), f"<p>details at {ADDRESS}</p>")
    assert len(cell.outputs) == 1
    assert cell.makers == [threading.current_thread()]
    for text in ("infer", "the note of infer", "convert", "the note of convert"):
        assert text in cell.html
    assert cell.html.count("✓") == 2
    assert cell.html.count("<p>details at ") == 2
    assert SECRET not in cell.html
    assert "a line" not in cell.html
    assert "convert" in cell.outputs[0]["text/plain"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_the_epochs_are_a_table_and_the_loss_and_the_monitored_metric_are_charts(view: LiveView, cell: Cell) -> None:
    view.expect(7, Monitored("val_auc", "max"))
    with view.stage("train"):
        view.on_event(PROGRESS)
        for epoch, auc in ((1, 0.7), (2, 0.72), (3, 0.71)):
            view.on_event(EPOCH_END | {"epoch": epoch, "logs": EPOCH_END["logs"] | {"val_auc": auc}})
    assert "2 (best)" in cell.html
    assert "0.7200" in cell.html
    assert "51,234" in cell.html
    assert 'aria-label="loss over 3 epochs"' in cell.html
    assert 'aria-label="auc over 3 epochs"' in cell.html
    assert "<script" not in cell.html


def test_the_epochs_of_the_interrupted_run_are_in_the_chart(view: LiveView, cell: Cell) -> None:
    view.expect(7, Monitored("val_auc", "max"), [EPOCH_END | {"epoch": 1}])
    with view.stage("train"):
        view.on_event(EPOCH_END)
    assert 'aria-label="loss over 2 epochs"' in cell.html


def test_a_line_is_in_the_output_without_its_secret(view: LiveView, cell: Cell) -> None:
    with view.stage("train") as stage:
        view.on_event({"event": "log", "rank": 0, "message": f"{HOSTILE} http://me:{SECRET}@host"})
        stage.note = f"saved at s3://me:{SECRET}@bucket"
    assert "rank 0: &lt;img" in cell.html
    assert "saved at s3://bucket" in cell.html
    assert SECRET not in str(cell.outputs)


def test_a_line_after_the_last_stage_is_shown(view: LiveView, cell: Cell) -> None:
    view.log("the run of that date has finished")
    assert "the run of that date has finished" in cell.html


def test_a_stage_that_fails_is_marked(view: LiveView, cell: Cell) -> None:
    with pytest.raises(ValueError, match="no such column"), view.stage("convert"):
        raise ValueError("no such column")
    assert "✗" in cell.html
    assert "did not finish" in cell.html


def test_an_unchanged_picture_is_not_sent_again(cell: Cell) -> None:
    screen = NotebookScreen(cell.display)
    for _ in range(3):
        screen.show(picture(None))
    assert cell.updates == 0
    screen.show(picture(TRAINING))
    assert cell.updates == 1


def test_a_training_shows_its_bar_the_time_left_and_a_rank_in_trouble() -> None:
    shown = page(picture(TRAINING))
    # 4,920 of 16,000 steps in all, 920 of them in the 60 seconds of this attempt.
    assert "31%" in shown
    assert "0:12:02 left" in shown
    assert "epoch 13/40" in shown
    assert '<span class="error">stopped by a signal</span>' in shown


def test_a_stage_of_spark_shows_its_tasks() -> None:
    stage = RunningStage("convert", 5.0, tasks=Tasks(3, 8, 8.0))
    shown = page(Picture(5.0, (), stage, TrainingState(1)))
    for text in ("38%", "0:00:08 left", "3 of 8 Spark tasks"):
        assert text in shown


def test_of_many_epochs_the_last_ones_are_shown_and_at_the_end_all_of_them_folded() -> None:
    assert "and 22 earlier epochs; the best is 9" in page(picture(TRAINING, count=30))
    assert "<summary>all 30 epochs</summary>" in page(picture(None, count=30))


@pytest.mark.parametrize(("mode", "best"), [("max", 9), ("min", 1)])
def test_the_best_epoch_is_that_of_the_monitored_metric(mode: Any, best: int) -> None:
    without_number = EpochResult(13, {"val_auc": float("nan")})
    shown = replace(picture(None), monitored=Monitored("val_auc", mode), epochs=(*epochs(12), without_number))
    assert best_epoch(shown) == best
    assert best_epoch(replace(shown, monitored=None)) is None
