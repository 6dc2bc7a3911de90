"""T7: an export that is repeated leaves one version, and is not done twice."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mirrorspark.training.executor import child_process
from mirrorspark.training.results import export as module
from mirrorspark.training.results.export import ExportFailedError, ExportProcess, export, export_once
from mirrorspark.training.results.export_plan import ExportPlan, ExportResult
from mirrorspark.training.results.registration import CHECKPOINT_TAG, delete_unregistered, registered_before


@pytest.fixture
def plan(tmp_path: Path) -> ExportPlan:
    return ExportPlan(
        dataset="/data/flights-1",
        checkpoint=str(tmp_path / "checkpoints" / "step-00000420"),
        model="multi_field",
        model_options={"dropout": 0.1},
        seed=1,
        top_k=20,
        folder=str(tmp_path / "model"),
        predictions=str(tmp_path / "predictions"),
        tracking_uri="sqlite:///mlflow.db",
        registry_uri="sqlite:///mlflow.db",
        mlflow_run_id="run-1",
        model_name="flights-20261124-101112-0a1b",
        registered_model="flights",
        model_tags={"dataset": "flights-1"},
        threads=2,
    )


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[ExportPlan]:
    """Let every export succeed with a version of its own; return their plans."""
    done: list[ExportPlan] = []

    def export(plan: ExportPlan, **_: Any) -> ExportResult:
        done.append(plan)
        for folder, name in ((plan.folder, "saved_model/saved_model.pb"), (plan.predictions, "test.parquet")):
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("content")
        return ExportResult(f"models:/m-{len(done)}", str(len(done)))

    monkeypatch.setattr(module, "export", export)
    return done


def test_a_complete_export_is_not_repeated(plan: ExportPlan, exports: list[ExportPlan], tmp_path: Path) -> None:
    kept = tmp_path / "export.json"
    first = export_once(plan, kept)
    assert export_once(dataclasses.replace(plan, threads=8), kept) == first == ExportResult("models:/m-1", "1")
    assert len(exports) == 1


@pytest.mark.parametrize("change", ["another checkpoint", "a lost file", "a torn file", "a torn result", "no result"])
def test_an_incomplete_or_different_export_is_repeated(
    plan: ExportPlan, exports: list[ExportPlan], tmp_path: Path, change: str
) -> None:
    kept = tmp_path / "export.json"
    export_once(plan, kept)
    match change:
        case "another checkpoint":
            plan = dataclasses.replace(plan, checkpoint="step-00000500")
        case "a lost file":
            (Path(plan.predictions) / "test.parquet").unlink()
        case "a torn file":
            (Path(plan.folder) / "saved_model" / "saved_model.pb").write_text("con")
        case "a torn result":
            kept.write_text(kept.read_text()[:40])
        case "no result":
            kept.unlink()
    assert export_once(plan, kept).model_version == "2"
    assert export_once(plan, kept).model_version == "2"


def test_an_export_that_fails_leaves_no_word_of_the_one_before(
    plan: ExportPlan, exports: list[ExportPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "export.json"
    export_once(plan, kept)

    def fail(plan: ExportPlan, **_: Any) -> ExportResult:
        raise ExportFailedError("export failed: no space left")

    monkeypatch.setattr(module, "export", fail)
    with pytest.raises(ExportFailedError):
        export_once(dataclasses.replace(plan, seed=2), kept)
    assert not kept.exists()


Started = list[subprocess.Popen[str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Started]]:
    """Return a function that has every export process run a program; it returns the processes."""
    started: Started = []

    def replace(program: str) -> Started:
        def start(module: str, environment: dict[str, str]) -> subprocess.Popen[str]:
            pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            started.append(subprocess.Popen([sys.executable, "-c", program], text=True, **pipes))
            return started[-1]

        monkeypatch.setattr(child_process, "start", start)
        return started

    yield replace
    assert all(process.poll() is not None for process in started)


ANSWERS = """
import json, os
plan = json.loads(input())
print(json.dumps({"doing": "rows predicted", "done": 5, "total": 20}))
print(json.dumps({"model_uri": plan["checkpoint"], "model_version": str(os.getpid())}))
"""


def test_an_export_runs_in_the_process_that_was_started_before_and_tells_its_steps(
    plan: ExportPlan, say: Callable[[str], Started]
) -> None:
    started = say(ANSWERS)
    with ExportProcess(2) as process:
        assert process.is_alive
        steps: list[tuple[str, int, int]] = []
        exported = export(plan, process=process, on_progress=lambda *step: steps.append(step))
        assert exported == ExportResult(plan.checkpoint, str(started[0].pid))
    assert len(started) == 1
    assert steps == [("rows predicted", 5, 20)]


def test_a_process_that_has_died_meanwhile_is_replaced(plan: ExportPlan, say: Callable[[str], Started]) -> None:
    started = say(ANSWERS)
    with ExportProcess(2) as process:
        started[0].kill()
        started[0].wait()
        assert export(plan, process=process).model_version == str(started[1].pid)


def test_an_export_that_fails_tells_the_last_line_of_its_process(
    plan: ExportPlan, say: Callable[[str], Started]
) -> None:
    say("input(); raise OSError('no space left')")
    with pytest.raises(ExportFailedError, match=r"^export failed: OSError: no space left$"):
        export(plan)


def test_a_process_that_is_not_needed_after_all_is_ended(say: Callable[[str], Started]) -> None:
    started = say("input()")
    with ExportProcess(2):
        pass
    assert started[0].returncode != 0


@pytest.fixture
def client(mlflow_store: str) -> Iterator[MlflowClient]:
    """A client in a process whose store is the same, as in that of an export."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_store)
    yield MlflowClient(mlflow_store)
    mlflow.set_tracking_uri(before)


