"""A model URI leads to one pinned version, or to a message that says what there is instead (L4)."""

import platform
import shutil
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from mirrorspark.callbacks.mlflow.tracking_store import own_store
from mirrorspark.scoring.input.inputs import Column, ColumnInputs, Matrix
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.folder.errors import ModelDirectoryError
from mirrorspark.scoring.model.folder.packaged import PackagedDescription
from mirrorspark.scoring.model.stored.digest import folder_digest
from mirrorspark.scoring.model.stored.pinned import ModelNotFoundError
from mirrorspark.scoring.model.stored.uri import ModelStoreError, resolve
from mirrorspark.scoring.package import package_model
from tests.unit.mlflow_stores import new_store
from tests.unit.scoring.exported_models import log_flights
from tests.unit.scoring.other_models import LINEAR

LIMITS = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorspark.scoring.model.stored.uri._PAUSE_SECONDS", 0)


@dataclass(frozen=True)
class Store:
    """An MLflow store with versions 1 and 2 of ``flights``; the alias ``champion`` points to 1."""

    uri: str
    folder: Path
    run_id: str
    model_id: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, flights_model: Path) -> Store:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    uri = new_store(folder)
    other = Path(shutil.copytree(flights_model, folder / "other"))
    (other / "README").write_text("version 2")
    first = log_flights(uri, folder / "artifacts", flights_model)
    log_flights(uri, folder / "artifacts", other)
    MlflowClient(uri).set_registered_model_alias("flights", "champion", "1")
    return Store(uri, folder, first.run_id, first.model_id)


def test_a_version_is_pinned_with_the_digest_of_its_files(store: Store, flights_model: Path) -> None:
    pinned = resolve("models:/flights/1", store.uri)
    assert (pinned.uri, pinned.name, pinned.version) == ("models:/flights/1", "flights", "1")
    assert pinned.label == "flights/1"
    assert pinned.digest == folder_digest(flights_model)
    assert pinned.path.is_relative_to(store.folder), "files that are local already are not copied"
    assert ModelDirectory.open(pinned.path).description.task == "binary"


def test_versions_with_other_files_have_other_digests(store: Store) -> None:
    assert resolve("models:/flights/1", store.uri).digest != resolve("models:/flights/2", store.uri).digest


def test_an_alias_becomes_the_version_that_it_points_to_now(store: Store) -> None:
    """L4."""
    from mlflow import MlflowClient

    assert resolve("models:/flights@champion", store.uri) == resolve("models:/flights/1", store.uri)
    MlflowClient(store.uri).set_registered_model_alias("flights", "moving", "1")
    before = resolve("models:/flights@moving", store.uri)
    MlflowClient(store.uri).set_registered_model_alias("flights", "moving", "2")
    assert (before.label, resolve("models:/flights@moving", store.uri).label) == ("flights/1", "flights/2")


def test_runs_and_logged_models_lead_to_the_same_files(store: Store) -> None:
    registered = resolve("models:/flights/1", store.uri)
    of_run = resolve(f"runs:/{store.run_id}/model", store.uri)
    logged = resolve(f"models:/{store.model_id}", store.uri)
    assert of_run.digest == logged.digest == registered.digest
    assert of_run.label == f"model/{store.run_id}"
    assert logged.label == f"model/{store.model_id}"


