"""M1: a fleet is a registered model of MLflow, of which a new version uploads only the models that are new."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from mirrorspark.callbacks.mlflow.tracking_store import store_client
from mirrorspark.fleet.coefficients import fleet_from_coefficients
from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.registry import fetch_fleet, register_fleet
from mirrorspark.fleet.runs.failures import CheckedFleet
from mirrorspark.scoring.model.stored.pinned import ModelNotFoundError
from mirrorspark.scoring.model.stored.uri import ModelStoreError, resolve
from mirrorspark.training.configuration.fields import ConfigError
from tests.unit.mlflow_stores import new_store

MODELS = 40


def many(models: int, first: int = 0, coefficient: float = 1.0) -> Fleet:
    names = [f"model {number}" for number in range(first, first + models)]
    return fleet_from_coefficients(
        pa.table({"model": names, "column": ["a"] * models, "coefficient": [coefficient] * models})
    )


@pytest.mark.parametrize("name", ["", "a/b", "late.", "con", "a\nb", "a" * 300])
def test_a_name_that_no_registry_takes_is_refused_first(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^registered_model '[^\n]*$"):
        register_fleet(many(1), name)


def test_a_fleet_may_have_any_name_that_the_registry_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the place of MLflow's mlruns
    store, names = new_store(tmp_path), ["it's", 'a "b"', "'\\'", "a?b#c", "a@b", "x' OR name = 'y"]
    register_fleet(many(1), "it_s", tracking_uri=store)
    for name in names:
        assert register_fleet(many(1), name, tracking_uri=store) == f"models:/{name}/1"
        assert register_fleet(many(2), name, tracking_uri=store) == f"models:/{name}/2"
        (tmp_path / name).mkdir()
        fetch_fleet(f"models:/{name}/2", tmp_path / name, store)
        with pytest.raises(ModelNotFoundError, match=re.escape(f"'{name}' has the versions [1, 2]")):
            resolve(f"models:/{name}/3", store)


def test_a_new_version_uploads_ten_models_and_every_version_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = new_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = store_client(store)
    first = many(MODELS)
    second = first.with_models(many(10, first=5, coefficient=2.0))
    assert register_fleet(first, "campaigns") == "models:/campaigns/1"
    (run,) = client.search_runs([client.get_experiment_by_name("campaigns").experiment_id])

    def stored() -> dict[str, int]:
        return {file.path: file.file_size for file in client.list_artifacts(run.info.run_id, "fleet") if file.file_size}

    before = stored()
    assert register_fleet(second, "campaigns") == "models:/campaigns/2"
    (added,) = stored().keys() - before.keys()
    assert {name: stored()[name] for name in before} == before
    local = client.download_artifacts(run.info.run_id, added, str(tmp_path))
    assert sorted(pa.ipc.open_file(local).read_all()["model"].to_pylist()) == sorted(
        f"model {number}" for number in range(5, 15)
    )
    client.set_registered_model_alias("campaigns", "champion", "1")
    assert Fleet.load("models:/campaigns@champion").digests == first.digests
    assert Fleet.load("models:/campaigns/2").digests == second.digests
    assert CheckedFleet.of("models:/campaigns/2").fleet.digest == second.digest
    assert register_fleet(second.without(["model 0"]), "campaigns") == "models:/campaigns/3"
    assert len(stored()) == 2
    assert len(Fleet.load("models:/campaigns/3")) == MODELS - 1
    assert client.get_model_version("campaigns", "3").tags["mirrorspark.fleet.models"] == str(MODELS - 1)
    for uri, message in {
        "models:/campaigns/9": "there is no models:/campaigns/9 in the MLflow store",
        "models:/campaigns@none": "there is no models:/campaigns@none",
        "models:/campaigns": "names no version of a fleet; use models:/<name>/<version>",
    }.items():
        with pytest.raises(FleetError, match=message):
            Fleet.load(uri)
    client.create_registered_model("other")
    client.create_model_version("other", f"runs:/{run.info.run_id}/fleet", run.info.run_id)
    for call in (lambda: Fleet.load("models:/other/1"), lambda: register_fleet(first, "other")):
        with pytest.raises(FleetError, match="models:/other/1 is not a fleet, but a model of another kind"):
            call()


def test_an_upload_that_was_cut_off_is_repeated_and_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    client = store_client(store)
    client.create_experiment("campaigns", f"file://{tmp_path / 'artifacts'}")
    first = many(MODELS)
    second = first.with_models(many(10, first=5, coefficient=2.0))
    register_fleet(first, "campaigns", tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("campaigns").experiment_id])
    whole = tmp_path / "artifacts" / run.info.run_id / "artifacts" / "fleet"
    before = {file.name for file in whole.glob("*.arrow")}
    register_fleet(second, "campaigns", tracking_uri=store)
    (added,) = {file.name for file in whole.glob("*.arrow")} - before
    client.delete_model_version("campaigns", "2")
    (whole / added).write_bytes((whole / added).read_bytes()[:100])
    uri = register_fleet(second, "campaigns", tracking_uri=store)
    (tmp_path / "fetched").mkdir()
    fetch_fleet(uri, tmp_path / "fetched", store)
    assert Fleet.load(tmp_path / "fetched").digest == second.digest
    (tmp_path / "no database").write_text("text")
    broken = f"sqlite:///{tmp_path / 'no database'}"
    with pytest.raises(ModelStoreError, match=r"the MLflow store sqlite:.*no database cannot be used: .*; start its"):
        fetch_fleet(uri, tmp_path / "fetched", broken)
