"""View of a run while it runs: bars in a terminal, lines in a file."""

import copy
import logging
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.outcomes.cause import Attempt, RankError
from mirrorspark.training.run_records.live.details import add_findings, showing_warnings, spec_details
from mirrorspark.training.run_records.live.picture import Details
from mirrorspark.training.run_records.live.view import LiveView, Stage
from tests.unit.notebook_outputs import ADDRESS

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
KILLED = RankError("lost", 1, "killed", "killed by signal SIGKILL", 0.0)


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


def test_details_of_a_stage_follow_its_line(view: LiveView, lines: list[str]) -> None:
    with view.stage("infer") as stage:
        stage.details = Details(("town  categorical", f"seen at {ADDRESS}"), "<p>a table</p>")
    assert lines[1:] == ["  town  categorical", "  seen at http://host:5000"]


def test_an_inferred_spec_is_shown_by_its_first_features() -> None:
    details = spec_details(FeatureSpec((Numeric("km", log=True), Categorical("to")), Label("late"), ("id",)))
    assert details.lines == ("keys id", "km  numeric      log True", "to  categorical")
    items = FeatureSpec.of_items("to", [Numeric("price")])
    candidates = FeatureSpec((Categorical("to"),), Label("to", "candidate"), ("id",), items=items)
    of_items = spec_details(candidates)
    assert of_items.lines[2:] == ("features of the items; key to", "to     categorical", "price  numeric")
    assert "price" in of_items.markup
    many = spec_details(FeatureSpec(tuple(Numeric(f"f{n}") for n in range(40)), Label("late"), ("id",)))
    assert many.lines[-2:] == ("f11  numeric", "and 28 more")
    assert many.markup.startswith("<details><summary>40 features; keys id</summary>")
    assert "f39" in many.markup


def test_warnings_about_a_table_are_findings_of_its_stage_and_reach_the_users_handlers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage, logger = Stage("infer", time.monotonic), logging.getLogger("mirrorspark.data_pipelines.features.infer")
    stage.note, stage.details = "7 features", Details(("keys id",), "<p>all</p>")
    with showing_warnings(stage):
        logger.info("column km: numeric")
        for number in range(7):
            logger.warning("column <b>%s: left out", number)
    assert stage.note == "7 features; 7 warnings"
    assert stage.details.lines[:2] == ("keys id", "warning: column <b>0: left out")
    assert stage.details.lines[-1] == "and 2 more warnings"
    assert "Column &lt;b&gt;6: left out." in stage.details.markup
    assert len(caplog.messages) == 7


def test_warnings_of_a_stage_that_fails_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    stage = Stage("infer", time.monotonic)

    def fail() -> None:
        with showing_warnings(stage):
            logging.getLogger("mirrorspark.data_pipelines").warning("column km: left out")
            raise ValueError("no key")

    with pytest.raises(ValueError, match="no key"):
        fail()
    assert capsys.readouterr().err == "column km: left out\n"


@pytest.mark.parametrize("errors", [1, 7])
def test_findings_of_validation_are_sentences(errors: int) -> None:
    findings = [{"severity": "error", "column": "x", "sentence": f"error {n}"} for n in range(errors)]
    findings += [{"severity": "warning", "column": "", "sentence": "<b>odd</b> rows"}]
    findings += [{"severity": "note", "column": "y", "sentence": f"note {n}"} for n in range(3)]
    dataset: Any = SimpleNamespace(manifest=SimpleNamespace(findings=findings), path=Path("/data/late"))
    stage = Stage("convert", time.monotonic)
    add_findings(stage, dataset)
    assert stage.note.endswith(f"validation: {errors} error{'s' * (errors > 1)}, 1 warning, 3 notes")
    assert stage.details is not None
    *told, last = stage.details.lines
    expected = [f"error: error {n}" for n in range(errors)] + ["warning: <b>odd</b> rows"]
    assert told == expected[:5]
    assert last == f"and {len(findings) - len(told)} more: /data/late/dataset.html"
    assert ("&lt;b&gt;odd" in stage.details.markup) == (errors == 1)
    assert "note 0" not in stage.details.markup
    del findings[:-3]
    add_findings(notes := Stage("convert", time.monotonic), dataset)
    assert notes.details is not None
    assert notes.details.lines == ("more about the columns: /data/late/dataset.html",)


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
    assert lines == ["  epoch  2/5  loss 0.5000  val_loss 0.6000"]


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


