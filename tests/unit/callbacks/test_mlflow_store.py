"""T7: which store and which registry a run's client acts on."""

import logging.config
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Experiment, Run, RunData, RunInfo, RunStatus
from mlflow.store.db import utils as mlflow_tables
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.tracking.default_experiment import registry
from mlflow.tracking.default_experiment.abstract_context import DefaultExperimentProvider
from mlflow.utils.rest_utils import MlflowHostCreds

from mirrorspark.callbacks.mlflow.tracking_store import (
    absolute_store,
    chosen_experiment,
    chosen_store,
    is_same_store,
    registry_of,
    run_page,
    sqlite_file,
    store_client,
)

OWN = "http://ann:s3cret@tracking:5000"
OTHER = "http://other:5000"
REGISTRY = "http://registry:5000"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings that other tests of this process made in MLflow, both in it and in the environment."""
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, OWN),
        ({"MLFLOW_TRACKING_URI": OTHER}, OWN),
        # Nothing but a registry: it is that of any store.
        ({"MLFLOW_REGISTRY_URI": REGISTRY}, REGISTRY),
        # The registry of the other store, which knows no model of this one.
        ({"MLFLOW_TRACKING_URI": OTHER, "MLFLOW_REGISTRY_URI": REGISTRY}, OWN),
        ({"MLFLOW_TRACKING_URI": OTHER, "MLFLOW_REGISTRY_URI": OTHER}, OWN),
        # Addresses of one store, with a password and without.
        ({"MLFLOW_TRACKING_URI": "http://tracking:5000/", "MLFLOW_REGISTRY_URI": REGISTRY}, REGISTRY),
        ({"MLFLOW_TRACKING_URI": "http://tracking:5000", "MLFLOW_REGISTRY_URI": "http://tracking:5000"}, OWN),
    ],
)
def test_models_are_registered_in_the_store_or_in_the_registry_that_goes_with_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert registry_of(OWN) == expected
    client = store_client(OWN)
    assert (client.tracking_uri, client._registry_uri) == (OWN, expected)


@pytest.mark.parametrize(
    ("workspace", "catalog"),
    [("databricks", "databricks-uc"), ("databricks://prod", "databricks-uc://prod")],
)
def test_the_registry_of_a_databricks_workspace_is_its_catalog_as_for_mlflow(
    monkeypatch: pytest.MonkeyPatch, workspace: str, catalog: str
) -> None:
    assert mlflow.MlflowClient(workspace)._registry_uri == catalog
    assert registry_of(workspace) == catalog
    monkeypatch.setenv("MLFLOW_TRACKING_URI", OTHER)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", OTHER)
    assert registry_of(workspace) == catalog
    # The registry of the workspace itself, where somebody asks for it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks")
    assert registry_of(workspace) == "databricks"


def test_an_sqlite_file_is_the_same_store_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_store("sqlite:///mlflow.db") == absolute_store(absolute) == absolute
    assert is_same_store("sqlite:///mlflow.db", absolute)
    assert not is_same_store("sqlite:///other.db", absolute)
    assert absolute_store("sqlite+pysqlite:///mlflow.db?timeout=60") == (
        f"sqlite+pysqlite:///{tmp_path}/mlflow.db?timeout=60"
    )
    for uri in ("sqlite:///:memory:", "sqlite:///", "http://tracking:5000", "databricks", "postgresql://db/mlflow", ""):
        assert absolute_store(uri) == uri


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlflow.db", Path("mlflow.db")),
        ("sqlite:////srv/mlflow.db", Path("/srv/mlflow.db")),
        ("sqlite:////srv/mlflow.db?timeout=60&cached_statements=5", Path("/srv/mlflow.db")),
        ("sqlite+pysqlite:///mlflow.db", Path("mlflow.db")),
        *((uri, None) for uri in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?timeout=60")),
        *((uri, None) for uri in ("sqlite:///file:/srv/mlflow.db?mode=ro&uri=true", "http://tracking:5000", "mlruns")),
    ],
)
def test_the_file_of_an_sqlite_store_is_without_its_options(uri: str, file: Path | None) -> None:
    assert sqlite_file(uri) == file


@pytest.mark.parametrize("current", [OWN, OTHER])
def test_the_end_of_a_run_shows_no_address_with_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], current: str
) -> None:
    ended = []

    class Server(RestStore):
        def get_run(self, run_id: str) -> Run:
            return Run(RunInfo(run_id, "0", "ann", "RUNNING", 0, None, "active", run_name="rides"), RunData([], [], []))

        def update_run_info(self, run_id: str, run_status: int, end_time: int, run_name: str | None) -> Any:
            ended.append((run_id, RunStatus.to_string(run_status)))

    server = Server(lambda: MlflowHostCreds(OWN))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", current)
    monkeypatch.setattr(TrackingServiceClient, "store", property(lambda _: server))
    store_client(OWN).set_terminated("1", "FAILED")
    assert ended == [("1", "FAILED")]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"])
def test_an_experiment_or_run_that_is_set_chooses_mlflows_default_store(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """L5: ``mlflow.set_experiment`` sets the first variable; nobody sets a store to use MLflow's own."""
    assert chosen_store() is None
    monkeypatch.setenv(name, "flights")
    assert chosen_store() == mlflow.get_tracking_uri()


