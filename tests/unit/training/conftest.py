"""A recipe as it can be, and an MLflow store whose tables exist."""

import contextlib
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE
from tests.unit.mlflow_stores import new_store

SQL = "SELECT * FROM rides"


@pytest.fixture
def knobs() -> dict[str, Any]:
    """Return the fields that a recipe has to set; every other keeps its default."""
    return {
        "tables": {"rides": "ride_id long, town string, distance double, late int, split string"},
        "label": "late",
        "keys": "ride_id",
        "features": {"town": {"kind": "categorical"}, "distance": {"kind": "numeric"}},
    }


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory, knobs: dict[str, Any]) -> Path:
    """Return the folder of a recipe, outside of ``tmp_path``."""
    folder = tmp_path_factory.mktemp("recipes") / "rides"
    folder.mkdir()
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(knobs))
    (folder / SQL_FILE).write_text(SQL)
    return folder


@pytest.fixture
def new_config(knobs: dict[str, Any]) -> Callable[..., RunConfig]:
    """Return a function that builds the configuration of that recipe with some fields changed."""

    def build(**changes: Any) -> RunConfig:
        return RunConfig(**{"recipe": "rides", "sql": SQL} | knobs | changes)

    return build


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of an SQLite store."""
    return new_store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="session")
def optuna_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the tables of Optuna's storage and no study."""
    from optuna.storages import RDBStorage

    file = tmp_path_factory.mktemp("optuna") / "study.db"
    RDBStorage(f"sqlite:///{file}").engine.dispose()
    return file


def free_addresses(count: int) -> list[str]:
    """Return addresses of this machine whose ports were free a moment ago.

    They are below those that systems hand out to whoever asks for any port, so that no connection gets them meanwhile.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return [f"127.0.0.1:{port}" for port in ports]
    raise OSError("no port is free")
