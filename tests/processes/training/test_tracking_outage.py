"""T7: a tracking server that is away, hangs or is slow, at whatever time of a run, costs no metric and no run."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mirrorspark.callbacks.mlflow.metric_replay import replay
from mirrorspark.storage.event_file import EventFile
from mirrorspark.testing.proxy import Proxy
from mirrorspark.training.configuration.config import TrainingConfig
from mirrorspark.training.protocol.names import EVENTS_FILE
from mirrorspark.training.run_records import tracked_run, tracking
from mirrorspark.training.run_records.tracked_run import TrackedRun, TrackingError
from tests.mlflow_server import mlflow_server

pytestmark = pytest.mark.timeout(180)

STORE_ANSWERS_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run an MLflow server on a free port of loopback; yield the port."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db", str(folder / "files")) as port:
        yield port


@pytest.fixture(autouse=True)
def no_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings that other tests of this process made in MLflow, which keeps them in the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def road(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Yield the way to the server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracked_run, "_CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(tracked_run, "_SERVER_SECONDS", 0.5)
    monkeypatch.setattr(tracked_run, "_LINGER_SECONDS", 0.01)
    with Proxy(server) as road:
        yield road


def log_of(output: Path, name: str) -> Path:
    return output / "runs" / name / EVENTS_FILE


def open_run(road: Proxy, output: Path, name: str) -> TrackedRun:
    log = EventFile(log_of(output, name))
    return TrackedRun(f"http://ann:s3cret@127.0.0.1:{road.port}", "outage", output, None, name, log)


def train(tracked: TrackedRun, epochs: range) -> None:
    for epoch in epochs:
        event = {"event": "epoch_end", "rank": 0, "epoch": epoch, "logs": {"loss": 1 / epoch}, "seconds": 2.5}
        tracked.events.append(event | {"examples_per_second": None})


def wait_until_sent(tracked: TrackedRun) -> None:
    assert tracked._buffer.flush(STORE_ANSWERS_SECONDS)


def logged(server: int, run_id: str) -> dict[str, Any]:
    client = MlflowClient(f"http://127.0.0.1:{server}")
    run = client.get_run(run_id)
    points = client.get_metric_history(run_id, "loss")
    return {
        "epochs": sorted(point.step for point in points),
        "params": run.data.params,
        "dataset": run.data.tags.get("dataset"),
        "status": run.info.status,
        "artifacts": sorted(file.path for file in client.list_artifacts(run_id)),
    }


WHOLE = {
    "epochs": [1, 2, 3, 4],
    "params": {"seed": "1"},
    "dataset": "rides",
    "status": "FINISHED",
    "artifacts": ["attempts.json"],
}


def describe(tracked: TrackedRun) -> None:
    tracked.log_params({"seed": 1})
    tracked.log_tags({"dataset": "rides"})
    tracked.log_document([], "attempts.json")


def test_a_run_begins_without_its_server_and_loses_nothing(
    road: Proxy, server: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with road.cut():
        tracked = open_run(road, tmp_path, "start")
        assert tracked.run_id is None
        describe(tracked)
        train(tracked, range(1, 3))
        with pytest.raises(TrackingError, match="is still away, so the model cannot be registered; the training is"):
            tracked.require_run_id()
    wait_until_sent(tracked)
    train(tracked, range(3, 5))
    run_id = tracked.require_run_id()
    wait_until_sent(tracked)
    assert tracked.finish("FINISHED") is None
    assert logged(server, run_id) == WHOLE
    away = f"MLflow at http://127.0.0.1:{road.port} is away (Connection refused); the training begins"
    assert away in caplog.text
    assert "s3cret" not in caplog.text + log_of(tmp_path, "start").read_text()


def test_a_server_that_goes_away_in_the_middle_gets_everything_later(road: Proxy, server: int, tmp_path: Path) -> None:
    tracked = open_run(road, tmp_path, "middle")
    train(tracked, range(1, 2))
    wait_until_sent(tracked)
    with road.cut():
        describe(tracked)
        train(tracked, range(2, 4))
        assert not tracked._buffer.flush(0.2)
        with pytest.raises(TrackingError, match="is still away, so the model cannot be registered; the training is"):
            tracked.require_server()
    wait_until_sent(tracked)
    assert tracked.require_server() == tracked.run_id
    train(tracked, range(4, 5))
    wait_until_sent(tracked)
    assert tracked.finish("FINISHED") is None
    assert logged(server, tracked.require_run_id()) == WHOLE


def longest_call(tracked: TrackedRun, epochs: range) -> float:
    """Return the longest time in seconds that the training of these epochs has waited."""
    taken = []
    for epoch in epochs:
        begin = time.monotonic()
        train(tracked, range(epoch, epoch + 1))
        taken.append(time.monotonic() - begin)
    return max(taken)


def test_a_slow_server_holds_no_training_up_and_gets_everything(road: Proxy, server: int, tmp_path: Path) -> None:
    tracked = open_run(road, tmp_path, "slow")
    describe(tracked)
    train(tracked, range(1, 2))
    wait_until_sent(tracked)
    with road.slow(0.5):
        assert longest_call(tracked, range(2, 5)) < 0.1
        assert not tracked._buffer.flush(0.1)  # a request takes a second
        wait_until_sent(tracked)
    assert tracked.finish("FINISHED") is None
    assert logged(server, tracked.require_run_id()) == WHOLE


def test_a_server_that_hangs_holds_no_training_up_and_gets_every_point_once(
    road: Proxy, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points that were given up may yet arrive there, in addition to those sent in their place."""
    tracked = open_run(road, tmp_path, "hangs")
    describe(tracked)
    train(tracked, range(1, 2))
    wait_until_sent(tracked)
    with road.held(), monkeypatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        assert longest_call(tracked, range(2, 5)) < 0.1
        with tracked._buffer._changed:
            assert tracked._buffer._changed.wait_for(lambda: tracked._buffer._failures > 0, STORE_ANSWERS_SECONDS)
        assert longest_call(tracked, range(5, 6)) < 0.1
    wait_until_sent(tracked)
    assert tracked.finish("FINISHED") is None
    assert logged(server, tracked.require_run_id()) == WHOLE | {"epochs": [1, 2, 3, 4, 5]}


