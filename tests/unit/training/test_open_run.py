"""T6, T7: how a run is opened and left, and that no receiver of its events keeps another one from hearing them."""

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mirrorspark.callbacks.mlflow.tracking_store import ActiveRun
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.driver.errors import TrainingStoppedError
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.names import STATE_FILE
from mirrorspark.training.run_records import tracked_run, tracking
from mirrorspark.training.run_records.live.view import LiveView
from mirrorspark.training.run_records.opened_run import OpenRun, open_run
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import RunUnderWayError

ATTEMPT: Event = {"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": 0}


@dataclass
class FakeTracked:
    """Records the calls of MLflow by a run."""

    run_id: str | None = "mlflow-1"
    statuses: list[str] = field(default_factory=list)

    def finish(self, status: str) -> str | None:
        self.statuses.append(status)
        return "the command that replays"

    def abandon(self) -> None:
        self.statuses.append("another's")


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> FakeTracked:
    one = FakeTracked()
    monkeypatch.setattr(tracking, "TrackedRun", lambda *arguments, **named: one)
    return one


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def config(new_config: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    return new_config(output=str(tmp_path))


@contextlib.contextmanager
def opened(
    config: RunConfig, lines: list[str], outer: tracked_run.OuterRun | None = None, **how: Any
) -> Iterator[OpenRun]:
    view = LiveView(epochs=1, is_interactive=False, write=lines.append)
    with open_run(config, "da7a", tracking.Tracking("the store", "rides", outer), view, **how) as run:
        yield run


def interrupt_after_an_attempt(config: RunConfig, lines: list[str]) -> None:
    with contextlib.suppress(KeyboardInterrupt), opened(config, lines) as run:
        assert not run.folder.has_begun
        run.on_event(ATTEMPT)
        raise KeyboardInterrupt


def state_of(folder: RunFolder) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder.path / STATE_FILE).read_text())
    return document


def test_a_run_is_left_finished_with_its_configuration(
    config: RunConfig, tracked: FakeTracked, lines: list[str]
) -> None:
    with opened(config, lines) as run:
        assert state_of(run.folder)["status"] == "running"
    assert (state_of(run.folder)["status"], state_of(run.folder)["mlflow_run_id"]) == ("finished", "mlflow-1")
    assert run.folder.config.read_text() == config.as_yaml()
    assert (tracked.statuses, run.replay) == (["FINISHED"], "the command that replays")


def of_interrupted_call() -> Exception:
    """Return an error of py4j that Ctrl-C has led to."""
    error = ConnectionError("py4j")
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "status", "mlflow_status"),
    [
        (RuntimeError("no such layer"), "failed", "FAILED"),
        (TrainingStoppedError((), 3, "SIGTERM"), "stopped", "KILLED"),
        (KeyboardInterrupt(), "stopped", "KILLED"),
        (of_interrupted_call(), "stopped", "KILLED"),
    ],
)
def test_a_run_that_ends_early_goes_on_in_its_folder(
    config: RunConfig, tracked: FakeTracked, lines: list[str], error: BaseException, status: str, mlflow_status: str
) -> None:
    with pytest.raises(type(error)), opened(config, lines) as run:
        raise error
    assert (state_of(run.folder)["status"], tracked.statuses) == (status, [mlflow_status])
    with opened(config, lines) as again:
        assert again.folder.path == run.folder.path


@pytest.mark.parametrize("error", [None, TrainingStoppedError((), 3, "taken over")])
def test_a_run_that_another_driver_has_taken_over_is_ended_by_that_one(
    config: RunConfig, tracked: FakeTracked, lines: list[str], error: Exception | None
) -> None:
    """T6: this driver was suspended, and taken for dead."""
    successor = {}

    def train() -> None:
        with opened(config, lines) as run:
            successor[run.folder.path / STATE_FILE] = json.dumps(state_of(run.folder) | {"holder": "another"})
            for path, state in successor.items():
                path.write_text(state)
            if error is not None:
                raise error

    with pytest.raises(type(error) if error else RunUnderWayError):
        train()
    assert {path: path.read_text() for path in successor} == successor
    assert tracked.statuses == ["another's"]