def test_a_package_is_found_among_the_artifacts_of_a_run(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    folder = package_model(LINEAR, tmp_path / "boxes")
    MlflowClient(store.uri).log_artifacts(store.run_id, str(folder), "boxes")
    pinned = resolve(f"runs:/{store.run_id}/boxes", store.uri)
    assert (pinned.label, pinned.digest) == (f"boxes/{store.run_id}", folder_digest(folder))
    assert ModelDirectory.open(pinned.path).inputs.columns == tuple(LINEAR["coefficients"])


def test_the_last_of_a_runs_models_of_one_name_is_used(store: Store, tmp_path: Path) -> None:
    """MLflow does the same, for a training that was resumed, or that logs a model now and then."""
    from mlflow import MlflowClient

    client = MlflowClient(store.uri)
    run = client.create_run(client.create_experiment("several", (tmp_path / "artifacts").as_uri()))
    with pytest.raises(ModelNotFoundError, match="the run has no model"):
        resolve(f"runs:/{run.info.run_id}", store.uri)
    folders = []
    for number in range(3):
        folders.append(package_model({"coefficients": {"x": float(number)}}, tmp_path / str(number)))
        logged = client.create_logged_model(run.info.experiment_id, name="model", source_run_id=run.info.run_id)
        client.log_model_artifacts(logged.model_id, str(folders[-1]))
        client.finalize_logged_model(logged.model_id, "READY")

    for uri in (f"runs:/{run.info.run_id}/model", f"runs:/{run.info.run_id}"):
        assert resolve(uri, store.uri).digest == folder_digest(folders[-1])


def test_all_that_a_package_says_of_itself_comes_back_from_mlflow(store: Store, tmp_path: Path) -> None:
    """S4: columns with their types and policies, outputs, hooks, labels and versions."""
    from mlflow import MlflowClient

    (tmp_path / "code.py").write_text("def postprocess(outputs): return {'both': outputs['score']}\n")
    folder = package_model(
        {"coefficients": {"age": [1.0, 0.0], "visits": [0.0, 1.0]}, "link": "softmax"},
        tmp_path / "visits",
        columns=[Column("visits", "int", fill=3), Column("age", "float", nulls="fail")],
        outputs={"p": "both"},
        hooks=tmp_path / "code.py",
        labels={"p": ["stays", "leaves"]},
    )
    MlflowClient(store.uri).log_artifacts(store.run_id, str(folder), "visits")
    pinned = resolve(f"runs:/{store.run_id}/visits", store.uri)
    assert ModelDirectory.open(pinned.path).description == PackagedDescription(
        backend="linear",
        file="linear.json",
        inputs=ColumnInputs(
            (Column("age", "float", nulls="fail"), Column("visits", "int", fill=3)), Matrix("features", "double")
        ),
        outputs={"p": "array<double>"},
        model_outputs={"p": "both"},
        hooks=("postprocess",),
        labels={"p": ("stays", "leaves")},
        versions={"python": platform.python_version(), "numpy": np.__version__},
    )


def test_a_local_folder_needs_no_store(flights_model: Path) -> None:
    pinned = resolve(flights_model)
    assert pinned.label == f"flights/{folder_digest(flights_model)[:12]}"
    assert resolve(flights_model.as_uri()) == pinned == resolve(str(flights_model))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "models:/flihgts/1",
            r"the registry at sqlite:.* has no model 'flihgts' \(did you mean 'flights'\?\): use one of \['flights'\]",
        ),
        (
            "models:/flights/9",
            r"'flights' has the versions \[1, 2\] and the aliases \[.*'champion'.*\]: use one of them",
        ),
        ("models:/flights@nobody", r"'models:/flights@nobody' does not exist; 'flights' has the versions \[1, 2\]"),
        ("models:/flights", "names no version; 'flights' has the versions"),
        ("models:/flights/latest", "'latest' is not a version number; 'flights' has the versions"),
        ("models:/m-00000000000000000000000000000000", "no logged model 'm-0{32}'"),
        ("models:/", "names no model; use models:/<name>/<version>"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "no run '0123456789abcdef0123456789abcdef'"),
        ("runs:/0123456789abcdef0123456789abcdef", "no run '0123456789abcdef0123456789abcdef'"),
        ("runs:/", "does not name a run; use models:/"),
        ("/nowhere/to/be/found", "there is no such folder; use models:/"),
        ("s3://bucket/model", "there is no such folder; use models:/"),
    ],
)
def test_a_uri_that_leads_nowhere_says_what_does_not_exist_and_what_does(store: Store, uri: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        resolve(uri, store.uri)


def test_a_path_that_the_run_does_not_have_is_named_with_what_it_has(store: Store) -> None:
    with pytest.raises(ModelNotFoundError, match=r"the run has the models \['model'\], and nothing at 'other'"):
        resolve(f"runs:/{store.run_id}/other", store.uri)


def test_a_version_whose_files_are_gone_says_where_they_were(store: Store, flights_model: Path) -> None:
    info = log_flights(store.uri, store.folder / "artifacts", flights_model, name="gone")
    shutil.rmtree(store.folder / "artifacts" / "models" / info.model_id)
    with pytest.raises(ModelNotFoundError, match=rf"files of model 'models:/gone/1' are not at .*{info.model_id}"):
        resolve("models:/gone/1", store.uri)


def test_a_folder_that_holds_something_else_is_no_exported_model(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="holds no exported model"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    "uri",
    ["models:/flights/1", "models:/flights@champion", "models:/flights", "models:/m-0123", f"runs:/{'0' * 32}/model"],
)
def test_a_store_that_cannot_be_asked_is_told_in_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """Nobody listens on port 9, and there are no stores of the other kind; MLflow would wait four minutes in all."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelStoreError) as failure:
        resolve(uri, "http://ann:s3cret@127.0.0.1:9")
    where = "cannot be looked up in the MLflow store http://127.0.0.1:9"
    assert str(failure.value) == f"model '{uri}' {where}: Connection refused"
    with pytest.raises(ModelStoreError, match=r"in the MLflow store nowhere://store: .*unsupported URI") as failure:
        resolve(uri, "nowhere://store")
    assert "\n" not in str(failure.value)


def test_a_registry_that_nobody_listens_at_is_named_and_the_store_beside_it_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mirrorspark.scoring.model.stored.uri.tracking_store.registry_of", lambda _: "http://127.0.0.1:9"
    )
    with pytest.raises(ModelStoreError, match=r"in the MLflow store http://127\.0\.0\.1:9: Connection refused"):
        resolve("models:/flights/1", store.uri)
    assert resolve(f"runs:/{store.run_id}/model", store.uri).label == f"model/{store.run_id}"


@pytest.mark.process
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_throttles_is_asked_as_often_as_mlflow_asks_by_itself(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    waits: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=waits.append, time=time.time))
    asked: list[str] = []

    class Throttling(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Throttling) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ModelStoreError, match=f"{status} error responses"):
            resolve("models:/flights/1", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert len(asked) == 1 + 7
    assert sum(waits) > 60


def test_another_process_finds_the_store_of_a_training_in_the_working_directory(
    flights_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L5: ``mirrorspark train``, then ``mirrorspark score`` in another shell, without a word about URIs."""
    output = tmp_path / "mirrorspark-output"
    output.mkdir()
    log_flights(own_store(output), output / "artifacts", flights_model)
    mlflow.set_tracking_uri(None)
    monkeypatch.chdir(tmp_path)
    assert resolve("models:/flights/1").digest == folder_digest(flights_model)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ModelStoreError, match="Connection refused"):
        resolve("models:/flights/1")


