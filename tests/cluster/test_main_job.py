"""The main job on real flights: two workers, kills of all that takes part, a fault of the user's own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from benchmarks.score_parity import predicted, ways_in
from benchmarks.train_kills import weights_of
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fencing import FENCE
from mirrorspark.callbacks.mlflow.tracking_store import store_client
from mirrorspark.data_pipelines.dataset.manifest import Shard
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.scoring.model.stored.uri import resolve
from mirrorspark.scoring.parity import parity_check
from mirrorspark.testing import faults
from mirrorspark.testing.faults import Trigger
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.job.source_tables import recipe_table
from mirrorspark.training.protocol.outcomes.timing import LEASE_SECONDS
from mirrorspark.training.run import main
from mirrorspark.training.run_records.run_state import read_state
from tests.cluster.conftest import JOB_SECONDS, Driver, driver, kill_within_an_epoch, read_events, stop_rank, wait_until
from tests.conftest import PATIENCE

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

    @property
    def last_checkpoint(self) -> str:
        """The path of the newest checkpoint, as TensorFlow takes it."""
        newest = commit.latest_committed(Path(self.summary["run_folder"]) / "checkpoints")
        assert newest is not None
        return newest.prefix

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
    return run(output, f"--recipe={some_flights}", "--workers=2", "--no-explain")


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


@pytest.mark.full
def test_every_way_in_gives_the_scores_of_the_training_framework(
    spark: "SparkSession", unbroken: Finished, some_flights: Path, tmp_path: Path
) -> None:
    """S14: raw rows of the held-back split through each, compared with Keras' predictions before the export."""
    summary = unbroken.summary
    version = f"models:/{summary['registered_model']}/{summary['model_version']}"
    table = recipe_table(spark, RunConfig.from_recipe(str(some_flights), output=str(tmp_path / "sources")))
    table.where("split = 'test'").limit(3_000).write.parquet(str(tmp_path / "rows"))
    reference = predicted(pq.read_table(Path(summary["run_folder"]) / "predictions" / "test.parquet"))
    ways = ways_in(spark, resolve(version, summary["tracking_uri"]), tmp_path)
    assert len(ways) == 10
    for name, way in ways.items():
        # Records hold numbers of 32 bits.
        tolerance = 1e-5 if "tfrecords" in name else 1e-6
        report = parity_check(reference, way, tmp_path / "rows", keys="flight_id", tolerance=tolerance)
        assert report.rows == 3_000
        assert report.passed, f"{name}\n{report.as_table()}"


