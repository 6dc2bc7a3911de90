"""L6: no metric is lost, none is logged twice, and the training never waits for the server."""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mirrorspark.callbacks.mlflow import metric_replay
from mirrorspark.callbacks.mlflow.metric_buffer import MetricBuffer, retry_delay
from mirrorspark.callbacks.mlflow.metric_replay import (
    Replayed,
    RunMetrics,
    entry_event,
    metrics_event,
    read_log,
    replay,
    report,
    run_event,
)
from mirrorspark.callbacks.mlflow.metric_requests import (
    LogArtifact,
    LogFile,
    LogFolder,
    LogInput,
    LogParams,
    RunCall,
    SetAlias,
    SetStatus,
    SetTags,
    Target,
    first_line,
    from_line,
    metric_name,
)
from mirrorspark.storage.event_file import Event, EventFile

REPOSITORY = Path(__file__).resolve().parents[3]
RUN = "0123456789abcdef"


class FakeServer:
    """Takes what an `MlflowClient` sends; the first ``failures`` requests are refused, all as long as ``is_down``."""

    def __init__(self, failures: int = 0, *, is_down: bool = False) -> None:
        self.tracking_uri = "http://user:secret@tracking:5000"
        self.failures = failures
        self.is_down = is_down
        self.requests: list[int] = []
        self.logged: dict[str, list[tuple[int, float]]] = {}
        self.statuses: list[str] = []
        self.experiments: list[str] = []
        self.started: list[str] = []
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self._answer()
        assert run_id == RUN
        self.params |= {param.key: param.value for param in params}
        self.tags |= {tag.key: tag.value for tag in tags}
        if metrics:
            self.requests.append(len(metrics))
        for metric in metrics:
            self.logged.setdefault(metric.key, []).append((metric.step, metric.value))

    def get_run(self, run_id: str) -> Any:
        self._answer()
        return SimpleNamespace(
            data=SimpleNamespace(params=self.params, metrics={n: p[-1][1] for n, p in self.logged.items()})
        )

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return [SimpleNamespace(step=step, value=value) for step, value in self.logged[name]]

    def get_experiment_by_name(self, name: str) -> Any:
        self._answer()
        self.experiments.append(name)
        return SimpleNamespace(experiment_id="1")

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        assert filter_string.startswith("tags.`mirrorspark.run` = ")
        return [SimpleNamespace(info=SimpleNamespace(run_id=RUN)) for name in self.started if name in filter_string]

    def update_run(self, run_id: str, status: str) -> None:
        self.statuses.append(status)

    def create_run(self, experiment_id: str, run_name: str = "", tags: dict[str, str] | None = None) -> Any:
        self.started.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=RUN))

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self._answer()
        self.artifacts[f"{folder}/{Path(path).name}" if folder else Path(path).name] = Path(path).read_bytes()

    def set_terminated(self, run_id: str, status: str) -> None:
        self.statuses.append(status)

    def _answer(self) -> None:
        if self.is_down or self.failures > 0:
            self.failures -= 1
            raise ConnectionError("http://user:secret@tracking:5000 refused the connection")


class RefusalError(Exception):
    """The error that a client raises when the server calls the request wrong."""

    def get_http_status_code(self) -> int:
        return 400


class StrictServer(FakeServer):
    """Refuses artifacts."""

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        raise RefusalError("invalid name")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "left" / "metrics.jsonl"


@pytest.fixture
def open_buffer(log: Path) -> Iterator[Callable[..., MetricBuffer]]:
    """Return a function that opens a buffer with quick retries; all are closed after the test."""
    buffers: list[MetricBuffer] = []

    def build(server: Any, run_id: str | None = RUN, **arguments: Any) -> MetricBuffer:
        run = {name: arguments.pop(name) for name in ("experiment", "run_name") if name in arguments}
        arguments = {"log": log, "first_retry_seconds": 0.001, **arguments}
        target = Target(run_id, server.tracking_uri, **{"experiment": "Default"} | run)
        buffers.append(MetricBuffer(target, client=server, **arguments))
        return buffers[-1]

    yield build
    for buffer in buffers:
        buffer.close(0.0)


def kept(log: Path) -> list[Event]:
    return [json.loads(line) for line in log.read_text().splitlines() if line]


def write(log: Path, target: Target, *events: Event) -> None:
    log.write_text("".join(json.dumps(event) + "\n" for event in (run_event(target), *events)))


