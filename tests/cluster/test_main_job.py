"""The main job on real flights: two workers, killed workers, a resumed driver, a fault of the user's own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from callbacks.fence import FENCE
from tests.cluster.conftest import copy_datasets, epochs_told, read_events, wait_until
from training import faults
from training.run import main

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    summary: dict[str, Any]
    output: Path

    @property
    def auc(self) -> float:
        """AUC on the test split."""
        return float(self.summary["metrics"]["test"]["auc"])

    @property
    def scores(self) -> pd.DataFrame:
        """The scored table, ordered by key."""
        return pq.read_table(self.summary["scored_table"]).to_pandas().sort_values("flight_id", ignore_index=True)

    def epochs_in_mlflow(self) -> list[int]:
        """Return the steps of the validation curve as MLflow has them."""
        client = mlflow.MlflowClient(self.summary["tracking_uri"])
        return [metric.step for metric in client.get_metric_history(self.summary["run_id"], "val_auc")]


def run(output: Path, *flags: str) -> Finished:
    """Run the main job in this process, on the session that is there."""
    summary = output / "summary.json"
    status = main([f"--output={output}", f"--summary={summary}", *flags])
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert status == 0, document["error"]
    return Finished(document, output)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main-job")


@pytest.fixture(scope="module")
def unbroken(spark: "SparkSession", output: Path, some_flights: Path) -> Finished:
    """One undisturbed run of two workers."""
    return run(output, f"--recipe={some_flights}", "--workers=2")


def test_summary_tells_all_that_a_scheduler_needs(unbroken: Finished) -> None:
    """T8, S7: a finished run names its model, its metrics, its parity and its scored table."""
    summary = unbroken.summary
    assert summary["status"] == "finished"
    assert summary["attempts"] == 1
    assert summary["workers"] == 2
    assert summary["dataset"]["layout"] == "block"
    assert set(summary["metrics"]) == {"validation", "test"}
    assert {"preflight", "convert", "train", "export", "score"} <= set(summary["timings"])
    assert summary["examples_per_second"] > 0
    assert unbroken.auc > 0.6


def test_scores_of_spark_equal_those_of_the_training_framework(unbroken: Finished) -> None:
    """S7, L4: every row of the test split once, with its key and the model's version; parity to 1e-5."""
    scores = unbroken.scores
    assert len(scores) == unbroken.summary["dataset"]["rows"]["test"] == unbroken.summary["parity"]["rows"]
    assert scores["flight_id"].is_unique
    assert set(scores["model_version"]) == {"some_flights/1"}
    assert unbroken.summary["parity"]["max"] <= 1e-5


