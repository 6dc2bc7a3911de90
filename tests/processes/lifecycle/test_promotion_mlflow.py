"""Promotion in MLflow's registry, in a file and behind a real server: the same rules, and one winner of two (L3)."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mirrorspark.lifecycle.command import main
from mirrorspark.lifecycle.promotion import registry as registries
from mirrorspark.lifecycle.promotion.promotions import (
    CHAMPION,
    PREVIOUS,
    Evidence,
    PromotionConflictError,
    audit_trail,
    promote,
    rollback,
)
from mirrorspark.lifecycle.promotion.registry import MLflowRegistry, RegistryError
from mirrorspark.scoring.package import package_model
from tests.conftest import PATIENCE
from tests.mlflow_server import mlflow_server
from tests.unit.lifecycle.gate_facts import validation_of
from tests.unit.scoring.other_models import LINEAR

# A server is started, and versions are downloaded.
pytestmark = pytest.mark.timeout(300)

ROUNDS = 6


@pytest.fixture(scope="module", params=[pytest.param("file", marks=pytest.mark.full), "server"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a store with three versions of ``flights``."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("promotion")
    database = f"sqlite:///{folder / 'mlflow.db'}"

    def fill(address: str) -> str:
        client = MlflowClient(address, address)
        client.create_registered_model("flights")
        experiment = client.create_experiment("flights", **artifacts)
        for version in (1, 2, 3):
            model = package_model({**LINEAR, "intercept": float(version)}, folder / "models" / str(version))
            run = client.create_run(experiment)
            client.log_artifacts(run.info.run_id, str(model), "model")
            client.set_terminated(run.info.run_id)
            client.create_model_version("flights", f"{run.info.artifact_uri}/model", run.info.run_id)
        return address

    if request.param == "file":
        artifacts = {"artifact_location": str(folder / "artifacts")}
        yield fill(database)
        return
    artifacts = {}
    with mlflow_server(folder, database, str(folder / "artifacts")) as port:
        yield fill(f"http://127.0.0.1:{port}")


def evidence(registry: MLflowRegistry, version: str, champion: str | None) -> Evidence:
    validation = validation_of(version=version, champion=champion)
    known = replace(validation, candidate=replace(validation.candidate, digest=registry.digest("flights", version)))
    if known.champion is not None:
        digest = registry.digest("flights", known.champion.version)
        known = replace(known, champion=replace(known.champion, digest=digest))
    return Evidence.of(known)


def test_of_two_promotions_at_once_one_wins_and_a_rollback_brings_the_former_champion_back(store: str) -> None:
    registry = MLflowRegistry(store)
    known = {version: evidence(registry, version, "1") for version in ("2", "3")}
    for _ in range(ROUNDS):
        registry.set_alias("flights", CHAMPION, "1")
        outcomes: dict[str, str] = {}
        together = threading.Barrier(2)

        def call(version: str, outcomes: dict[str, str] = outcomes, together: threading.Barrier = together) -> None:
            own = MLflowRegistry(store)
            together.wait(timeout=60)
            try:
                promote(known[version], own, why="both", who="ann")
                outcomes[version] = "won"
            except PromotionConflictError:
                outcomes[version] = "told"
            except Exception as error:
                outcomes[version] = f"failed: {error!r}"  # the assertion below shows it

        callers = [threading.Thread(target=call, args=(version,)) for version in ("2", "3")]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=PATIENCE * 120)
        assert sorted(outcomes.values()) == ["told", "won"]
        assert outcomes[str(registry.alias("flights", CHAMPION))] == "won"
        assert registry.alias("flights", PREVIOUS) == "1"
    champion = str(registry.alias("flights", CHAMPION))
    assert audit_trail("flights", champion, registry)[-1]["who"] == "ann"

    rollback("flights", registry, why="too few clicks")

    assert (registry.alias("flights", CHAMPION), registry.alias("flights", PREVIOUS)) == ("1", None)


def test_what_is_not_there_is_named(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    registry = MLflowRegistry(store)
    with pytest.raises(RegistryError, match="there is no model 'boxes' in"):
        registry.alias("boxes", CHAMPION)
    with pytest.raises(RegistryError, match="there is no version 9 of 'flights'"):
        registry.set_alias("flights", CHAMPION, "9")
    with pytest.raises(RegistryError, match="there is no version 9 of 'flights'"):
        registry.tags("flights", "9")
    first = ["validate", "--candidate", "models:/boxes/1", "--champion", "models:/boxes@champion", "--input", "rows"]
    assert main([*first, "--keys", "id", "--label", "late", "--output", "evidence", "--tracking-uri", store]) == 2
    assert "leave out --champion while nothing is in production" in capsys.readouterr().err


def test_a_server_that_is_away_is_a_message_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"MAX_RETRIES": "0", "TIMEOUT": "20"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"http://ann:hunter2@127.0.0.1:{taken.getsockname()[1]}"

        assert main(["rollback", "flights", "--why", "too few clicks", "--tracking-uri", address]) == 1

    message = capsys.readouterr().err
    assert message.startswith("mirrorspark: the MLflow store cannot be used: ")
    assert message.count("\n") == 1
    assert "hunter2" not in message


def test_a_promotion_is_completed_after_a_process_of_this_machine_was_killed_while_it_held_the_lock(
    store: str,
) -> None:
    holder = """
import os, signal, sys
from mirrorspark.lifecycle.promotion.registry import MLflowRegistry
with MLflowRegistry(sys.argv[1]).changing("flights"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", holder, store], timeout=PATIENCE * 60, check=False)
    assert killed.returncode == -signal.SIGKILL
    registry = MLflowRegistry(store)
    if not store.startswith("sqlite"):
        held = registry._client.get_registered_model("flights-promotion-lock")
        assert held.description.startswith("held by ")

    begin = time.monotonic()
    with registry.changing("flights"):
        assert time.monotonic() - begin < registries.LOCK_SECONDS, "nobody is waited for"


def test_a_lock_that_a_process_of_another_machine_has_left_is_named_and_can_be_broken(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    registry = MLflowRegistry(store)
    registry.break_lock("flights")  # there is none yet
    if store.startswith("sqlite"):  # the kernel releases the lock of a file
        with registry.changing("flights"):
            return
    monkeypatch.setattr(registries, "LOCK_SECONDS", 0.2)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        registry._take_lock("flights")  # by a process that is killed now

    with pytest.raises(RegistryError, match="'flights-promotion-lock' says which; if that process is dead, delete it"):
        promote(evidence(registry, "2", registry.alias("flights", CHAMPION)), registry, why="auc +0.01")
    registry.break_lock("flights")

    # A server that looks for the lock which it could not create, after its holder has released it, does not find it.
    create = registry._client.create_registered_model
    answers = iter([MlflowException("not found", error_code=RESOURCE_DOES_NOT_EXIST)])

    def create_or_raise(*arguments: Any, **options: Any) -> Any:
        if (error := next(answers, None)) is not None:
            raise error
        return create(*arguments, **options)

    monkeypatch.setattr(registry._client, "create_registered_model", create_or_raise)
    with registry.changing("flights"):
        assert next(answers, None) is None