def test_a_server_that_stays_away_leaves_a_file_and_the_command_that_replays_it(
    road: Proxy, server: int, tmp_path: Path
) -> None:
    tracked = open_run(road, tmp_path, "end")
    train(tracked, range(1, 3))
    wait_until_sent(tracked)
    run_id = tracked.require_run_id()
    with road.cut():
        describe(tracked)
        train(tracked, range(3, 5))
        command = f"mirrorspark runs replay end --output {tmp_path}"
        assert tracked.finish("FINISHED") == command
    log = log_of(tmp_path, "end")
    assert "s3cret" not in log.read_text()
    assert (replay(log).run_id, replay(log).sent) == (run_id, 0)
    assert logged(server, run_id) == WHOLE


def test_a_killed_driver_leaves_what_the_next_command_on_the_run_sends(
    road: Proxy, server: int, tmp_path: Path
) -> None:
    tracked = open_run(road, tmp_path, "killed")
    train(tracked, range(1, 2))
    wait_until_sent(tracked)
    run_id = tracked.require_run_id()
    with road.cut():
        describe(tracked)
        train(tracked, range(2, 5))
        tracked._buffer._closed = True  # as dead
        left = log_of(tmp_path, "killed").read_bytes()
        # By way of a replay ...
        assert replay(log_of(tmp_path, "killed"), tracking_uri=f"http://127.0.0.1:{server}").sent == 6
        assert logged(server, run_id) == WHOLE | {"status": "RUNNING"}
    # ... or of a run that goes on, which finds that nothing is missing.
    log_of(tmp_path, "killed").write_bytes(left)
    again = open_run(road, tmp_path, "killed")
    wait_until_sent(again)
    assert again.finish("FINISHED") is None
    assert logged(server, run_id) == WHOLE