def test_mlflow_has_one_run_with_everything_in_it(unbroken: Finished) -> None:
    """T7, L5: parameters, a point per epoch, manifest, spec, environment, plots, and the registered model."""
    client = mlflow.MlflowClient(unbroken.summary["tracking_uri"])
    experiment = client.get_experiment_by_name("some_flights")
    assert [found.info.run_id for found in client.search_runs([experiment.experiment_id])] == [
        unbroken.summary["run_id"]
    ]
    tracked = client.get_run(unbroken.summary["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.embedding_dim"] == "8"
    assert "parity_max" in tracked.data.metrics
    assert unbroken.epochs_in_mlflow() == [1, 2, 3, 4]
    artifacts = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert {"config.yaml", "table.sql", "environment.json", "attempts.json", "parity.txt"} <= artifacts
    plots = {Path(file.path).stem for file in client.list_artifacts(tracked.info.run_id, "plots")}
    assert plots == {"learning_curves", "roc", "precision_recall", "calibration", "lift", "score_histogram"}
    documents = {file.path for file in client.list_artifacts(tracked.info.run_id, "dataset")}
    assert documents == {"dataset/manifest.json", "dataset/features.json"}
    version = client.get_model_version_by_alias("some_flights", "challenger")
    assert str(version.version) == "1"


def test_model_loads_in_a_fresh_process_without_our_packages(unbroken: Finished, tmp_path: Path) -> None:
    """T8: the model comes back from MLflow with its signature and input example, and scores raw columns."""
    program = (
        "import sys, mlflow\n"
        "for package in ('callbacks', 'data_pipelines', 'models', 'plots', 'scoring', 'training'):\n"
        "    sys.modules[package] = None  # what a machine without them says: there is no such module\n"
        f"mlflow.set_tracking_uri({unbroken.summary['tracking_uri']!r})\n"
        f"model = mlflow.pyfunc.load_model({unbroken.summary['model_uri']!r})\n"
        "example = model.input_example\n"
        "scores = model.predict(example)['score']\n"
        "assert model.metadata.signature is not None\n"
        "print(len(scores), float(scores.min()) >= 0, float(scores.max()) <= 1)\n"
    )
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["5", "True", "True"]


def test_nothing_is_left_of_the_workers(unbroken: Finished) -> None:
    """T5: one committed copy of each kept checkpoint, no staging, no scratch."""
    folder = Path(unbroken.summary["run_folder"])
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names
    assert all(name.startswith("step-") or name == FENCE for name in names)


@pytest.mark.parametrize("rank", [1, 0], ids=["worker", "chief"])
def test_killed_rank_restarts_from_the_last_checkpoint_and_ends_equal(unbroken: Finished, rank: int) -> None:
    """T6, L16: two attempts, one MLflow run with an unbroken curve, and the scores of a run without the kill."""
    recipe = f"--recipe={_recipe_of(unbroken)}"
    with faults.kill(unbroken.output, rank, faults.Moment(epoch=2)):
        broken = run(unbroken.output, recipe, "--workers=2", "--no-resume")
    assert broken.summary["dataset"]["reused"]
    assert broken.summary["attempts"] == 2
    assert broken.epochs_in_mlflow() == [1, 2, 3, 4]
    assert abs(broken.auc - unbroken.auc) <= 0.003
    np.testing.assert_allclose(broken.scores["score"], unbroken.scores["score"], atol=1e-6)


def test_ranks_that_stand_still_are_named_with_all_stacks_and_the_run_ends_equal(
    unbroken: Finished, spark: "SparkSession"
) -> None:
    """T6: a hang in Python, one in the input and a stopped process, each noticed within its limit."""
    hang = faults.Fault("hang", rank=1, step=40)
    hang_input = faults.Fault("hang_input", rank=0, step=60, attempt=2)
    stop = faults.Fault("stop", rank=1, step=120, attempt=3)
    with faults.injected(spark, hang, hang_input, stop):
        flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", "--no-resume", "--step-limit-seconds=6"]
        broken = run(unbroken.output, *flags)
    assert broken.summary["attempts"] == 4
    hangs = [event for event in read_events(unbroken.output) if event["event"] == "hung"]
    assert [event["ranks"] for event in hangs] == [[1], [0], [1]]
    assert "input" in hangs[1]["why"]
    assert "stopped" in hangs[2]["why"]
    assert all(set(event["stacks"]) == {"0", "1"} for event in hangs)
    assert "_StrikeAtStep" in hangs[0]["stacks"]["1"] or "injected_faults" in hangs[0]["stacks"]["1"]
    np.testing.assert_allclose(broken.scores["score"], unbroken.scores["score"], atol=1e-6)


def test_one_worker_learns_what_two_do(unbroken: Finished) -> None:
    """T3: at an equal global batch the number of workers does not change the result."""
    alone = run(unbroken.output, f"--recipe={_recipe_of(unbroken)}", "--workers=1")
    assert abs(alone.auc - unbroken.auc) <= 0.005


def test_killed_driver_goes_on_where_it_was(unbroken: Finished, tmp_path: Path) -> None:
    """T6, T7: the same command continues the same MLflow run, and the workers of the dead driver are gone."""
    copy_datasets(unbroken.output, tmp_path)
    command = [sys.executable, "-m", "training.run", f"--recipe={_recipe_of(unbroken)}", "--workers=2"]
    command += [f"--output={tmp_path}", f"--summary={tmp_path / 'summary.json'}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as driver:
        try:
            wait_until(lambda: 2 in epochs_told(tmp_path), 120, "the second epoch")
        finally:
            driver.kill()
    ranks = [event["process"] for event in read_events(tmp_path) if event["event"] == "phase"]
    wait_until(lambda: not any(_is_alive(process) for process in ranks), 60, "the end of the dead driver's workers")
    (state,) = tmp_path.glob("runs/*/run.json")
    begun = json.loads(state.read_text(encoding="utf-8"))["mlflow_run_id"]

    subprocess.run(command, stderr=subprocess.DEVNULL, timeout=240, check=True)
    resumed = Finished(json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")), tmp_path)

    assert resumed.summary["run_id"] == begun
    assert resumed.epochs_in_mlflow() == [1, 2, 3, 4]
    np.testing.assert_allclose(resumed.scores["score"], unbroken.scores["score"], atol=1e-6)


def test_fault_of_the_users_own_fails_at_once(unbroken: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """T6: a loss that explodes would explode again, so nothing restarts, and the first error is the message."""
    summary = unbroken.output / "failed.json"
    flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", f"--output={unbroken.output}", f"--summary={summary}"]
    status = main([*flags, "--learning-rate=1e30", "--optimizer=sgd"])
    assert status == 1
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["status"] == "failed"
    assert "NonFiniteLossError" in document["error"]
    assert sum(event["event"] == "attempt" for event in read_events(unbroken.output)) == 1
    assert "NonFiniteLossError" in capsys.readouterr().err.splitlines()[-1]


def _recipe_of(finished: Finished) -> str:
    client = mlflow.MlflowClient(finished.summary["tracking_uri"])
    return str(client.get_run(finished.summary["run_id"]).data.params["recipe"])


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has reaped yet is dead all the same.
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text(encoding="utf-8")
