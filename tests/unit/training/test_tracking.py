"""T7: one MLflow run per training, however many drivers and attempts it took, on a real store."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from training.events import Event
from training.tracking import TrackedRun, TrackingError, default_uri, environment, git_commit

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

    def build(run_id: str | None = None, *, experiment: str = request.node.name) -> TrackedRun:
        return TrackedRun(mlflow_store, experiment, tmp_path, run_id, "rides-1")

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
        first.on_event(epoch_end(epoch, loss))
    first.finish("FAILED")
    second = open_run(first.run_id)
    # Epoch 3 was told before its checkpoint was committed, so it is trained again.
    for epoch, loss in ((3, 0.71), (4, 0.6)):
        second.on_event(epoch_end(epoch, loss))
    second.finish("FINISHED")
    assert curve(client, first.run_id, "loss") == [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)]
    assert [step for step, _ in curve(client, first.run_id, "val_auc")] == [1, 2, 3, 4]
    assert curve(client, first.run_id, "seconds_per_epoch")[0] == (1, 2.5)
    assert curve(client, first.run_id, "examples_per_second")[0] == (1, 1000.0)


def test_only_epochs_of_the_chief_become_metrics(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    tracked.on_event(epoch_end(1, 0.5, rank=1))
    tracked.on_event({"event": "progress", "rank": 0, "epoch": 1, "loss": 0.4})
    tracked.on_event(epoch_end(1, 0.9) | {"examples_per_second": None})
    tracked.finish("FINISHED")
    metrics = client.get_run(tracked.run_id).data.metrics
    assert metrics == {"loss": 0.9, "val_auc": 0.7, "seconds_per_epoch": 2.5}


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
        "data": "None",
        "model.name": "multi_field",
        "model.hidden_units": "[8, 4]",
        "seed": "3",
    }


def test_a_parameter_that_is_too_long_is_cut(open_run: OpenRun, client: MlflowClient) -> None:
    tracked = open_run()
    tracked.log_params({"long": "x" * 10_000})
    tracked.finish("FINISHED")
    assert client.get_run(tracked.run_id).data.params["long"] == "x" * 6000


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
    tracked.log_figure(Figure(), "roc")
    tracked.finish("FINISHED")
    root = Path(url2pathname(urlsplit(client.get_run(tracked.run_id).info.artifact_uri).path))
    assert root.is_relative_to(tmp_path / "mlartifacts")
    assert json.loads((root / "dataset" / "manifest.json").read_text()) == {"rows": {"train": 7}}
    assert json.loads((root / "attempts.json").read_text()) == [{"attempt": 1}]
    assert (root / "config.yaml").read_text() == "epochs: 3\n"
    assert (root / "plots" / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_an_experiment_is_made_once(open_run: OpenRun) -> None:
    runs = [open_run(experiment="shared") for _ in range(2)]
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
    with pytest.raises(TrackingError, match=r"the MLflow store sqlite:.* cannot be opened.*active"):
        open_run(experiment="deleted")


def test_a_server_that_is_not_there_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as raised:
        TrackedRun("http://ann:s3cret@127.0.0.1:1", "rides", tmp_path, None, "rides-1")
    assert "http://127.0.0.1:1 cannot be opened" in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_the_default_store_is_a_file_under_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_uri(Path("out")) == f"sqlite:///{tmp_path}/out/mlflow.db"


def test_the_environment_lists_packages_with_their_versions_in_order() -> None:
    import numpy

    found = environment()
    assert found["numpy"] == numpy.__version__
    assert list(found) == sorted(found, key=str.lower)


def test_what_an_interrupted_installation_left_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "~umpy-2.0.dist-info").mkdir()
    (tmp_path / "~umpy-2.0.dist-info" / "METADATA").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "numpy" in environment()


def test_the_commit_is_that_of_the_clone(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, timeout=30)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None