def test_a_message_moves_no_cursor_and_is_one_line(view: LiveView, lines: list[str]) -> None:
    message = "\x1b[31mdisk\x1b[0m\r\n nearly\x1b[2J\x1b[3A [bold]full\a"
    view.on_event({"event": "log", "rank": 3, "level": "WARNING", "message": message})
    assert lines == ["  rank 3: disk nearly [bold]full"]


def test_the_epochs_of_another_training_of_a_function_show_its_metrics(view: LiveView, lines: list[str]) -> None:
    logs = {"fit_2/loss": 0.5, "fit_2/auc": 0.7, "fit_2/val_loss": 0.6, "fit_2/val_auc": 0.8}
    view.on_event(EPOCH_END | {"logs": logs, "examples_per_second": None})
    assert lines == ["  epoch  2/5  fit_2/loss 0.5000  fit_2/val_auc 0.8000"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KILLED, "rank 1: killed by signal SIGKILL"),
        (RankError("spark", None, "BarrierJobError", "executor lost", 0.0), "Spark: BarrierJobError: executor lost"),
        (
            RankError("store", None, "FileNotFoundError", "/c is missing", 0.0),
            "driver: FileNotFoundError: /c is missing",
        ),
        (RankError("hung", 1, "Hung", "rank 1 is 41 steps behind", 0.0), "rank 1 is 41 steps behind"),
    ],
)
def test_a_restart_names_the_attempt_and_the_first_error_in_the_words_of_a_failure(
    view: LiveView, lines: list[str], error: RankError, words: str
) -> None:
    view.on_event({"event": "restart", "attempt": 1, "error": vars(error)})
    assert lines == [f"  attempt 1 ended: {words}; going on from the last checkpoint"]
    assert str(TrainingFailedError((Attempt(1, None, (error,), 0),))) == f"training failed: {words}"


def test_a_wait_of_a_run_is_shown(view: LiveView, lines: list[str]) -> None:
    view.on_event({"event": "waiting", "attempt": 1, "slots": 1, "needed": 2, "limit_seconds": 600.0})
    view.on_event({"event": "waiting", "store": "s3://ann:s3cret@bucket/here"})
    assert lines == [
        "  waiting for slots: the cluster has 1, the training needs 2; it gives up after 600 s",
        "  waiting for the store of checkpoints s3://bucket/here",
    ]


def test_a_restart_tells_the_decision_and_the_delay(view: LiveView, lines: list[str]) -> None:
    restart = {
        "event": "restart",
        "attempt": 2,
        "error": vars(KILLED),
        "decision": "restart 2 of 3",
        "delay_seconds": 4.0,
    }
    view.on_event(restart)
    view.on_event(restart | {"error": None, "decision": "more workers can go on", "delay_seconds": 0.0})
    assert lines == [
        "  attempt 2 ended: rank 1: killed by signal SIGKILL; restart 2 of 3 (waiting 4 s first)",
        "  attempt 2 ended: as requested; more workers can go on",
    ]


def test_an_attempt_is_told_of_when_it_goes_on_or_has_other_workers(view: LiveView, lines: list[str]) -> None:
    for number, workers, step in ((1, 4, 1200), (2, 4, 1300), (3, 1, 1400)):
        view.on_event({"event": "attempt", "attempt": number, "workers": workers, "resumed_from": step})
    assert lines == ["  resuming from step 1,200", "  attempt 3: 1 worker, 4 before"]


def test_a_stop_tells_its_reason(view: LiveView, lines: list[str]) -> None:
    view.on_event({"event": "stopping", "attempt": 1, "reason": "SIGTERM"})
    assert lines == ["  stopping: SIGTERM; the ranks save a checkpoint first"]


def test_a_hang_shows_the_summarize_stacks_of_each_rank(view: LiveView, lines: list[str]) -> None:
    stack = (
        'Current thread 0x1 (most recent call first):\n  File "{}", line {} in {}\n'
        '  File "/opt/clone/training/executor/worker_process.py", line 1 in <module>\n'
    )
    waiting = stack.format("/opt/clone/training/programs/keras_fit/ring.py", 120, "receive")
    stacks = {"0": waiting, "1": stack.format("/home/me/model.py", 12, "call"), "2": waiting, "3": ""}
    view.on_event({"event": "hung", "attempt": 1, "ranks": [1], "why": "rank 1 is 41 steps behind", "stacks": stacks})
    assert lines == [
        "  hung: rank 1 is 41 steps behind",
        "    ranks 0, 2 in receive (ring.py:120)",
        "    rank 1 in call (model.py:12)",
    ]


