"""A sweep on Spark: trials side by side, one that fails, and the best one delivered as a run's model is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest

from tests.cluster.test_bad_input import RECIPE, rows, write_data, write_recipe
from training.sweep import main

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Steps this long lead nowhere: the loss is no number in the first epoch.
NO_STEP = 1e30


@pytest.mark.timeout(240)
def test_sweep_trains_side_by_side_outlives_a_failed_trial_and_delivers_the_best(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T10: parallel trials where slots allow, MLflow child runs, a fault that is the trial's own, one model."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "data").mkdir()
    write_recipe(tmp_path, RECIPE | {"baseline": "none", "optimizer": "sgd", "epochs": 3})
    write_data(tmp_path, rows())
    summary = tmp_path / "summary.json"

    status = main(
        [
            *(f"--{name}={tmp_path / name}" for name in ("recipe", "data", "output")),
            *(f"--summary={summary}", "--study=small", "--sampler=grid", "--pruner=none"),
            *("--trials=3", "--parallel=2", f"--search=learning_rate=choice:0.05,0.1,{NO_STEP}"),
        ]
    )

    said = capsys.readouterr()
    assert status == 0, said.err
    document = json.loads(summary.read_text(encoding="utf-8"))
    states = {trial["values"]["learning_rate"]: trial["state"] for trial in document["trials"]}
    assert states == {0.05: "complete", 0.1: "complete", NO_STEP: "failed"}
    (failed,) = (trial for trial in document["trials"] if trial["state"] == "failed")
    assert "NonFiniteLossError" in failed["error"]

    # With two slots and a worker each the first two train at the same time, and never three.
    spans = sorted(span_of(Path(trial["run_folder"])) for trial in document["trials"])
    assert spans[1][0] < spans[0][1]
    assert spans[2][0] > min(spans[0][1], spans[1][1])

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'output' / 'mlflow.db'}")
    children = {trial["number"]: client.get_run(trial["run_id"]) for trial in document["trials"]}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {document["run_id"]}
    assert children[failed["number"]].info.status == "FAILED"
    assert client.get_run(document["run_id"]).info.status == "FINISHED"

    best = document["best"]
    version = client.get_model_version_by_alias("recipe", "challenger")
    assert (str(version.version), version.run_id) == ("1", best["run_id"])
    folder = tmp_path / "output" / "sweeps" / "small"
    assert f"learning_rate: {best['values']['learning_rate']}" in (folder / "best.yaml").read_text(encoding="utf-8")


def span_of(run_folder: Path) -> tuple[float, float]:
    """Return when the first and the last event of a run came."""
    lines = (run_folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["time"] for line in lines]
    return min(times), max(times)
