"""T7: one MLflow run per training, however many drivers and attempts it took, on a real store."""

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from mirrorspark.callbacks.mlflow.metric_requests import RUN_TAG
from mirrorspark.callbacks.mlflow.tracking_store import default_store, own_store
from mirrorspark.training.configuration.config import ConfigError, TrainingConfig
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.run_records.sources import environment, git_commit, source_tags
from mirrorspark.training.run_records.tracked_run import TrackedRun, TrackingError
from mirrorspark.training.run_records.tracking import Tracking, store_of
from tests.conftest import PATIENCE
from tests.unit.storage.writes import without_renames

OpenRun = Callable[..., TrackedRun]


def epoch_end(epoch: int, loss: float, *, rank: int = 0) -> Event:
    return {
        "event": "epoch_end",
        "rank": rank,
        "epoch": epoch,
        "logs": {"loss": loss, "val_auc": 0.7},
        "seconds": 2.5,
        "examples_per_second": 1000.0,
    }


@pytest.fixture
def open_run(mlflow_store: str, tmp_path: Path, request: pytest.FixtureRequest) -> OpenRun:
    """Return a function that opens this test's run, a new one or one to continue."""

    def build(
        run_id: str | None = None, *, experiment: str = request.node.name, run_name: str = "rides-1"
    ) -> TrackedRun:
        return TrackedRun(mlflow_store, experiment, tmp_path, run_id, run_name)

    return build


@pytest.fixture
def client(mlflow_store: str) -> MlflowClient:
    return MlflowClient(mlflow_store)


