"""A sweep on Spark: trials side by side, one that fails, one that is pruned, and the best one's model delivered."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pytest

from mirrorspark.testing.faults import Fault, injected
from mirrorspark.training.sweep import main
from tests.cluster.conftest import Events
from tests.cluster.test_bad_input import write_job

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Steps this long lead nowhere: the loss is NaN in the first epoch.
NO_STEP = 1e30
# And these lead away: the loss is a number, and a bad one.
BAD_STEP = 100.0
# Four steps make an epoch: more than two seconds, within which a trial that is pruned after its first one is notified.
STEP_SECONDS = 0.6


@pytest.mark.full
@pytest.mark.timeout(240)
def test_sweep_trains_side_by_side_outlives_a_failed_trial_prunes_a_bad_one_and_delivers_the_best(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T7: parallel trials where slots allow, MLflow child runs, a fault that is the trial's own, one model."""
    # Of two epochs Hyperband makes one bracket: after the first it prunes who is not the best so far. The seed takes
    # the second choice last: that trial begins when the one that fails has ended.
    knobs = {"optimizer": "sgd", "epochs": 2, "steps_per_execution": 1, "monitor": "val_log_loss", "mode": "min"}
    write_job(tmp_path, **knobs)
    summary = tmp_path / "summary.json"

    with injected(spark, Fault("slow_input", seconds=STEP_SECONDS, attempt=None)):
        status = main(
            [
                *(f"--{name}={tmp_path / name}" for name in ("recipe", "data", "output")),
                *(f"--summary={summary}", "--study=small", "--sampler=grid", "--pruner=hyperband"),
                *("--trials=3", "--parallel=2", f"--search=learning_rate=choice:0.05,{BAD_STEP},{NO_STEP}"),
            ]
        )

    said = capsys.readouterr()
    assert status == 0, said.err
    document = json.loads(summary.read_text(encoding="utf-8"))
    states = {trial["values"]["learning_rate"]: trial["state"] for trial in document["trials"]}
    assert states == {NO_STEP: "failed", 0.05: "complete", BAD_STEP: "pruned"}
    (failed,) = (trial for trial in document["trials"] if trial["state"] == "failed")
    assert "NonFiniteLossError" in failed["error"]
    (pruned,) = (trial for trial in document["trials"] if trial["state"] == "pruned")
    assert "is pruned at epoch 1, val_log_loss" in said.err
    assert epochs_of(Path(pruned["run_folder"])) == {1}

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
    assert best["values"]["learning_rate"] == 0.05
    version = client.get_model_version_by_alias("recipe", "challenger")
    assert (str(version.version), version.run_id) == ("1", best["run_id"])
    folder = tmp_path / "output" / "sweeps" / "small"
    assert f"learning_rate: {best['values']['learning_rate']}" in (folder / "best.yaml").read_text(encoding="utf-8")


def span_of(run_folder: Path) -> tuple[float, float]:
    """Return when the first and the last event of a run came."""
    times = [event["time"] for event in events_of(run_folder) if "time" in event]
    return min(times), max(times)


def epochs_of(run_folder: Path) -> set[int]:
    """Return the epochs that a run has completed."""
    return {event["epoch"] for event in events_of(run_folder) if event["event"] == "epoch_end"}


def events_of(run_folder: Path) -> Events:
    """Return all events of a run."""
    return [json.loads(line) for line in (run_folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