def test_the_same_failure_on_eight_workers_prints_once_with_the_list_of_workers(lines: list[str]) -> None:
    view = LiveView(epochs=5, is_interactive=False, write=lines.append)

    def train() -> None:
        with view.stage("train"):
            view.on_event({"event": "attempt", "attempt": 1, "workers": 8, "resumed_from": 0})
            for rank in range(8):
                error = {"event": "error", "rank": rank, "attempt": 1, "cause": "user", "type": "ValueError"}
                view.on_event(error | {"message": f"rank {rank} found no column 'late'"})
            raise ValueError("over")

    with pytest.raises(ValueError, match="over"):
        train()
    assert lines == ["  ranks 0-7 failed: ValueError: rank 0 found no column 'late'"]


def test_the_ranks_that_lost_a_peer_are_one_line_behind_the_one_that_was_killed(lines: list[str]) -> None:
    view = LiveView(epochs=5, is_interactive=False, write=lines.append)
    with view.stage("train"):
        view.on_event({"event": "error", "attempt": 0} | vars(KILLED))
        for rank, words in ((0, "closed"), (2, "reset by peer"), (3, "closed")):
            error = {"event": "error", "attempt": 0, "rank": rank, "cause": "peer", "type": "RingError"}
            view.on_event(error | {"message": words})
        view.on_event({"event": "restart", "attempt": 1, "error": vars(KILLED), "decision": "restart 1 of 3"})
    assert lines[:3] == [
        "  rank 1 failed: killed by signal SIGKILL",
        "  ranks 0, 2, 3 lost a peer: RingError: closed",
        "  attempt 1 ended: rank 1: killed by signal SIGKILL; restart 1 of 3",
    ]


def test_an_input_bound_epoch_is_called_so(view: LiveView, lines: list[str]) -> None:
    alive = {"event": "alive", "rank": 1, "attempt": 0, "phase": "training", "input_share": 0.97, "step": 3}
    view.on_event(alive)
    view.on_event(EPOCH_END)
    assert lines[1].startswith("  input-bound: the input of rank 1 was busy 97% of the epoch's steps")


def test_secrets_are_not_shown(view: LiveView, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "k3y-of-the-store")
    for message in ("http://ann:s3cret@host is away", "k3y-of-the-store is refused"):
        view.on_event({"event": "log", "rank": 0, "message": message})
    assert lines == ["  rank 0: http://host is away", "  rank 0: *** is refused"]


def test_the_size_of_a_large_model_is_said_once_and_that_of_a_small_one_never(view: LiveView, lines: list[str]) -> None:
    begin = {"event": "train_begin", "attempt": 1, "parameter_bytes": 840_000_000}
    for event in (begin | {"rank": 1}, begin | {"rank": 0}, begin | {"rank": 0, "attempt": 2}):
        view.on_event(event)
    view.on_event(begin | {"rank": 0, "parameter_bytes": 8_400})
    assert lines == ["  the weights to train take 840 MB"]


@pytest.mark.parametrize("kind", ["train_begin", "train_end", "validation", "phase", "attempt", "error", "new kind"])
def test_other_events_are_not_shown(view: LiveView, lines: list[str], kind: str) -> None:
    view.on_event({"event": kind, "rank": 0, "attempt": 1, "phase": "building"})
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
    """A view that draws, as the tests look."""
    monkeypatch.setattr("mirrorspark.training.run_records.live.view._TICK_SECONDS", 0.01)
    return LiveView(epochs=5, is_interactive=True)