def curve(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def test_a_training_is_one_run_with_a_name_in_its_experiment(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    tracked.finish("FINISHED")
    runs = client.search_runs([tracked.experiment_id])
    assert [(run.info.run_id, run.info.run_name) for run in runs] == [(tracked.run_id, "rides-1")]
    assert client.get_experiment(tracked.experiment_id).name == (
        "test_a_training_is_one_run_with_a_name_in_its_experiment"
    )


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_a_run_ends_as_it_is_told(open_run: OpenRun, client: MlflowClient, status: str) -> None:
    tracked = open_run()
    assert client.get_run(tracked.run_id).info.status == "RUNNING"
    tracked.finish(status)
    assert client.get_run(tracked.run_id).info.status == status


def test_a_resumed_training_goes_on_in_its_run(open_run: OpenRun, client: MlflowClient) -> None:
    first = open_run()
    first.finish("FAILED")
    second = open_run(first.run_id)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.finish("FINISHED")
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert len(client.search_runs([first.experiment_id])) == 1


def test_the_curve_of_a_resumed_training_has_one_point_per_epoch(open_run: OpenRun, client: MlflowClient) -> None:
    first = open_run()
    for epoch, loss in ((1, 0.9), (2, 0.8), (3, 0.7)):
        first.events.append(epoch_end(epoch, loss))
    first.finish("FAILED")
    second = open_run(first.run_id)
    # Epoch 3 was reported before its checkpoint was committed, so it is trained again.
    for epoch, loss in ((3, 0.71), (4, 0.6)):
        second.events.append(epoch_end(epoch, loss))
    second.finish("FINISHED")
    assert curve(client, first.run_id, "loss") == [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)]
    assert [step for step, _ in curve(client, first.run_id, "val_auc")] == [1, 2, 3, 4]
    assert curve(client, first.run_id, "system/seconds_per_epoch")[0] == (1, 2.5)
    assert curve(client, first.run_id, "system/examples_per_second")[0] == (1, 1000.0)


def test_only_epochs_of_the_chief_become_metrics(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    tracked.events.append(epoch_end(1, 0.5, rank=1))
    tracked.events.append({"event": "progress", "rank": 0, "epoch": 1, "loss": 0.4})
    tracked.events.append(epoch_end(1, 0.9) | {"examples_per_second": None})
    tracked.finish("FINISHED")
    metrics = client.get_run(tracked.run_id).data.metrics
    assert metrics == {"loss": 0.9, "val_auc": 0.7, "system/seconds_per_epoch": 2.5}


def test_metrics_of_the_work_are_system_metrics_without_a_group_of_their_own(
    open_run: OpenRun, client: MlflowClient
) -> None:
    """L6: MLflow's charts begin with groups other than ``system``, and each slash makes one."""
    tracked = open_run()
    attempt = {"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": 0, "time": 10.0}
    usage = {"event": "system", "rank": 0, "time": 20.0, "cpu_percent": 50.0, "memory_bytes": 2_000_000}
    for event in (attempt, progress(10, 1000.0), epoch_end(1, 0.9), usage):
        tracked.events.append(event)
    tracked.finish("FINISHED")
    names = set(client.get_run(tracked.run_id).data.metrics)
    assert {"loss", "val_auc", "system/attempt", "system/step_loss", "system/world_size"} <= names
    assert {name.rpartition("/")[0] for name in names} == {"", "system"}


def test_a_run_has_the_name_that_is_given_for_its_pages_and_is_found_by_its_own(
    mlflow_store: str, tmp_path: Path, client: MlflowClient
) -> None:
    first, again = (
        TrackedRun(mlflow_store, "titled", tmp_path, None, "rides-1", title=title)
        for title in ("lr 0.001 · batch 512", "lr 0.1 · batch 512")
    )
    assert first.run_id == again.run_id
    run = client.get_run(first.run_id)
    assert (run.info.run_name, run.data.tags["mirrorspark.run"]) == ("lr 0.001 · batch 512", "rides-1")
    view = first.share_comparison("val_auc")
    assert view is not None
    assert view.startswith(f"http://127.0.0.1:5000/#/experiments/{first.experiment_id}/runs?viewStateShareKey=")
    for tracked in (first, again):
        tracked.finish("FINISHED")


def test_parameters_are_logged_once_and_nested_ones_by_dotted_names(open_run: OpenRun, client: MlflowClient) -> None:
    first = open_run()
    first.log_params({"workers": 2, "data": None, "model": {"name": "multi_field", "hidden_units": [8, 4]}})
    first.finish("FAILED")
    second = open_run(first.run_id)
    # The second try trains elsewhere; a parameter of a run cannot be changed.
    second.log_params({"workers": 1, "seed": 3, "model": {"name": "multi_field"}})
    second.finish("FINISHED")
    assert client.get_run(first.run_id).data.params == {
        "workers": "2",
        "model.name": "multi_field",
        "model.hidden_units": "[8, 4]",
        "seed": "3",
    }


def test_a_parameter_that_is_too_long_is_cut(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    tracked.log_params({"long": "x" * 10_000})
    tracked.finish("FINISHED")
    assert client.get_run(tracked.run_id).data.params["long"] == "x" * 6000


def test_files_are_next_to_the_store_where_the_output_has_no_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "volume").mkdir()
    with monkeypatch.context() as patched:
        without_renames(patched)
        tracked = TrackedRun(own_store(tmp_path), "flights", tmp_path / "volume", None, "first")
    tracked.log_document([{"attempt": 1}], "attempts.json")
    tracked.finish("FINISHED")
    assert len([*(tmp_path / "mlartifacts").rglob("attempts.json")]) == 1


def test_tags_can_change(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    for attempts in ("1", "2"):
        tracked.log_tags({"attempts": attempts})
    tracked.finish("FINISHED")
    assert client.get_run(tracked.run_id).data.tags["attempts"] == "2"


def test_documents_texts_and_figures_are_artifacts_under_the_output_folder(
    open_run: OpenRun, client: MlflowClient, tmp_path: Path
) -> None:
    tracked = open_run()
    tracked.log_document({"rows": {"train": 7}}, "dataset/manifest.json")
    tracked.log_document([{"attempt": 1}], "attempts.json")
    tracked.log_text("epochs: 3\n", "config.yaml")
    tracked.log_figure(Figure(), tmp_path / "images" / "roc.png")
    tracked.finish("FINISHED")
    root = Path(url2pathname(urlsplit(client.get_run(tracked.run_id).info.artifact_uri).path))
    assert root.is_relative_to(tmp_path / "mlartifacts")
    assert json.loads((root / "dataset" / "manifest.json").read_text()) == {"rows": {"train": 7}}
    assert json.loads((root / "attempts.json").read_text()) == [{"attempt": 1}]
    assert (root / "config.yaml").read_text() == "epochs: 3\n"
    image = (root / "plots" / "roc.png").read_bytes()
    assert image == (tmp_path / "images" / "roc.png").read_bytes()
    assert image.startswith(b"\x89PNG")


def test_an_experiment_is_made_once(open_run: OpenRun) -> None:
    runs = [open_run(experiment="shared", run_name=name) for name in ("rides-1", "rides-2")]
    for tracked in runs:
        tracked.finish("FINISHED")
    assert runs[0].experiment_id == runs[1].experiment_id
    assert runs[0].run_id != runs[1].run_id


def test_a_run_that_the_store_does_not_know_cannot_go_on(open_run: OpenRun) -> None:
    with pytest.raises(TrackingError, match=r"run 0123 cannot go on \(--no-resume starts a new one\)"):
        open_run("0123")


def test_a_deleted_experiment_is_refused_with_the_reason(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run(experiment="deleted")
    tracked.finish("FINISHED")
    client.delete_experiment(tracked.experiment_id)
    message = r"the MLflow experiment 'deleted' was deleted, .*: restore it .*, or set experiment .* to another name"
    with pytest.raises(TrackingError, match=message):
        open_run(experiment="deleted")
    config = TrainingConfig(name="late", experiment="deleted", tracking_uri=tracked.uri)
    with pytest.raises(ConfigError, match=message):
        Tracking.find(config).require_names("late")
    client.restore_experiment(tracked.experiment_id)
    Tracking.find(config).require_names("late")
    Tracking.find(replace(config, experiment="other")).require_names("late")


def test_a_run_whose_driver_died_before_it_kept_the_id_is_found_by_its_name(open_run: OpenRun) -> None:
    first = open_run()
    second = open_run()
    assert first.run_id == second.run_id
    for tracked in (first, second):
        tracked.finish("FINISHED")


def test_a_store_on_disk_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrackingError, match="cannot be opened"):
        TrackedRun(f"sqlite:///{tmp_path}/file/mlflow.db", "rides", tmp_path, None, "rides-1")


def progress(step: int, time: float, *, rank: int = 0) -> Event:
    event = {"event": "progress", "rank": rank, "step": step, "time": time}
    return event | {"loss": 1 / step, "examples_per_second": 1000.0 * step}


def test_steps_are_sampled_over_the_optimizers_steps_beside_the_curves_over_epochs(
    open_run: OpenRun, client: MlflowClient
) -> None:
    tracked = open_run()
    for second in range(21):
        tracked.events.append(progress(second * 10 + 10, second / 2 + 1000.0))
        tracked.events.append(progress(second * 10 + 10, second / 2 + 1000.0, rank=1))
    tracked.events.append(epoch_end(1, 0.9) | {"step": 210})
    tracked.finish("FINISHED")
    assert [step for step, _ in curve(client, tracked.run_id, "system/step_loss")] == [10, 110, 210]
    assert curve(client, tracked.run_id, "system/step_examples_per_second")[1] == (110, 110_000.0)
    assert curve(client, tracked.run_id, "loss") == [(1, 0.9)]
    assert client.get_metric_history(tracked.run_id, "system/step_loss")[0].timestamp == 1_000_000


def test_usage_of_every_worker_stands_under_the_names_of_mlflows_system_metrics(
    open_run: OpenRun, client: MlflowClient
) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    tracked = open_run()
    began = client.get_run(tracked.run_id).info.start_time / 1000
    for second in range(0, 21, 5):
        for rank in (0, 1):
            usage = {"cpu_percent": 150.04, "memory_bytes": 1_500_000_000 + rank}
            tracked.events.append({"event": "system", "rank": rank, "time": began + second} | usage)
    tracked.finish("FINISHED")
    monitor = CPUMonitor()
    monitor.collect_metrics()
    for rank in (0, 1):
        for name, value in (("cpu_utilization_percentage", 150.0), ("system_memory_usage_megabytes", 1500.0)):
            assert name in monitor.metrics
            assert curve(client, tracked.run_id, f"system/worker_{rank}_{name}") == [
                (0, value),
                (10, value),
                (20, value),
            ]


def test_attempts_are_tags_metrics_and_a_document_while_they_happen(
    open_run: OpenRun, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "pa55w0rd")
    tracked = open_run()
    tracked.events.append({"event": "attempt", "attempt": 1, "workers": 4, "resumed_from": 0})
    error = {"cause": "lost", "rank": 1, "type": "killed", "message": "s3://ann:s3cret@b pa55w0rd", "traceback": "long"}
    restart = {"event": "restart", "attempt": 1, "error": error, "decision": "restart 1 of 3", "delay_seconds": 0.0}
    tracked.events.append(restart)
    tracked.events.append({"event": "attempt", "attempt": 2, "workers": 3, "resumed_from": 120})
    tracked.events.append(epoch_end(1, 0.9) | {"step": 200})
    tracked.finish("FINISHED")
    run = client.get_run(tracked.run_id)
    assert {name: run.data.tags[name] for name in ("attempts", "workers")} == {"attempts": "2", "workers": "3"}
    assert curve(client, tracked.run_id, "system/world_size") == [(1, 4.0), (121, 3.0), (200, 3.0)]
    assert curve(client, tracked.run_id, "system/attempt") == [(1, 1.0), (2, 2.0)]
    root = Path(url2pathname(urlsplit(run.info.artifact_uri).path))
    first = json.loads((root / "attempts.json").read_text())[0]
    assert first == {
        "attempt": 1,
        "workers": 4,
        "resumed_from_step": 0,
        "error": error | {"message": "s3://b ***", "traceback": ""},
        "decision": "restart 1 of 3",
        "delay_seconds": 0.0,
    }


def test_no_attempt_is_lost_that_begins_where_another_one_was_before(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    tracked.events.append({"event": "attempt", "attempt": 1, "workers": 4, "resumed_from": 0})
    tracked.events.append(epoch_end(1, 0.9) | {"step": 200})
    # At the end of the epoch, then twice in the middle of one, behind which the first attempt was already.
    for number, (workers, step) in enumerate([(3, 200), (2, 120), (1, 120)], start=2):
        tracked.events.append({"event": "attempt", "attempt": number, "workers": workers, "resumed_from": step})
    tracked.events.append(epoch_end(2, 0.8) | {"step": 400})
    tracked.finish("FINISHED")
    world_size = [(1, 4.0), (200, 4.0), (201, 3.0), (202, 2.0), (203, 1.0), (400, 1.0)]
    assert curve(client, tracked.run_id, "system/world_size") == world_size
    assert [value for _, value in curve(client, tracked.run_id, "system/attempt")] == [1.0, 2.0, 3.0, 4.0]


def test_metrics_logged_by_an_earlier_driver_are_not_logged_twice(open_run: OpenRun, client: MlflowClient) -> None:
    events = [{"event": "attempt", "attempt": 1, "workers": 2, "resumed_from": 0}, progress(10, 1000.0)]
    first = open_run()
    for event in events:
        first.events.append(event)
    first.finish("FAILED")
    second = open_run(first.run_id)
    for event in [*events, {"event": "attempt", "attempt": 1, "workers": 1, "resumed_from": 10}]:
        second.events.append(event)
    second.finish("FINISHED")
    assert curve(client, first.run_id, "system/world_size") == [(1, 2.0), (11, 1.0)]
    assert curve(client, first.run_id, "system/attempt") == [(1, 1.0), (2, 2.0)]
    assert curve(client, first.run_id, "system/step_loss") == [(10, 0.1)]
    assert client.get_run(first.run_id).data.tags["attempts"] == "2"


def test_secrets_reach_neither_parameters_nor_tags(
    open_run: OpenRun, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-t0ken")
    tracked = open_run()
    tracked.log_params(
        {"store": {"secret_key": "k3y", "uri": "s3://ann:s3cret@b"}, "note": "t0ken-t0ken", "keys": "id"}
    )
    tracked.log_tags({"source": "http://ann:s3cret@host", "store.password": "two words"})
    tracked.finish("FINISHED")
    data = client.get_run(tracked.run_id).data
    assert data.params == {"store.secret_key": "***", "store.uri": "s3://b", "note": "***", "keys": "id"}
    assert (data.tags["source"], data.tags["store.password"]) == ("http://host", "***")


def test_a_folder_becomes_artifacts(open_run: OpenRun, client: MlflowClient, tmp_path: Path) -> None:
    profile = tmp_path / "profile" / "rank-0" / "plugins"
    profile.mkdir(parents=True)
    (profile / "host.xplane.pb").write_bytes(b"trace")
    tracked = open_run()
    tracked.log_folder(tmp_path / "profile", "profile")
    tracked.finish("FINISHED")
    root = Path(url2pathname(urlsplit(client.get_run(tracked.run_id).info.artifact_uri).path))
    assert (root / "profile" / "rank-0" / "plugins" / "host.xplane.pb").read_bytes() == b"trace"


def test_the_default_store_is_a_file_under_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert own_store(Path("out")) == f"sqlite:///{tmp_path}/out/mlflow.db"


def test_the_store_is_the_given_one_else_mlflows_else_the_runs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: and where it is the run's own, this process looks up models there, too."""
    config = TrainingConfig(name="late", output=str(tmp_path))
    own = own_store(tmp_path)
    assert store_of(config) == own
    assert default_store() == own
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-the-environment:5000")
    assert store_of(config) == "http://from-the-environment:5000"
    assert default_store() is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri("http://set:5000")
    try:
        assert store_of(config) == "http://set:5000"
        assert store_of(replace(config, tracking_uri="http://given:5000")) == "http://given:5000"
    finally:
        mlflow.set_tracking_uri(None)


def test_the_experiment_is_the_given_one_else_mlflows_in_that_store_else_the_runs_name(
    mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: MLflow's current experiment belongs to its current store."""
    config = TrainingConfig(name="late", output=str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    assert Tracking.find(config).experiment == "late"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the job's")
    assert Tracking.find(config).experiment == "the job's"
    id_ = MlflowClient(mlflow_store).create_experiment(f"the notebook's {tmp_path.name}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", id_)
    assert Tracking.find(config).experiment == f"the notebook's {tmp_path.name}"
    assert Tracking.find(replace(config, tracking_uri="http://another:5000")).experiment == "late"
    assert Tracking.find(replace(config, experiment="given")).experiment == "given"


@pytest.fixture
def outer(mlflow_store: str, request: pytest.FixtureRequest) -> Iterator[mlflow.ActiveRun]:
    """Yield a user's active run, in an experiment of its own in the store."""
    mlflow.set_tracking_uri(mlflow_store)
    experiment = mlflow.create_experiment(f"the user's {request.node.name}")
    with mlflow.start_run(experiment_id=experiment, run_name="mine") as run:
        yield run


@pytest.fixture
def train_within(mlflow_store: str, tmp_path: Path) -> OpenRun:
    """Return a function that opens the run of a training, with the active run as its configuration says."""

    def build(run_name: str, run_id: str | None = None, **settings: Any) -> TrackedRun:
        config = TrainingConfig(name="late", output=str(tmp_path), tracking_uri=mlflow_store, **settings)
        return Tracking.find(config).open_run(tmp_path, run_id, run_name)

    return build


def test_the_first_training_in_an_active_run_logs_to_it_and_further_ones_become_children(
    outer: mlflow.ActiveRun, train_within: OpenRun, client: MlflowClient
) -> None:
    """L5: the run keeps its name, and its status is the user's: it is running until the user ends it."""
    first, second = train_within("late-1"), train_within("late-2")
    assert first.run_id == outer.info.run_id
    assert first.experiment_id == second.experiment_id == outer.info.experiment_id
    first.log_params({"seed": 1})
    for tracked in (first, second):
        tracked.finish("FINISHED")
    found = client.get_run(first.run_id)
    assert (found.info.run_name, found.info.status, found.data.params) == ("mine", "RUNNING", {"seed": "1"})
    child = client.get_run(second.run_id)
    assert (child.info.run_name, child.info.status) == ("late-2", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == first.run_id
    assert second.experiment == first.experiment == client.get_experiment(outer.info.experiment_id).name


def test_a_run_that_the_environment_names_is_used_like_an_active_one(
    mlflow_store: str,
    train_within: OpenRun,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """L5: MLflow's projects and jobs start the run, and end it."""
    mlflow.set_tracking_uri(mlflow_store)
    named = client.create_run(client.create_experiment("a job's")).info
    monkeypatch.setenv("MLFLOW_RUN_ID", named.run_id)
    first, second = train_within("late-9"), train_within("late-10")
    for tracked in (first, second):
        tracked.finish("FINISHED")
    assert (first.run_id, first.experiment) == (named.run_id, "a job's")
    assert client.get_run(named.run_id).info.status == "RUNNING"
    assert client.get_run(second.run_id).data.tags["mlflow.parentRunId"] == named.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    apart = train_within("late-11")
    apart.finish("FINISHED")
    assert "mlflow.parentRunId" not in client.get_run(apart.run_id).data.tags
    assert f"MLflow's run {'0' * 32} (MLFLOW_RUN_ID) cannot be looked up, so another one begins" in caplog.text


def test_an_active_run_with_a_keras_training_gets_a_child(
    outer: mlflow.ActiveRun, train_within: OpenRun, client: MlflowClient
) -> None:
    """L5: otherwise the points of its curves would take the place of ours."""
    mlflow.log_metric("rows", 5)
    mlflow.log_metric("loss", 0.5, step=1)
    tracked = train_within("late-8")
    tracked.finish("FINISHED")
    assert client.get_run(tracked.run_id).data.tags["mlflow.parentRunId"] == outer.info.run_id


def test_a_training_is_a_child_or_a_run_of_its_own_if_its_settings_say_so(
    outer: mlflow.ActiveRun, train_within: OpenRun, client: MlflowClient
) -> None:
    """L5: a configured experiment is another one than that of the active run."""
    child, apart, elsewhere = (
        train_within("late-3", mlflow_run="child"),
        train_within("late-4", mlflow_run="new"),
        train_within("late-5", experiment="given"),
    )
    for tracked in (child, apart, elsewhere):
        tracked.finish("FINISHED")
    parents = [
        client.get_run(tracked.run_id).data.tags.get("mlflow.parentRunId") for tracked in (child, apart, elsewhere)
    ]
    assert parents == [outer.info.run_id, None, None]
    assert elsewhere.experiment == "given"


def test_a_training_that_goes_on_finds_the_run_that_was_active_and_ends_it(
    outer: mlflow.ActiveRun, train_within: OpenRun, client: MlflowClient
) -> None:
    """T7: the block that started the run is over, so nobody else would say how it ended."""
    first = train_within("late-6")
    first.finish("FAILED")
    assert client.get_run(first.run_id).info.status == "RUNNING"
    mlflow.end_run("FAILED")
    with mlflow.start_run(experiment_id=outer.info.experiment_id) as later:
        second = train_within("late-6", first.run_id)
        assert (second.run_id, second.experiment_id) == (outer.info.run_id, outer.info.experiment_id)
        second.finish("FINISHED")
        assert client.get_run(later.info.run_id).data.tags.get(RUN_TAG) is None
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_an_active_run_in_another_store_is_left_alone(
    outer: mlflow.ActiveRun, train_within: OpenRun, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    mlflow.set_tracking_uri("http://another:5000")
    tracked = train_within("late-7")
    tracked.finish("FINISHED")
    assert tracked.run_id != outer.info.run_id
    assert "mlflow.parentRunId" not in client.get_run(tracked.run_id).data.tags
    mlflow.set_tracking_uri(tracked.uri)


def test_an_active_run_brings_its_store_where_mlflow_is_set_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: it is MLflow's default one, in which this process then looks up models, too."""
    config = TrainingConfig(name="late", output=str(tmp_path))
    monkeypatch.setattr(mlflow, "active_run", lambda: object())
    assert store_of(config) == default_store() == mlflow.get_tracking_uri()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiment": "/Shared/late"}, r"'late' is not a model of Unity Catalog \(databricks-uc\).*three"),
        ({"experiment": "/Shared/late", "registered_model": "ml.late"}, r"to catalog\.schema\.late, with yours"),
        ({"registered_model": "prod.ml.late"}, r"no experiment 'late'.*experiment\) to /Users/YOU/late, or call"),
        ({"experiment": "/Shared/late", "registered_model": "prod.ml.late"}, None),
    ],
)
def test_names_that_databricks_would_refuse_are_refused_at_once(settings: dict[str, Any], message: str | None) -> None:
    """L5."""
    config = TrainingConfig(name="late", tracking_uri="databricks", **settings)
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        Tracking.find(config).require_names(config.registry_name)
    Tracking.find(replace(config, tracking_uri="http://server:5000")).require_names(config.registry_name)


def test_the_registry_of_the_workspace_takes_names_of_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks")
    Tracking.find(TrainingConfig(name="late", experiment="/Shared/late")).require_names("late")


def test_a_run_has_its_source_and_its_user(open_run: OpenRun, client: MlflowClient) -> None:
    """L6: as every run that MLflow starts."""
    tracked = open_run()
    tracked.finish("FINISHED")
    tags = client.get_run(tracked.run_id).data.tags
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(tags)
    assert tracked.page is None


def test_the_environment_lists_packages_with_their_versions_in_order() -> None:
    import numpy

    found = environment()
    assert found["numpy"] == numpy.__version__
    assert list(found) == sorted(found, key=str.lower)


def test_files_of_an_interrupted_installation_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "~umpy-2.0.dist-info").mkdir()
    (tmp_path / "~umpy-2.0.dist-info" / "METADATA").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "numpy" in environment()


@pytest.mark.process
def test_the_commit_is_that_of_the_users_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L6: of the recipe's folder, else of the working directory; our own code has its version."""
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, timeout=PATIENCE * 30)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    other = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    ours = {"mirrorspark.version": version("mirrorspark")}
    assert source_tags(None) == source_tags("flights") == ours
    assert source_tags(str(tmp_path)) == ours | {"mlflow.source.git.commit": commit}
    monkeypatch.chdir(tmp_path)
    assert source_tags(None) == source_tags("flights") == ours | {"mlflow.source.git.commit": commit}


@pytest.mark.process
def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None