def test_a_run_that_goes_on_sends_what_its_driver_left(road: Proxy, server: int, tmp_path: Path) -> None:
    with road.cut():
        first = open_run(road, tmp_path, "goes-on")
        describe(first)
        train(first, range(1, 4))
        assert first.finish("FAILED") is not None
    second = open_run(road, tmp_path, "goes-on")
    train(second, range(3, 5))  # back to the checkpoint of the second epoch
    wait_until_sent(second)
    assert second.finish("FINISHED") is None
    run_id = second.require_run_id()
    assert logged(server, run_id) == WHOLE
    # A later replay has nothing to send.
    assert replay(log_of(tmp_path, "goes-on")).sent == 0
    assert logged(server, run_id) == WHOLE


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_run_that_the_environment_names_gets_everything_though_its_server_was_away_at_the_start(
    road: Proxy, server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, comes_back: bool
) -> None:
    """L5, T7: a job's run, which the job ends."""
    client = MlflowClient(f"http://127.0.0.1:{server}")
    experiment = client.create_experiment(f"a job's, {comes_back}")
    named = client.create_run(experiment).info.run_id
    store, name = f"http://127.0.0.1:{road.port}", f"named-{comes_back}"
    mlflow.set_tracking_uri(None)  # what another test of this process said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_RUN_ID", named)
    with road.cut():
        outer = tracking.Tracking.find(TrainingConfig(name="rides", output=str(tmp_path))).outer
        tracked = TrackedRun(store, "rides", tmp_path, None, name, EventFile(log_of(tmp_path, name)), outer)
        describe(tracked)
        train(tracked, range(1, 5))
        if not comes_back:
            assert tracked.finish("FINISHED") is not None
    if comes_back:
        wait_until_sent(tracked)
        assert (tracked.run_id, tracked.is_users) == (named, True)
        assert tracked.finish("FINISHED") is None
    else:
        assert replay(log_of(tmp_path, name)).run_id == named
    assert logged(server, named) == WHOLE | {"status": "RUNNING"}
    assert [run.info.run_id for run in client.search_runs([experiment])] == [named]
    assert client.get_experiment_by_name("rides") is None
    # A further training of the job is a child, in the experiment of the job.
    with road.cut():
        outer = tracking.Tracking.find(TrainingConfig(name="rides", output=str(tmp_path))).outer
        further = TrackedRun(store, "rides", tmp_path, None, f"{name}-2", outer=outer)
        train(further, range(1, 2))
    wait_until_sent(further)
    child = client.get_run(further.require_run_id())
    assert (child.data.tags["mlflow.parentRunId"], child.info.experiment_id) == (named, experiment)
    further.finish("FINISHED")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Let a job's environment name another store, and a run there; return a function that reads all of that store."""
    file = tmp_path / "elsewhere" / "mlflow.db"
    file.parent.mkdir()
    client = MlflowClient(f"sqlite:///{file}")
    experiment = client.create_experiment("the job's", artifact_location=(file.parent / "artifacts").as_uri())
    mlflow.set_tracking_uri(None)  # what another test of this process said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{file}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the job's")
    monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment).info.run_id)
    monkeypatch.setenv("MLFLOW_ACTIVE_MODEL_ID", client.create_logged_model(experiment, "jobs").model_id)

    def content() -> list[str]:
        with sqlite3.connect(file) as database:
            return [*database.iterdump(), *(str(path) for path in file.parent.iterdir())]

    return content


def test_an_outage_leads_nothing_into_the_store_that_the_environment_names(
    road: Proxy, server: int, tmp_path: Path, elsewhere: Callable[[], list[str]]
) -> None:
    before = elsewhere()
    output = tmp_path / "output"
    tracked = open_run(road, output, "other-store")
    train(tracked, range(1, 2))
    wait_until_sent(tracked)
    run_id = tracked.require_run_id()
    with road.cut():
        describe(tracked)
        train(tracked, range(2, 5))
        assert tracked.finish("FINISHED") is not None
    assert replay(log_of(output, "other-store")).run_id == run_id
    assert logged(server, run_id) == WHOLE
    assert elsewhere() == before


def test_a_run_that_never_saw_its_server_is_not_made_in_the_store_that_the_environment_names(
    road: Proxy, server: int, tmp_path: Path, elsewhere: Callable[[], list[str]]
) -> None:
    before = elsewhere()
    with road.cut():
        tracked = open_run(road, tmp_path, "never-elsewhere")
        describe(tracked)
        train(tracked, range(1, 5))
        assert tracked.finish("FINISHED") is not None
    done = replay(log_of(tmp_path, "never-elsewhere"))
    assert logged(server, done.run_id) == WHOLE
    assert elsewhere() == before


def test_a_run_that_never_saw_its_server_is_made_by_the_replay(road: Proxy, server: int, tmp_path: Path) -> None:
    with road.cut():
        # As a sweep does, which has no log.
        tracked = TrackedRun(f"http://127.0.0.1:{road.port}", "outage", tmp_path, None, "never")
        describe(tracked)
        for epoch in range(1, 5):
            tracked.log_metrics({"loss": 1 / epoch}, epoch)
        file = tmp_path / "mlflow-metrics-never.jsonl"
        assert tracked.finish("FINISHED") == f"mirrorspark runs replay {file}"
    done = replay(file)
    assert not file.exists()
    assert logged(server, done.run_id) == WHOLE
    assert MlflowClient(f"http://127.0.0.1:{server}").get_run(done.run_id).info.run_name == "never"