def test_metrics_arrive_in_order_with_their_steps(open_buffer: Callable[..., MetricBuffer]) -> None:
    server = FakeServer()
    buffer = open_buffer(server)
    for step in (1, 2, 3):
        buffer.log({"loss": 1.0 / step, "val_auc": 0.5}, step=step, timestamp_ms=step)
    assert buffer.flush(60)
    assert server.logged == {"loss": [(1, 1.0), (2, 0.5), (3, 1 / 3)], "val_auc": [(1, 0.5), (2, 0.5), (3, 0.5)]}


def test_an_outage_delays_metrics_and_loses_none(
    open_buffer: Callable[..., MetricBuffer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = FakeServer(failures=3)
    buffer = open_buffer(server)
    for step in range(5):
        buffer.log({"loss": float(step)}, step=step)
    assert buffer.flush(60)
    assert server.logged["loss"] == [(step, float(step)) for step in range(5)]
    assert caplog.text.count("MLflow does not accept metrics") == 1
    assert "MLflow accepts metrics again" in caplog.text
    assert "secret" not in caplog.text


def test_logging_never_waits_for_a_server_that_hangs(open_buffer: Callable[..., MetricBuffer], log: Path) -> None:
    class HangingServer(FakeServer):
        def __init__(self) -> None:
            super().__init__()
            self.is_asked = threading.Event()
            self.may_answer = threading.Event()

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            self.is_asked.set()
            assert self.may_answer.wait(60)
            super().log_batch(run_id, metrics, params, tags)

    server = HangingServer()
    buffer = open_buffer(server)
    buffer.log({"loss": 1.0}, step=1)
    assert server.is_asked.wait(60)
    buffer.log({"loss": 2.0}, step=2)
    assert not buffer.close(0.0)
    # The request under way may still be answered, after which a replay leaves its metrics out.
    server.may_answer.set()
    buffer._thread.join(60)
    assert server.logged == {"loss": [(1, 1.0)]}
    assert replay(log, client=server) == Replayed(RUN, sent=1, present=1, calls=0)
    assert server.logged == {"loss": [(1, 1.0), (2, 2.0)]}


def test_an_outage_costs_no_memory_and_everything_comes_in_order_afterwards(
    open_buffer: Callable[..., MetricBuffer],
) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    for step in range(2500):
        buffer.log({"loss": float(step), "val_loss": 0.0}, step=step)
    assert not buffer.flush(0.1)
    assert len(buffer._sender._points) <= 1001
    assert not buffer.events.unwritten
    server.is_down = False
    assert buffer.flush(30)
    assert server.logged["loss"] == [(step, float(step)) for step in range(2500)]
    assert max(server.requests) <= 1000

    server.is_down = True
    for step in range(2500, 5000):
        buffer.log({"loss": float(step), "val_loss": 0.0}, step=step)
    assert not buffer.close(0.0)
    assert len(buffer._sender._points) <= 1001
    server.is_down = False
    assert replay(Path(str(buffer.events.path)), client=server).sent == 5000


def test_attempts_that_mlflow_knows_make_no_document_again() -> None:
    metrics = RunMetrics()
    for number, with_calls in ((1, False), (2, True)):
        event = {"event": "attempt", "attempt": number, "workers": 2, "resumed_from": 0}
        entries = list(metrics.of(event, with_calls=with_calls))
        assert [str(entry) for entry in entries if isinstance(entry, RunCall)] == [
            "the tags",
            "attempts.json",
        ] * with_calls
    assert sum(isinstance(entry, SetTags) and entry.tags["attempts"] == "2" for entry in entries) == 1


def test_without_a_file_the_oldest_of_too_many_are_lost_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    events = EventFile(None, capacity=2)
    for step in range(4):
        events.append(metrics_event({"loss": 1.0}, step, 0))
    assert [event["step"] for event in events.unwritten] == [2, 3]
    assert caplog.text.count("more than 2 events wait; the oldest are dropped from now on") == 1


def test_unsent_metrics_are_kept_and_the_replay_command_is_shown(
    open_buffer: Callable[..., MetricBuffer], log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    buffer.log({"loss": math.nan, "val_auc": 0.5}, step=1, timestamp_ms=1000)
    assert not buffer.close(0.0)
    assert f"mirrorspark runs replay {log}" in caplog.text
    assert "secret" not in caplog.text + log.read_text()

    server.is_down = False
    assert replay(log, client=server) == Replayed(RUN, sent=2, present=0, calls=0)
    assert server.logged["val_auc"] == [(1, 0.5)]
    assert math.isnan(server.logged["loss"][0][1])
    assert not log.exists()


def test_a_replay_that_fails_keeps_the_file_and_can_be_repeated(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    for step in range(3):
        buffer.log({"loss": float(step)}, step=step)
    buffer.close(0.0)
    with pytest.raises(ConnectionError):
        replay(log, client=server)
    assert log.exists()

    server.is_down = False
    server.logged["loss"] = [(0, 0.0), (2, 2.0)]  # two of three had arrived
    assert replay(log, client=server) == Replayed(RUN, sent=1, present=2, calls=0)
    assert sorted(server.logged["loss"]) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_metrics_that_an_earlier_process_left_are_sent_by_the_next_one(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    server = FakeServer(is_down=True)
    first = open_buffer(server)
    first.log({"loss": 1.0}, step=1)
    first.close(0.0)
    with log.open("a") as file:
        file.write('{"event": "mlflow_me')  # killed while writing
    server.is_down = False
    second = open_buffer(server)
    second.log({"loss": 3.0}, step=3)
    assert second.close(60)
    assert server.logged == {"loss": [(1, 1.0), (3, 3.0)]}
    assert not log.exists()


def test_a_resumed_training_adds_no_second_point_to_a_step(open_buffer: Callable[..., MetricBuffer]) -> None:
    server = FakeServer()
    first = open_buffer(server)
    for step in (1, 2, 3):
        first.log({"loss": float(step)}, step=step)
    assert first.close(60)

    second = open_buffer(server)
    for step in (2, 3, 4):  # back to the checkpoint of epoch 1
        second.log({"loss": step + 0.5, "new": 1.0}, step=step)
    second.log({"loss": 9.9}, step=4)  # the same process, restarted training
    assert second.flush(60)
    assert server.logged["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5)]
    assert [step for step, _ in server.logged["new"]] == [2, 3, 4]


def test_a_run_is_started_once_the_server_answers_and_ended_at_the_close(
    open_buffer: Callable[..., MetricBuffer],
) -> None:
    server = FakeServer(failures=2)
    buffer = open_buffer(server, run_id=None)
    buffer.log({"loss": 1.0}, step=1)
    buffer.call(SetStatus("FINISHED"))
    assert buffer.close(60)
    assert buffer.run_id == RUN
    assert server.logged == {"loss": [(1, 1.0)]}
    assert server.statuses == ["FINISHED"]


def test_metrics_of_a_run_that_could_not_be_started_are_replayed_into_a_new_one(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server, run_id=None, experiment="flights")
    buffer.log({"loss": 1.0}, step=1)
    buffer.call(SetStatus("FINISHED"))
    assert not buffer.close(0.0)
    server.is_down = False
    assert replay(log, client=server) == Replayed(RUN, sent=1, present=0, calls=1)
    assert server.experiments == ["flights"]
    assert server.statuses == ["FINISHED"]


def test_a_full_disk_is_said_and_costs_no_metric_while_the_process_lives(
    open_buffer: Callable[..., MetricBuffer],
    log: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for step in range(10):
            buffer.log({"loss": float(step)}, step=step)
    assert f"cannot write {log}" in caplog.text
    assert "its events are kept in memory" in caplog.text
    # The disk has room again when the process ends.
    buffer.close(0.0)
    server.is_down = False
    assert replay(log, client=server).sent == 10
    assert server.logged["loss"][-1] == (9, 9.0)


def test_a_disk_that_takes_nothing_keeps_nothing_from_the_server(
    open_buffer: Callable[..., MetricBuffer], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    server = FakeServer(failures=3)
    buffer = open_buffer(server, log=tmp_path / "file" / "metrics.jsonl")
    for step in range(10):
        buffer.log({"loss": float(step)}, step=step)
    assert buffer.close(60)
    assert server.logged["loss"] == [(step, float(step)) for step in range(10)]
    assert buffer.left_behind is None


EVERYTHING: tuple[RunCall, ...] = (
    LogParams({"seed": "1"}),
    SetTags({"workers": "2"}),
    LogArtifact.of("plots/roc.png", b"\x89PNG"),
    SetStatus("FINISHED"),
)


def test_parameters_tags_artifacts_and_status_arrive_once_the_server_is_there(
    open_buffer: Callable[..., MetricBuffer],
) -> None:
    server = FakeServer(failures=3)
    buffer = open_buffer(server)
    for call in EVERYTHING:
        buffer.call(call)
    buffer.log({"loss": 1.0}, step=1)
    assert buffer.close(60)
    assert (server.params, server.tags, server.statuses) == ({"seed": "1"}, {"workers": "2"}, ["FINISHED"])
    assert server.artifacts == {"plots/roc.png": b"\x89PNG"}
    assert buffer.left_behind is None


def test_other_unsent_calls_are_replayed_as_well(
    open_buffer: Callable[..., MetricBuffer], log: Path, tmp_path: Path
) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server, run_id=None, run_name="rides-1")
    for call in (*EVERYTHING, LogFolder("profile", str(tmp_path / "gone"))):
        buffer.call(call)
    assert not buffer.close(0.0)
    assert buffer.left_behind == f"mirrorspark runs replay {log}"
    server.is_down = False
    assert replay(log, client=server) == Replayed(RUN, sent=0, present=0, calls=5)
    assert (server.params, server.tags, server.statuses) == ({"seed": "1"}, {"workers": "2"}, ["FINISHED"])
    assert server.artifacts == {"plots/roc.png": b"\x89PNG"}
    assert server.started == ["rides-1"]


class LateServer(FakeServer):
    """Starts a run only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked, self.may_answer, self.has_answered = (threading.Event() for _ in range(3))

    def get_experiment_by_name(self, name: str) -> Any:
        self.is_asked.set()
        assert self.may_answer.wait(60)
        return super().get_experiment_by_name(name)

    def create_run(self, experiment_id: str, run_name: str = "", tags: dict[str, str] | None = None) -> Any:
        try:
            return super().create_run(experiment_id, run_name, tags)
        finally:
            self.has_answered.set()


def test_an_answer_that_comes_behind_the_close_takes_nothing_away(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    server = LateServer()
    buffer = open_buffer(server, run_id=None, run_name="rides-1")
    buffer.log({"loss": 1.0}, step=1)
    for call in EVERYTHING:
        buffer.call(call)
    assert server.is_asked.wait(60)
    assert not buffer.close(0.0)
    server.may_answer.set()
    assert server.has_answered.wait(60)
    buffer._thread.join(60)
    assert replay(log, client=server) == Replayed(RUN, sent=1, present=0, calls=4)
    assert (server.params, server.statuses) == ({"seed": "1"}, ["FINISHED"])


def test_a_buffer_that_another_process_has_taken_over_writes_and_sends_nothing_more(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    for arguments in ({}, {"log": EventFile(log)}):
        server = FakeServer(is_down=True)
        buffer = open_buffer(server, **arguments)
        buffer.log({"loss": 1.0}, step=1)
        before = log.read_text()
        buffer.abandon()
        server.is_down = False
        buffer.call(SetStatus("KILLED"))
        assert buffer.close()
        buffer._thread.join(60)
        assert not buffer._thread.is_alive()
        assert (log.read_text(), server.statuses) == (before, [])


def test_the_calls_of_a_file_stay_in_it_until_they_are_sent(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    """A process that is killed between its values and its calls leaves them to the next one."""
    server = FakeServer(is_down=True)
    first = open_buffer(server)
    first.log({"loss": 1.0}, step=1)
    first.call(LogParams({"seed": "1"}))
    first.close(0.0)
    sent, killed = threading.Event(), threading.Event()

    class Killed(FakeServer):
        def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            if params:
                sent.set()
                killed.wait(60)
                raise ConnectionError("gone")
            super().log_batch(run_id, metrics, params, tags)

    second = open_buffer(Killed())
    assert sent.wait(60)
    assert entry_event(LogParams({"seed": "1"})) in kept(log)
    killed.set()
    second.close(0.0)
    server.is_down = False
    assert replay(log, client=server) == Replayed(RUN, sent=1, present=0, calls=1)


class DyingError(Exception):
    """The process has died in the middle of a request."""


class LimitedServer(FakeServer):
    """Takes ``requests_left`` requests; the process dies in the next one, whose content may have arrived."""

    requests_left = 0
    is_taken = False

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        self._request(lambda: super(LimitedServer, self).log_batch(run_id, metrics, params, tags))

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self._request(lambda: super(LimitedServer, self).log_artifact(run_id, path, folder))

    def _request(self, take: Callable[[], None]) -> None:
        self.requests_left -= 1
        if self.requests_left >= 0 or self.is_taken:
            take()
        if self.requests_left < 0:
            raise DyingError


def send_all(server: FakeServer, log: Path) -> None:
    """Send what the log has, as a new process does."""
    with contextlib.closing(metric_replay.LogSender(EventFile(log))) as sender:
        while sender.read():
            sender.send(server, RUN)


@pytest.mark.parametrize("is_taken", [False, True])
@pytest.mark.parametrize("requests", range(9))
def test_a_process_that_dies_in_any_request_leaves_the_rest_to_the_next_one(
    log: Path, requests: int, *, is_taken: bool
) -> None:
    """The next one sends nothing twice, changes no order and forgets no call."""
    server = LimitedServer()
    server.requests_left, server.is_taken = requests, is_taken
    events = EventFile(log)
    with contextlib.suppress(DyingError):
        for step in (1, 2, 3):
            events.append(metrics_event({"loss": float(step), "mae": 0.0}, step, step))
            events.append(entry_event(LogParams({f"seed-{step}": "1"})))
            events.append(entry_event(LogArtifact.of(f"{step}.png", b"\x89PNG")))
            send_all(server, log)
    events.append(metrics_event({"loss": 4.0}, 4, 4))
    server.requests_left = sys.maxsize
    send_all(server, log)
    steps = max(step for step, _ in server.logged["mae"])
    assert server.logged["loss"] == [(step, float(step)) for step in (*range(1, steps + 1), 4)]
    assert server.logged["mae"] == [(step, 0.0) for step in range(1, steps + 1)]
    assert sorted(server.params) == [f"seed-{step}" for step in range(1, steps + 1)]
    assert sorted(server.artifacts) == [f"{step}.png" for step in range(1, steps + 1)]
    left = server.requests_left
    send_all(server, log)
    assert server.requests_left == left


def test_a_process_continues_from_the_position_that_mlflow_has_acknowledged(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    server = FakeServer()
    first = open_buffer(server, log=EventFile(log))
    first.log({"loss": 1.0}, step=1)
    first.call(LogArtifact.of("config.yaml", b"seed: 1"))
    assert first.close(60)
    assert 0 < read_log(log).position < log.stat().st_size
    server.artifacts["config.yaml"] = b"changed by hand"
    del server.logged["loss"]  # the server has lost it

    second = open_buffer(server, log=EventFile(log))
    second.log({"loss": 2.0}, step=2)
    assert second.close(60)
    assert (server.logged["loss"], server.artifacts) == ([(2, 2.0)], {"config.yaml": b"changed by hand"})
    # A replay restores it.
    assert replay(log, client=server) == Replayed(RUN, sent=1, present=1, calls=0)


def test_only_what_differs_is_appended_when_a_training_goes_on(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    calls: list[RunCall] = [
        LogParams({"seed": "1"}),
        LogInput("rides", "0123", "{}", "{}", "{}"),
        LogArtifact.of("dataset/features.json", b"{}"),
        SetTags({"workers": "2"}),
    ]
    for number in range(3):
        buffer = open_buffer(FakeServer(is_down=True), log=EventFile(log))
        for call in calls:
            buffer.call(call)
        assert not buffer.close(0.0)
        calls[0] = LogParams({"seed": str(min(number + 1, 2))})
    written = [from_line(event) for event in kept(log) if event["event"] == "mlflow_call"]
    tags = SetTags({"workers": "2"})
    assert written == [LogParams({"seed": "1"}), *calls[1:], tags, LogParams({"seed": "2"}), tags]
    # The calls of another run do not count.
    buffer = open_buffer(FakeServer(is_down=True), run_id="another", log=EventFile(log))
    buffer.call(calls[1])
    assert kept(log)[-1] == entry_event(calls[1])


def test_a_text_comes_back_after_another_one(open_buffer: Callable[..., MetricBuffer]) -> None:
    server = FakeServer()
    buffer = open_buffer(server)
    for text in (b"1", b"2", b"2", b"1"):
        buffer.call(LogArtifact.of("parity.txt", text))
        assert buffer.flush(60)
        assert server.artifacts == {"parity.txt": text}


def test_a_file_is_read_when_it_is_sent(
    open_buffer: Callable[..., MetricBuffer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    file, gone = tmp_path / "roc.png", tmp_path / "gone.html"
    for text in (b"old", b"new"):
        file.write_bytes(text)
        buffer.call(LogFile("plots/roc.png", str(file)))
    buffer.call(LogFile("gone.html", str(gone)))
    server.is_down = False
    assert buffer.flush(60)
    assert server.artifacts == {"plots/roc.png": b"new"}
    assert f"artifact gone.html is left out: file {gone} is missing" in caplog.text


def test_identifiers_stay_as_they_are(
    open_buffer: Callable[..., MetricBuffer], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret may be an ordinary word, too."""
    monkeypatch.setenv("POSTGRES_PASSWORD", "postgres")
    buffer = open_buffer(FakeServer(is_down=True), experiment="postgres-churn")
    # The server does not take the first, so the missing folder of the second is not looked for.
    calls = (SetAlias("postgres-churn", "challenger", "3"), LogFolder("profile", "/var/lib/postgres/run/profile"))
    for call in calls:
        buffer.call(call)
    assert kept(log)[1:] == [entry_event(call) for call in calls]
    assert kept(log)[0]["experiment"] == "postgres-churn"


@pytest.mark.parametrize("fails", [True, False])
def test_a_replay_that_fails_half_way_leaves_the_end_of_a_new_run_to_the_next(
    open_buffer: Callable[..., MetricBuffer], log: Path, *, fails: bool
) -> None:
    buffer = open_buffer(FakeServer(is_down=True), run_id=None, run_name="rides-1", log=EventFile(log))
    buffer.log({"loss": 1.0}, step=1)
    assert not buffer.close(0.0)

    class BrokenServer(FakeServer):
        def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            raise ConnectionError("gone")

    if fails:
        with pytest.raises(ConnectionError):
            replay(log, client=BrokenServer())
    server = FakeServer()
    replay(log, client=server)
    assert server.statuses == ["FINISHED"]


def test_a_file_that_is_still_written_is_not_replayed(open_buffer: Callable[..., MetricBuffer], log: Path) -> None:
    """Its end would remove it under the writer's hands."""
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    buffer.log({"loss": 1.0}, step=1)
    with pytest.raises(ValueError, match="is still written, by a process that sends it itself"):
        replay(log, client=server)
    assert not buffer.close(0.0)
    server.is_down = False
    assert replay(log, client=server, keeps_file=True).sent == 1
    assert replay(log, client=server).present == 1
    assert not log.exists()


def test_the_end_of_a_run_that_a_replay_could_not_send_is_left_to_the_next_replay(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    class EndlessServer(FakeServer):
        def set_terminated(self, run_id: str, status: str) -> None:
            raise ConnectionError("gone")

    buffer = open_buffer(FakeServer(is_down=True), log=EventFile(log))
    buffer.log({"loss": 1.0}, step=1)
    for status in ("RUNNING", "FAILED"):
        buffer.call(SetStatus(status))
    assert not buffer.close(0.0)
    with pytest.raises(ConnectionError):
        replay(log, client=EndlessServer())
    server = FakeServer()
    replay(log, client=server)
    assert server.statuses == ["FAILED"]


def test_calls_are_in_the_log_before_they_are_sent(open_buffer: Callable[..., MetricBuffer], log: Path) -> None:
    """A killed process leaves them to the replay."""
    buffer = open_buffer(FakeServer(is_down=True), run_id=None, run_name="rides-1")
    for call in EVERYTHING[:3]:
        buffer.call(call)
    buffer.log({"loss": 1.0}, step=1)
    killed = log.with_name("killed.jsonl")
    shutil.copy(log, killed)
    server = FakeServer()
    assert replay(killed, client=server) == Replayed(RUN, sent=1, present=0, calls=4)
    assert (server.params, server.tags, server.statuses) == ({"seed": "1"}, {"workers": "2"}, ["FINISHED"])
    assert server.artifacts == {"plots/roc.png": b"\x89PNG"}


def test_a_call_that_the_server_refuses_does_not_hold_up_the_next(
    open_buffer: Callable[..., MetricBuffer], caplog: pytest.LogCaptureFixture
) -> None:
    server = StrictServer()
    buffer = open_buffer(server)
    for call in reversed(EVERYTHING):
        buffer.call(call)
    assert buffer.flush(60)
    assert server.tags == {"workers": "2"}
    assert f"MLflow refused plots/roc.png of run {RUN}: invalid name" in caplog.text


def test_a_newer_text_takes_the_place_of_one_that_still_waits(open_buffer: Callable[..., MetricBuffer]) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    for text in (b"[1]", b"[1, 2]"):
        buffer.call(LogArtifact.of("attempts.json", text))
    server.is_down = False
    assert buffer.flush(60)
    assert server.artifacts == {"attempts.json": b"[1, 2]"}


def test_a_process_goes_on_with_the_run_that_an_earlier_one_could_not_start(
    open_buffer: Callable[..., MetricBuffer], log: Path
) -> None:
    server = FakeServer(is_down=True)
    first = open_buffer(server, run_id=None, run_name="rides-1")
    first.log({"loss": 1.0}, step=1)
    first.call(SetTags({"workers": "2"}))
    first.call(SetStatus("FAILED"))
    first.close(0.0)
    server.is_down = False
    second = open_buffer(server, run_id=None, run_name="rides-1")
    second.log({"loss": 2.0}, step=2)
    second.call(SetStatus("FINISHED"))
    assert second.close(60)
    assert server.logged == {"loss": [(1, 1.0), (2, 2.0)]}
    assert server.tags == {"workers": "2"}
    assert server.statuses == ["FINISHED"]
    assert not log.exists()


def test_a_run_whose_start_was_not_confirmed_is_found_by_its_name(open_buffer: Callable[..., MetricBuffer]) -> None:
    server = FakeServer()
    server.started = ["rides-1"]
    buffer = open_buffer(server, run_id=None, run_name="rides-1")
    buffer.log({"loss": 1.0}, step=1)
    assert buffer.flush(60)
    assert server.started == ["rides-1"]


def test_lingering_gathers_values_into_few_requests_and_a_flush_does_not_wait(
    open_buffer: Callable[..., MetricBuffer],
) -> None:
    server = FakeServer()
    buffer = open_buffer(server, linger_seconds=3600.0)
    for step in range(50):
        buffer.log({"loss": float(step)}, step=step)
    assert buffer.flush(60)
    assert len(server.requests) <= 3
    assert len(server.logged["loss"]) == 50


def test_a_log_of_another_run_is_refused(open_buffer: Callable[..., MetricBuffer], log: Path) -> None:
    server = FakeServer(is_down=True)
    buffer = open_buffer(server)
    buffer.log({"loss": 1.0}, step=1)
    buffer.close(0.0)
    with pytest.raises(ValueError, match=f"holds metrics of run {RUN}; send them first"):
        MetricBuffer(Target("fedcba9876543210", server.tracking_uri, "Default"), client=server, log=log)


def test_a_run_id_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an MLflow run id"):
        MetricBuffer(Target("../../etc/x", "", "Default"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_auc", "val_auc"),
        ("factorized_top_k/top_10", "factorized_top_k/top_10"),
        ("recall@20", "recall_20"),
        ("/rooted", "_rooted"),
        ("a//b", "a__b"),
        ("..", "__"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_are_made_to_fit_mlflow(name: str, expected: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(name) == expected
    _validate_metric_name(expected)


def test_the_wait_doubles_up_to_its_limit() -> None:
    assert [retry_delay(n, 1.0) for n in (1, 2, 3, 7, 10_000)] == [1.0, 2.0, 4.0, 60.0, 60.0]


def test_a_real_store_holds_one_point_per_step_over_resume_and_replay(
    mlflow_store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(mlflow_store)
    run_id = client.create_run("0").info.run_id
    for steps in ((1, 2), (2, 3)):
        buffer = MetricBuffer(Target(run_id, mlflow_store, "Default"), log=tmp_path / "log.jsonl")
        for step in steps:
            buffer.log({"loss": 1.0 / step, "recall@20": math.nan}, step=step)
        assert buffer.close(60)

    file = tmp_path / "left.jsonl"
    points = [metrics_event({"loss": value}, step, 1000) for step, value in ((2, 0.5), (4, 0.25))]
    write(file, Target(run_id, mlflow_store, "Default"), *points)
    assert report(file) == 0
    assert capsys.readouterr().out == f"1 metric values sent to run {run_id}, 1 were there already\n"

    points = [(point.step, point.value) for point in client.get_metric_history(run_id, "loss")]
    assert sorted(points) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert sorted(point.step for point in client.get_metric_history(run_id, "recall_20")) == [1, 2, 3]


class AwayServer:
    """Never answers; its store is a real one."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("nobody answers")


@pytest.fixture
def other_store(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let MLflow be set to another store; return its file."""
    file = tmp_path / "other.db"
    shutil.copy(mlflow_store.removeprefix("sqlite:///"), file)  # with its tables
    mlflow.set_tracking_uri(None)  # what another test of this process said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    return file


@pytest.mark.parametrize("has_run", [True, False])
def test_a_replay_goes_to_the_store_of_the_run_whatever_mlflow_is_set_to(
    mlflow_store: str, other_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_run: bool
) -> None:
    before = other_store.read_bytes()
    client = MlflowClient(mlflow_store)
    experiment = client.create_experiment(f"replayed-{has_run}", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id if has_run else None
    folder = Path(mlflow_store.removeprefix("sqlite:///")).parent
    monkeypatch.chdir(folder)
    # An address that means this store in this folder alone.
    away = AwayServer("sqlite:///mlflow.db")
    target = Target(run_id, away.tracking_uri, f"replayed-{has_run}")
    buffer = MetricBuffer(target, client=away, log=tmp_path / "log.jsonl")
    buffer.log({"loss": 0.5}, step=1)
    buffer.call(LogArtifact.of("attempts.json", b"[]"))
    assert not buffer.close(0.0)
    monkeypatch.chdir(tmp_path)
    done = replay(tmp_path / "log.jsonl")
    assert run_id in (None, done.run_id)
    run = client.get_run(done.run_id)
    assert (run.info.experiment_id, run.data.metrics) == (experiment, {"loss": 0.5})
    assert (tmp_path / "artifacts" / done.run_id / "artifacts" / "attempts.json").read_bytes() == b"[]"
    assert other_store.read_bytes() == before
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_is_set_to_the_store_of_the_run_with_the_password_that_no_file_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "left.jsonl"
    write(file, Target(RUN, "http://tracking:5000", "Default"))
    target = read_log(file).target
    assert target is not None
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@tracking:5000/")
    assert metric_replay._store_of(target) == "http://ann:s3cret@tracking:5000/"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@elsewhere:5000")
    assert metric_replay._store_of(target) == "http://tracking:5000"
    assert metric_replay._store_of(replace(target, tracking_uri="")) == "http://ann:s3cret@elsewhere:5000"


def test_a_call_that_the_server_refuses_does_not_hold_up_a_replay(
    open_buffer: Callable[..., MetricBuffer], log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = StrictServer(is_down=True)
    buffer = open_buffer(server)
    for call in (LogArtifact.of("attempts.json", b"[]"), SetTags({"workers": "2"}), SetStatus("FINISHED")):
        buffer.call(call)
    assert not buffer.close(0.0)
    server.is_down = False
    replay(log, client=server)
    assert (server.tags, server.statuses) == ({"workers": "2"}, ["FINISHED"])
    assert f"MLflow refused attempts.json of run {RUN}: invalid name" in caplog.text
    assert not log.exists()


def test_the_replay_command_says_what_is_wrong_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path / "absent") == 2
    assert "absent does not exist" in capsys.readouterr().err
    (tmp_path / "empty").write_text("")
    assert report(tmp_path / "empty") == 2
    assert "empty holds nothing for MLflow" in capsys.readouterr().err


def test_the_replay_says_where_it_goes_and_ends_soon_where_nobody_answers(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    file = tmp_path / "left.jsonl"
    write(file, Target("0" * 32, "http://127.0.0.1:9", "Default"), metrics_event({"loss": 0.5}, 2, 1000))
    assert report(file) == 1
    assert f"sending {file} to http://127.0.0.1:9" in caplog.text
    assert f"{file} is kept, because MLflow did not accept it: Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("(Caused by NewConnectionError('<x>: Failed: [Errno 111] Connection refused'))", "Connection refused"),
        ("('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))", "Connection reset by peer"),
        ("('Connection aborted.', RemoteDisconnected('Remote end closed connection'))", "Remote end closed connection"),
        ("RESOURCE_DOES_NOT_EXIST: no run\nmore of it", "RESOURCE_DOES_NOT_EXIST: no run"),
    ],
)
def test_an_outage_is_reported_with_the_systems_message(said: str, words: str) -> None:
    assert first_line(ConnectionError(said)) == words