def test_a_version_of_the_same_run_and_checkpoint_is_found(
    plan: ExportPlan, client: MlflowClient, tmp_path: Path
) -> None:
    experiment = client.create_experiment("exports", artifact_location=(tmp_path / "artifacts").as_uri())
    client.create_registered_model("flights")

    def register(checkpoint: str) -> tuple[Any, Any]:
        run = client.create_run(experiment).info.run_id
        model = client.create_logged_model(experiment, "model", source_run_id=run)
        client.finalize_logged_model(model.model_id, "READY")
        uri = f"models:/{model.model_id}"
        version = client.create_model_version("flights", uri, run, tags={CHECKPOINT_TAG: checkpoint})
        return dataclasses.replace(plan, mlflow_run_id=run), ExportResult(uri, str(version.version))

    mine, expected = register("step-00000420")
    other, _ = register("step-00000300")
    assert registered_before(client, mine, "multi_field") == expected
    assert registered_before(client, mine, "hist_gradient_boosting") is None
    assert registered_before(client, other, "multi_field") is None
    assert registered_before(client, plan, "multi_field") is None
    assert registered_before(client, dataclasses.replace(mine, registered_model="nobody's"), "multi_field") is None


def test_models_that_a_killed_export_has_logged_and_not_registered_are_deleted_and_no_others(
    plan: ExportPlan, client: MlflowClient
) -> None:
    experiment = client.create_experiment("killed exports")
    run, other_run = (client.create_run(experiment).info.run_id for _ in range(2))

    def logged(run: str, name: str, status: str) -> str:
        model = client.create_logged_model(experiment, name, source_run_id=run)
        if status != "PENDING":
            client.finalize_logged_model(model.model_id, status)
        return str(model.model_id)

    client.create_registered_model("of-killed-exports")
    registered = logged(run, plan.model_name, "READY")
    client.create_model_version("of-killed-exports", f"models:/{registered}", run)
    kept = {registered, logged(run, "a-users-own", "PENDING"), logged(other_run, plan.model_name, "PENDING")}
    for status in ("PENDING", "READY"):
        logged(run, plan.model_name, status)

    delete_unregistered(client, dataclasses.replace(plan, mlflow_run_id=run))

    assert {model.model_id for model in client.search_logged_models([experiment])} == kept