@pytest.mark.parametrize("uri", ["models:/flights/1", "models:/flights@champion", f"runs:/{'0' * 32}"])
def test_a_look_up_without_a_store_says_so_and_creates_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """L5: MLflow's client would create an empty database in the working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelStoreError) as failure:
        resolve(uri)
    assert str(failure.value) == (
        f"model '{uri}' cannot be looked up: MLflow is set to no store, and there is no "
        f"{tmp_path}/mirrorspark-output/mlflow.db and no {tmp_path}/mlflow.db; if it is in another store, name that "
        f"one as tracking_uri (--tracking-uri) or in MLFLOW_TRACKING_URI, for example "
        f"sqlite:///mirrorspark-output/mlflow.db"
    )
    assert list(tmp_path.iterdir()) == []


def test_mlflows_default_store_is_used_where_it_exists(
    flights_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_flights(new_store(tmp_path), tmp_path / "artifacts", flights_model)
    mlflow.set_tracking_uri(None)
    monkeypatch.chdir(tmp_path)
    assert resolve("models:/flights/1").label == "flights/1"


def test_a_store_whose_driver_is_not_installed_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ModelStoreError, match=r"in the MLflow store mysql\+pymysql://127\.0\.0\.1:9/store: .*pymysql"):
        resolve("models:/flights/1", "mysql+pymysql://ann:s3cret@127.0.0.1:9/store")