def test_a_run_that_goes_on_says_that_it_does_so_outside_the_active_run(
    config: RunConfig, tracked: FakeTracked, lines: list[str]
) -> None:
    """L5: the same cell of a notebook starts another MLflow run each time."""
    active = tracked_run.OuterRun(ActiveRun("mlflow-1", "1"), is_parent_only=False)
    interrupt_after_an_attempt(config, lines)
    with opened(config, lines, active) as again:
        pass
    assert lines == []
    interrupt_after_an_attempt(config, lines)
    with opened(config, lines, replace(active, run=ActiveRun("mlflow-2", "1"))) as again:
        name = again.folder.path.name
    told = f"run {name} goes on in the MLflow run in which it began, mlflow-1, not in the active one"
    assert told in "\n".join(lines)


def test_a_full_disk_hides_neither_the_error_nor_the_end_from_mlflow(
    config: RunConfig, tracked: FakeTracked, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunFolder, status: str, run_id: str | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def train() -> None:
        with opened(config, lines):
            monkeypatch.setattr(RunFolder, "save_state", full)
            raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        train()
    assert tracked.statuses == ["FAILED"]


def test_a_store_that_refuses_leaves_a_run_that_can_go_on(
    config: RunConfig, lines: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise tracked_run.TrackingError("the experiment is deleted")

    monkeypatch.setattr(tracking, "TrackedRun", refuse)
    with pytest.raises(tracked_run.TrackingError), opened(config, lines):
        pass
    (state,) = (tmp_path / "runs").glob(f"*/{STATE_FILE}")
    assert json.loads(state.read_text())["status"] == "failed"


def test_an_equal_command_is_told_why_it_begins_anew(config: RunConfig, tracked: FakeTracked, lines: list[str]) -> None:
    with opened(config, lines) as first, opened(config, lines) as second:
        assert first.folder.path != second.folder.path
        assert f"run {first.folder.path.name} of the same configuration is under way" in lines[0]


def test_a_receiver_that_fails_keeps_no_other_from_hearing(
    config: RunConfig, tracked: FakeTracked, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise BrokenPipeError("nobody reads")

    with opened(config, lines, listener=heard.append) as run:
        run.view.on_event = fail  # type: ignore[method-assign]
        run.on_event(ATTEMPT)
        run.on_event({**ATTEMPT, "attempt": 2})
    assert [event["attempt"] for event in heard] == [1, 2]
    assert [event["attempt"] for event in run.folder.past_events()] == [1, 2]
    assert len(caplog.records) == 1


def test_an_attempt_leaves_word_that_the_checkpoints_store_is_in_use(
    config: RunConfig, tracked: FakeTracked, lines: list[str]
) -> None:
    interrupt_after_an_attempt(config, lines)
    with opened(config, lines) as again:
        assert again.folder.has_begun


def test_events_of_earlier_drivers_are_replayed(config: RunConfig, tracked: FakeTracked, lines: list[str]) -> None:
    interrupt_after_an_attempt(config, lines)
    kept: list[Event] = []
    with opened(config, lines) as again:
        again.recall(kept.append)
    assert [event["event"] for event in kept] == ["attempt"]


def test_mlflow_gets_the_epochs_from_the_events_file(config: RunConfig, lines: list[str], mlflow_store: str) -> None:
    view = LiveView(epochs=1, is_interactive=False, write=lines.append)
    epoch: Event = {"event": "epoch_end", "rank": 0, "logs": {"loss": 0.5}, "seconds": 2.5, "examples_per_second": None}
    place = tracking.Tracking(mlflow_store, "rides")
    for epochs in ((1, 2), (2, 3)):
        with (
            contextlib.suppress(KeyboardInterrupt),
            open_run(config, "da7a", place, view) as run,
        ):
            for number in epochs:
                run.on_event({**epoch, "epoch": number, "time": 1000.0 + number})
            raise KeyboardInterrupt
    client = MlflowClient(mlflow_store)
    assert run.tracked.run_id is not None
    points = client.get_metric_history(run.tracked.run_id, "loss")
    assert sorted((point.step, point.timestamp) for point in points) == [(n, 1_000_000 + n * 1000) for n in (1, 2, 3)]
    assert client.get_run(run.tracked.run_id).info.status == "KILLED"