def test_a_notebook_on_databricks_has_an_experiment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """L5."""

    class Notebook(DefaultExperimentProvider):
        def in_context(self) -> bool:
            return True

        def get_experiment_id(self) -> str:
            return "77"

    def experiment(_: Any, id_: str) -> Experiment:
        return Experiment(id_, f"/Users/ann/notebook {id_}", "", "active")

    assert chosen_experiment(mlflow.get_tracking_uri()) is None
    monkeypatch.setattr(registry, "_default_experiment_provider_registry", [Notebook()])
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment", experiment)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    assert chosen_experiment("databricks") == "/Users/ann/notebook 77"
    assert chosen_experiment(OTHER) is None
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/flights")
    assert chosen_experiment("databricks") == "/Shared/flights"


ALEMBIC_INI = """
[loggers]
keys=root,alembic
[handlers]
keys=
[formatters]
keys=
[logger_root]
level=WARNING
handlers=
[logger_alembic]
level=INFO
handlers=
qualname=alembic
"""


def test_a_new_store_does_not_set_up_the_loggers_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows no step of a migration, and keeps the handlers of a notebook, which MLflow 3.0 would replace."""
    (tmp_path / "alembic.ini").write_text(ALEMBIC_INI)

    def as_in_mlflow_3_0(engine: Any) -> None:
        logging.config.fileConfig(tmp_path / "alembic.ini", disable_existing_loggers=False)
        raise InterruptedError  # the migration itself takes seconds

    monkeypatch.setattr(mlflow_tables, "_upgrade_db", as_in_mlflow_3_0)
    before = logging.getLogger("alembic").level, list(logging.root.handlers)
    plain = logging.config.fileConfig
    with pytest.raises(InterruptedError):
        store_client(f"sqlite:///{tmp_path}/mlflow.db")
    assert (logging.getLogger("alembic").level, logging.root.handlers) == before
    assert logging.config.fileConfig is plain


@pytest.mark.parametrize(
    ("store", "page"),
    [
        (OWN, "http://tracking:5000/#/experiments/3/runs/0a1b?workflowType=machine_learning"),
        (
            "https://ml.example/mlflow/",
            "https://ml.example/mlflow/#/experiments/3/runs/0a1b?workflowType=machine_learning",
        ),
        ("databricks", "https://cloud.example/ml/experiments/3/runs/0a1b"),
        ("databricks://another-workspace", None),
        ("databricksish:///mlflow.db", None),
        ("sqlite:///mlflow.db", None),
        ("postgresql://ann:s3cret@db/mlflow", None),
    ],
)
def test_a_run_has_a_page_where_its_store_serves_pages(
    monkeypatch: pytest.MonkeyPatch, store: str, page: str | None
) -> None:
    """L6: and its address has no password."""
    monkeypatch.setenv("DATABRICKS_HOST", "https://cloud.example")
    assert run_page(store, "3", "0a1b") == page