def drawn(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Wait until a block with ``text`` is drawn, and return it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [block for block in capsys.readouterr().err.split("\x1b[J") if text in block]
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
        assert bar.startswith("\ntrain ")
        assert " 26% " in bar
        assert "\n  epoch 2/5  step 30/100  51,234 examples/s  loss 0.5123" in bar
        # The time that has passed; with no speed known yet, not what is left.
        assert re.search(r" 0:00:\d\d ", bar)
        assert "left" not in bar
        assert "\n  rank 0 " in bar


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
        assert "epoch 3/5  step 80/100  51,234 examples/s  val_auc 0.6877" in bar
        assert "val_log_loss 0.5000" in " ".join(bar.split())  # what does not fit goes on below


def test_the_time_left_follows_from_the_speed_of_this_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    terminal = LiveView(epochs=5, is_interactive=True, clock=lambda: now[0])
    with terminal.stage("train"):
        now[0] = 100.0
        terminal.on_event(PROGRESS)
        now[0] = 110.0
        terminal.on_event(PROGRESS | {"step_in_epoch": 80})
        # 50 steps in 10 s, and 320 of 500 are left.
        assert "0:01:50, 0:01:04 left" in drawn("step 80/100", capsys)


def test_the_seconds_of_stages_start_and_gaps_add_up_to_the_time_since_the_beginning() -> None:
    now = [103.0]
    view = LiveView(epochs=5, is_interactive=False, write=lambda line: None, clock=lambda: now[0], began=100.0)
    assert view.all_seconds() == {"start": 3.0, "between stages": 0.0}
    for name, seconds in (("convert", 10.0), ("train", 20.0), ("convert", 5.0)):
        now[0] += 2.0
        with view.stage(name):
            now[0] += seconds
    now[0] += 1.0
    assert view.all_seconds() == {"start": 5.0, "convert": 15.0, "train": 20.0, "between stages": 5.0}
    assert sum(view.all_seconds().values()) == now[0] - 100.0


def test_a_stage_of_unknown_length_shows_its_time(terminal: LiveView, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.stage("export"):
        assert re.search(r"export     0:00:\d\d", drawn("export", capsys))


def test_a_stage_that_counts_its_work_shows_a_bar_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    now = [0.0]
    terminal = LiveView(epochs=5, is_interactive=True, clock=lambda: now[0])
    with terminal.stage("export") as stage:
        stage.report("writing the model")
        assert "0:00:00 writing the model" in drawn("export", capsys)
        now[0] = 10.0
        stage.report("rows predicted", 2_000, 80_000)
        now[0] = 14.0
        # 10,000 rows in 4 s, and 68,000 are left.
        stage.report("rows predicted", 12_000, 80_000)
        assert "0:00:14, 0:00:27 left" in drawn("12,000/80,000 rows predicted", capsys)


def test_the_ranks_are_gone_from_the_stages_behind_the_training(
    terminal: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.stage("train"):
        terminal.on_event(PROGRESS)
        drawn("rank 0", capsys)
    with terminal.stage("export"):
        assert "rank 0" not in drawn("export ", capsys)


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


def test_a_bar_goes_on_when_spark_cannot_be_asked_any_more(
    terminal: LiveView, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    class Gone(FakeTracker):
        def getActiveStageIds(self) -> list[int]:  # noqa: N802 - Spark's name
            if asked:
                asked.append(1)
                raise ConnectionRefusedError(111, "Connection refused")
            return super().getActiveStageIds()

    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(statusTracker=Gone))
    with terminal.stage("convert", spark=spark):
        drawn("7/10 Spark tasks", capsys)
        asked.append(1)
        # A block that was under way may still show what Spark said before.
        while "Spark tasks" in drawn("convert ", capsys):
            pass
        assert re.search(r"convert    0:00:\d\d", drawn("convert ", capsys))
    assert len(asked) == 2  # who asks again and again fills the log


def test_no_thread_is_left_when_a_stage_is_over(terminal: LiveView) -> None:
    def threads() -> set[threading.Thread]:
        return set(threading.enumerate())

    before = threads()
    with terminal.stage("convert"):
        assert threads() > before
    assert threads() == before


@pytest.mark.parametrize("error", [BrokenPipeError("nobody reads"), ValueError("I/O operation on closed file")])
def test_a_run_goes_on_when_nobody_can_be_shown_anything(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def fail(line: str) -> None:
        raise error

    view = LiveView(epochs=5, is_interactive=False, write=fail)
    with view.stage("train"):
        view.on_event(EPOCH_END)
        view.log("a line")
    assert list(view.timings) == ["train"]
    assert [record.getMessage() for record in caplog.records] == [f"the run goes on, but cannot be shown: {error}"]


def test_a_python_caller_sees_the_failing_line_of_the_users_code() -> None:
    fault = RankError("user", 1, "KeyError", "'b'", 0.0, 'File "mine.py", line 10, in helper, http://me:secret@host')
    (note,) = TrainingFailedError((Attempt(1, None, (fault,), 0),)).__notes__
    assert note.startswith("in rank 1:\nFile")
    assert "mine.py" in note
    assert "secret" not in note
    copied = copy.copy(TrainingFailedError((Attempt(1, None, (fault,), 0),)))  # by what pickle goes by
    assert copied.__notes__ == [note]
    assert not hasattr(TrainingFailedError((Attempt(1, None, (KILLED,), 0),)), "__notes__")