def test_mlflow_has_one_run_with_everything_in_it(unbroken: Finished) -> None:
    """T7, L5: parameters, a point per epoch, manifest, spec, environment, plots, and the registered model."""
    client = store_client(unbroken.summary["tracking_uri"])
    experiment = client.get_experiment_by_name("some_flights")
    assert [found.info.run_id for found in client.search_runs([experiment.experiment_id])] == [
        unbroken.summary["run_id"]
    ]
    tracked = client.get_run(unbroken.summary["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.embedding_dim"] == "8"
    assert "None" not in tracked.data.params.values()
    (learnt_from,) = tracked.inputs.dataset_inputs
    assert learnt_from.dataset.name == unbroken.summary["dataset"]["path"].rpartition("/")[2]
    assert json.loads(learnt_from.dataset.profile)["num_rows"] == sum(unbroken.summary["dataset"]["rows"].values())
    (logged,) = client.search_logged_models([experiment.experiment_id])
    assert {metric.key: metric.value for metric in logged.metrics}["test_auc"] == tracked.data.metrics["test_auc"]
    assert len(client.get_metric_history(tracked.info.run_id, "test_auc")) == 1
    assert "system/parity_max" in tracked.data.metrics
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
        "for package in ('mirrorspark', 'callbacks', 'data_pipelines', 'models', 'pages', 'scoring', 'training'):\n"
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
        timeout=PATIENCE * 120,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["5", "True", "True"]


def test_nothing_is_left_of_the_workers(unbroken: Finished) -> None:
    """T5: one committed copy of each kept checkpoint, no staging, no scratch."""
    folder = Path(unbroken.summary["run_folder"])
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names
    assert all(name.startswith("step-") or fnmatch(name, FENCE) for name in names)


@pytest.mark.timeout(2 * JOB_SECONDS)
def test_killed_ranks_and_a_killed_driver_go_on_within_the_epoch_and_the_run_ends_bit_for_bit(
    unbroken: Finished, tmp_path: Path
) -> None:
    """T6, T7, L16: a worker, the chief, then the driver; one MLflow run, an unbroken curve, and equal weights."""
    output = unbroken.output
    flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", "--no-explain"]
    flags += ["--checkpoint-every-steps=10", "--steps-per-execution=10"]
    half = next(event["steps"] for event in read_events(output) if event["event"] == "train_begin") / 2
    worker, chief = kill_within_an_epoch(1, until=half), kill_within_an_epoch(0, epoch=2, until=half)
    with contextlib.ExitStack() as planned:
        for kill in (
            faults.inject_when(output, Trigger(epoch=1), worker, timeout_seconds=JOB_SECONDS),
            faults.inject_when(output, Trigger(epoch=2, attempt=2), chief, timeout_seconds=JOB_SECONDS),
            faults.kill_driver(output, Trigger(epoch=3, attempt=3), timeout_seconds=JOB_SECONDS),
        ):
            planned.enter_context(kill)
        killed = planned.enter_context(driver([*flags, "--no-resume"], output, tmp_path / "killed.log"))
        status, last = killed.ended(JOB_SECONDS)
    assert status == -signal.SIGKILL, last
    begun = read_events(output)
    resumed_from = [event["resumed_from"] for event in begun if event["event"] == "attempt"]
    steps = next(event["steps"] for event in begun if event["event"] == "train_begin")
    assert len(resumed_from) == 3
    assert all(step % steps for step in resumed_from[1:])
    left = read_state(killed.run)
    assert left is not None
    assert left.status == "running"

    broken = run(output, *flags)
    assert broken.summary["dataset"]["reused"]
    assert Path(broken.summary["run_folder"]) == killed.run
    assert broken.summary["run_id"] == left.mlflow_run_id
    *_, resumed = (event["resumed_from"] for event in read_events(output)[len(begun) :] if event["event"] == "attempt")
    assert resumed >= resumed_from[-1] > 2 * steps
    assert broken.epochs_in_mlflow() == [1, 2, 3, 4]
    # Dropout and all: every weight, and the optimizer's state.
    assert weights_of(broken.last_checkpoint) == weights_of(unbroken.last_checkpoint)
    np.testing.assert_allclose(broken.scores["score"], unbroken.scores["score"], atol=1e-6)


@pytest.mark.timeout(JOB_SECONDS)
@pytest.mark.parametrize("events", ["direct", pytest.param("folder", marks=pytest.mark.full)])
def test_over_spark_connect_a_killed_worker_costs_an_attempt_and_the_run_ends_as_a_classic_one_bit_for_bit(
    unbroken: Finished, connect_url: str, tmp_path: Path, events: str
) -> None:
    """T6, T8, H2: a client without a JVM converts nothing anew, trains, registers and scores; its workers reach it."""
    output, summary = unbroken.output, tmp_path / "summary.json"
    flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", "--no-explain", "--no-resume", f"--summary={summary}"]
    flags += ["--checkpoint-every-steps=10", "--steps-per-execution=10", f"--remote={connect_url}"]
    flags += [f"--events={events}"]
    half = next(event["steps"] for event in read_events(output) if event["event"] == "train_begin") / 2
    kill = kill_within_an_epoch(1, until=half)
    with (
        faults.inject_when(output, Trigger(epoch=1), kill, timeout_seconds=JOB_SECONDS),
        driver(flags, output, tmp_path / "log") as client,
    ):
        status, last = client.ended(JOB_SECONDS)
    assert status == 0, last
    found = Finished(json.loads(summary.read_text(encoding="utf-8")), output)
    assert (found.summary["attempts"], found.summary["dataset"]["reused"]) == (2, True)
    assert ("by files in" in (tmp_path / "log").read_text(encoding="utf-8")) == (events == "folder")
    assert not list(output.glob("runs/*/channel"))
    assert found.epochs_in_mlflow() == [1, 2, 3, 4]
    assert weights_of(found.last_checkpoint) == weights_of(unbroken.last_checkpoint)
    pd.testing.assert_frame_equal(
        found.scores.drop(columns="model_version"), unbroken.scores.drop(columns="model_version")
    )


@pytest.mark.full
@pytest.mark.timeout(3 * JOB_SECONDS)
def test_over_spark_connect_a_lost_client_and_ctrl_c_leave_no_task_and_the_run_ends_as_a_classic_one_bit_for_bit(
    unbroken: Finished, spark: "SparkSession", connect_url: str, tmp_path: Path
) -> None:
    """T6, T8: the tasks of a killed client end with their lease, those of an interrupted one with a checkpoint."""
    output, summary, log = unbroken.output, tmp_path / "summary.json", tmp_path / "log"
    flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", "--no-explain", f"--summary={summary}"]
    flags += ["--checkpoint-every-steps=10", "--steps-per-execution=10", f"--remote={connect_url}", "--events=folder"]
    tracker = spark.sparkContext.statusTracker()

    def stop_within_an_epoch(client: Driver, begun: float, after: int) -> int:
        """Stop worker 1, else the training would be over within its lease; return its process."""
        wait_until(lambda: client.process.poll() is not None or len(client.ranks(begun)) == 2, 240, "two workers")
        assert client.process.poll() is None, log.read_text(encoding="utf-8")
        process = client.ranks(begun)[1]
        stop_rank(process, client.run / "checkpoints", lambda newest: newest.step > after and newest.step_in_epoch > 0)
        return process

    begun = time.time()
    with driver([*flags, "--no-resume"], output, log) as lost:
        stop_within_an_epoch(lost, begun, 0)
        ranks, folder = lost.ranks(begun), lost.run
        lost.process.kill()
    wait_until(lambda: not tracker.getActiveStageIds(), LEASE_SECONDS + 15, "the end of the tasks", is_promised=True)
    wait_until(lambda: not any(map(psutil.pid_exists, ranks.values())), LEASE_SECONDS, "the end of the ranks")
    left = commit.latest_committed(folder / "checkpoints")
    assert left is not None

    begun = time.time()
    with driver(flags, output, log) as interrupted:
        process = stop_within_an_epoch(interrupted, begun, left.step)
        interrupted.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping" in {e["event"] for e in interrupted.events(begun)}, 20, "the word of the signal")
        os.kill(process, signal.SIGCONT)
        status, last = interrupted.ended(60)
    assert status == 130
    assert re.fullmatch(r"mirrorspark: stopped at step [\d,]+ \(SIGINT\); the same command goes on", last)
    wait_until(lambda: not tracker.getActiveStageIds(), 5, "the end of the tasks", is_promised=True)

    with driver(flags, output, log) as last_client:
        status, last = last_client.ended(JOB_SECONDS)
    assert status == 0, last
    found = Finished(json.loads(summary.read_text(encoding="utf-8")), output)
    assert Path(found.summary["run_folder"]) == folder
    assert not (folder / "channel").exists()
    assert found.epochs_in_mlflow() == [1, 2, 3, 4]
    assert weights_of(found.last_checkpoint) == weights_of(unbroken.last_checkpoint)


@pytest.mark.timeout(JOB_SECONDS)
def test_under_tensorflows_own_strategy_a_killed_worker_costs_an_attempt_as_on_the_ring(unbroken: Finished) -> None:
    """T3, T6, T7: the default on GPUs; the chief alone keeps checkpoints, and MLflow has one run."""
    output = unbroken.output
    flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", "--no-explain", "--epochs=2"]
    flags += ["--strategy=multi_worker_mirrored", "--checkpoint-every-steps=10", "--steps-per-execution=10"]
    half = next(event["steps"] for event in read_events(output) if event["event"] == "train_begin") / 2
    kill = kill_within_an_epoch(1, until=half)
    with faults.inject_when(output, Trigger(epoch=1), kill, timeout_seconds=JOB_SECONDS):
        mirrored = run(output, *flags)
    events = read_events(output)
    steps = next(event["steps"] for event in events if event["event"] == "train_begin")
    first, second = (event["resumed_from"] for event in events if event["event"] == "attempt")
    assert (first, second // steps) == (0, 1)
    assert second % steps
    assert mirrored.epochs_in_mlflow() == [1, 2]
    assert mirrored.summary["parity"]["passed"]
    names = [path.name for path in (Path(mirrored.summary["run_folder"]) / "checkpoints").iterdir()]
    assert all(name.startswith("step-") or fnmatch(name, FENCE) for name in names)
    client = mlflow.MlflowClient(mirrored.summary["tracking_uri"])
    for finished, strategy in ((unbroken, "ring"), (mirrored, "multi_worker_mirrored")):
        tracked = client.get_run(finished.summary["run_id"])
        assert (tracked.info.status, tracked.data.params["strategy"]) == ("FINISHED", strategy)
        assert f">{strategy}<" in (Path(finished.summary["run_folder"]) / "report.html").read_text(encoding="utf-8")
    assert _losses(mirrored) == pytest.approx(_losses(unbroken)[:2], rel=1e-5)


def test_fault_of_the_users_own_fails_at_once(unbroken: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """T6: a loss that explodes would explode again; the message says when it did, on what, and where to go on."""
    summary = unbroken.output / "failed.json"
    flags = [f"--recipe={_recipe_of(unbroken)}", "--workers=2", f"--output={unbroken.output}", f"--summary={summary}"]
    status = main([*flags, "--learning-rate=1e30", "--optimizer=sgd"])
    assert status == 1
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["status"] == "failed"
    said = re.search(
        r"NonFiniteLossError: loss is (?:nan|inf) in epoch 1, first in step 2 "
        r"\(it read (.+); there is no checkpoint yet\)",
        document["error"],
    )
    assert said is not None, document["error"]
    # There are such files, and they have such records.
    shards = {shard.path: shard for shard in _training_shards(unbroken)}
    for path, numbers in re.findall(r"(\S+) records ([\d, -]+)", said[1]):
        assert max(map(int, re.findall(r"\d+", numbers))) < len(shards[path].block_rows)
    assert sum(event["event"] == "attempt" for event in read_events(unbroken.output)) == 1
    assert "NonFiniteLossError" in capsys.readouterr().err.splitlines()[-1]


def _recipe_of(finished: Finished) -> str:
    client = mlflow.MlflowClient(finished.summary["tracking_uri"])
    return str(client.get_run(finished.summary["run_id"]).data.params["recipe"])


def _losses(finished: Finished) -> list[float]:
    client = mlflow.MlflowClient(finished.summary["tracking_uri"])
    return [metric.value for metric in client.get_metric_history(finished.summary["run_id"], "loss")]


def _training_shards(finished: Finished) -> tuple[Shard, ...]:
    (folder,) = finished.output.glob("datasets/*")
    return Dataset.open(folder).manifest.splits["train"]
