"""T7: a run stays in the store that it was given, whatever store, run, experiment and registry MLflow is set to."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import pytest
from mlflow import MlflowClient

from mirrorspark.training.run_records.tracked_run import TrackedRun

EPOCH = {"event": "epoch_end", "rank": 0, "epoch": 1, "logs": {"loss": 0.5}, "seconds": 2.5}


@dataclass(frozen=True)
class OtherStore:
    """The store that MLflow is set to, as a job's environment does it."""

    file: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.file}"

    def content(self) -> list[str]:
        with sqlite3.connect(self.file) as database:
            return list(database.iterdump())


@pytest.fixture
def other(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OtherStore:
    store = OtherStore(tmp_path / "other" / "mlflow.db")
    store.file.parent.mkdir()
    shutil.copy(mlflow_store.removeprefix("sqlite:///"), store.file)  # with its tables
    client = MlflowClient(store.uri, store.uri)
    experiment = client.create_experiment("the job's", artifact_location=(tmp_path / "other" / "artifacts").as_uri())
    model = client.create_logged_model(experiment, "jobs")
    mlflow.set_tracking_uri(None)  # what another test of this process said
    for name, value in {
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_REGISTRY_URI": store.uri,
        "MLFLOW_EXPERIMENT_NAME": "the job's",
        "MLFLOW_RUN_ID": client.create_run(experiment).info.run_id,
        "MLFLOW_ACTIVE_MODEL_ID": model.model_id,
    }.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def open_run(mlflow_store: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], TrackedRun]:
    def build() -> TrackedRun:
        return TrackedRun(mlflow_store, request.node.name, tmp_path / "output", None, request.node.name)

    return build


def test_everything_arrives_in_the_runs_own_store(
    other: OtherStore, open_run: Callable[[], TrackedRun], mlflow_store: str, tmp_path: Path
) -> None:
    before, settings = other.content(), dict(os.environ)
    tracked = open_run()
    tracked.log_params({"seed": 1})
    tracked.log_tags({"dataset": "rides"})
    tracked.log_document([], "attempts.json")
    tracked.events.append(EPOCH | {"examples_per_second": None})
    assert tracked.finish("FINISHED") is None
    run = MlflowClient(mlflow_store).get_run(tracked.require_run_id())
    assert (run.info.status, run.data.params, run.data.tags["dataset"]) == ("FINISHED", {"seed": "1"}, "rides")
    assert run.data.metrics == {"loss": 0.5, "system/seconds_per_epoch": 2.5}
    root = Path(url2pathname(urlsplit(run.info.artifact_uri).path))
    assert json.loads((root / "attempts.json").read_text()) == []
    assert root.is_relative_to(tmp_path / "output")
    assert other.content() == before
    assert not (tmp_path / "other" / "artifacts").exists()
    # Values that a notebook logs of its own go to the same place as before.
    assert mlflow.get_tracking_uri() == other.uri
    assert mlflow.active_run() is None
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_") and "HTTP" not in name} == {
        name: value for name, value in settings.items() if name.startswith("MLFLOW_") and "HTTP" not in name
    }


def test_a_version_gets_its_name_in_the_registry_of_the_runs_own_store(
    other: OtherStore, open_run: Callable[[], TrackedRun], mlflow_store: str, tmp_path: Path
) -> None:
    before = other.content()
    tracked = open_run()
    registry = MlflowClient(mlflow_store, mlflow_store)
    registry.create_registered_model("rides-elsewhere")
    version = registry.create_model_version("rides-elsewhere", str(tmp_path), tracked.run_id).version
    tracked.name_version("rides-elsewhere", str(version), "challenger")
    tracked.finish("FINISHED")
    assert registry.get_registered_model("rides-elsewhere").aliases == {"challenger": version}
    assert tracked.registry_uri == mlflow_store
    assert other.content() == before
