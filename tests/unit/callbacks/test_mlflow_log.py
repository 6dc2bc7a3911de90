"""T7, L6: one run per training, with floats and tensors, gone on with after a restart."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tensorflow as tf
import tf_keras
from mlflow import MlflowClient
from mlflow.tracking import fluent

from mirrorspark.callbacks.mlflow.metric_buffer import MetricBuffer
from mirrorspark.callbacks.mlflow.metric_requests import Target
from mirrorspark.callbacks.mlflow_log import MLflowLogger

ROOT = Path(__file__).parents[3]

NewModel = Callable[..., tf_keras.Model]
NewDataset = Callable[..., tf.data.Dataset]


class TensorMetric(tf_keras.callbacks.Callback):
    """Adds a metric that is a tensor, as callbacks of users do."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["tensor"] = tf.constant(epoch + 0.5)


def curve(store: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return [(point.step, point.value) for point in MlflowClient(store).get_metric_history(run_id, name)]


def test_a_fit_becomes_one_finished_run_with_floats_and_tensors(
    mlflow_store: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    logger = MLflowLogger(tracking_uri=mlflow_store, log_path=tmp_path / "log.jsonl")
    history = new_model().fit(new_dataset(), epochs=2, callbacks=[TensorMetric(), logger], verbose=0)
    assert curve(mlflow_store, logger.run_id, "loss") == list(enumerate(history.history["loss"], start=1))
    assert curve(mlflow_store, logger.run_id, "tensor") == [(1, 0.5), (2, 1.5)]
    assert MlflowClient(mlflow_store).get_run(logger.run_id).info.status == "FINISHED"


def test_a_resumed_fit_goes_on_in_the_same_run_with_an_unbroken_curve(
    mlflow_store: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    run_id = MlflowClient(mlflow_store).create_run("0").info.run_id
    model = new_model()
    for initial_epoch, epochs in ((0, 3), (2, 5)):  # epoch 3 is trained twice
        logger = MLflowLogger(run_id, mlflow_store, log_path=tmp_path / "log.jsonl")
        arguments: dict[str, Any] = {"initial_epoch": initial_epoch, "epochs": epochs, "verbose": 0}
        model.fit(new_dataset(), callbacks=[logger], **arguments)
    assert [step for step, _ in curve(mlflow_store, run_id, "loss")] == [1, 2, 3, 4, 5]


def test_the_active_run_is_used_and_left_open(
    mlflow_store: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    mlflow.set_tracking_uri(mlflow_store)
    try:
        with mlflow.start_run() as run:
            logger = MLflowLogger(log_path=tmp_path / "log.jsonl")
            new_model().fit(new_dataset(), callbacks=[logger], verbose=0)
            assert logger.run_id == run.info.run_id
            assert MlflowClient().get_run(run.info.run_id).info.status == "RUNNING"
    finally:
        mlflow.set_tracking_uri(None)
    assert len(curve(mlflow_store, run.info.run_id, "loss")) == 1


@dataclass(frozen=True)
class Job:
    """MLflow's settings in a job's environment: its store, its experiment and a run of it."""

    store: str
    experiment_id: str
    run_id: str


@pytest.fixture
def job(mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Let the environment name a store that is not ``mlflow_store``, and an experiment there."""
    file = tmp_path / "job.db"
    shutil.copy(mlflow_store.removeprefix("sqlite:///"), file)  # with its tables
    store = f"sqlite:///{file}"
    client = MlflowClient(store)
    experiment_id = client.create_experiment("the job's")
    mlflow.set_tracking_uri(None)  # what another test of this process said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "the job's")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return Job(store, experiment_id, client.create_run(experiment_id).info.run_id)


def fit(tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, **arguments: Any) -> str:
    """Train with a logger and return the id of its run."""
    logger = MLflowLogger(log_path=tmp_path / "log.jsonl", **arguments)
    new_model().fit(new_dataset(), callbacks=[logger], verbose=0)
    assert logger.run_id is not None
    return logger.run_id


def test_a_run_that_is_started_belongs_to_the_experiment_of_the_environment(
    job: Job, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    info = MlflowClient(job.store).get_run(fit(tmp_path, new_model, new_dataset)).info
    assert (info.experiment_id, info.status) == (job.experiment_id, "FINISHED")
    named = MlflowClient(job.store).get_run(fit(tmp_path, new_model, new_dataset, experiment="mine")).info
    assert MlflowClient(job.store).get_experiment(named.experiment_id).name == "mine"


def test_the_run_of_the_environment_is_gone_on_with_and_left_open(
    job: Job, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", job.run_id)
    assert fit(tmp_path, new_model, new_dataset) == job.run_id
    assert len(curve(job.store, job.run_id, "loss")) == 1
    assert MlflowClient(job.store).get_run(job.run_id).info.status == "RUNNING"


def test_the_experiment_that_the_code_sets_goes_before_that_of_the_environment(
    job: Job, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fluent, "_active_experiment_id", None)  # so that it is taken back
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # likewise
    chosen = mlflow.set_experiment("the notebook's").experiment_id
    info = MlflowClient(job.store).get_run(fit(tmp_path, new_model, new_dataset)).info
    assert info.experiment_id == chosen


def test_a_store_that_is_given_gets_nothing_of_what_holds_for_mlflows_current_one(
    job: Job,
    mlflow_store: str,
    tmp_path: Path,
    new_model: NewModel,
    new_dataset: NewDataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With a run that is active, and one that is yet to be.
    with mlflow.start_run(run_id=job.run_id):
        first = fit(tmp_path, new_model, new_dataset, tracking_uri=mlflow_store)
    monkeypatch.setenv("MLFLOW_RUN_ID", job.run_id)
    second = fit(tmp_path, new_model, new_dataset, tracking_uri=mlflow_store)
    assert len({first, second, job.run_id}) == 3
    for run_id in (first, second):
        info = MlflowClient(mlflow_store).get_run(run_id).info
        assert (info.experiment_id, info.status) == ("0", "FINISHED")
    assert curve(job.store, job.run_id, "loss") == []


def test_a_server_that_is_down_from_the_start_does_not_stop_training(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log = tmp_path / "log.jsonl"
    # Port 1 of loopback: nobody listens there.
    logger = MLflowLogger(tracking_uri="http://127.0.0.1:1", log_path=log, close_timeout_seconds=0.1)
    history = new_model().fit(new_dataset(), epochs=2, callbacks=[logger], verbose=0)
    assert history.epoch == [0, 1]
    saved = [event for line in log.read_text().splitlines() if "metrics" in (event := json.loads(line))]
    assert [(list(event["metrics"]), event["step"]) for event in saved] == [(["loss", "mae"], 1), (["loss", "mae"], 2)]


def test_unsent_metrics_are_kept_in_a_file_by_default(
    tmp_path: Path, new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    run_id = "0123456789abcdef"
    logger = MLflowLogger(run_id, "http://ann:s3cret@127.0.0.1:1", close_timeout_seconds=0.1)
    new_model().fit(new_dataset(), callbacks=[logger], verbose=0)
    (left,) = tmp_path.iterdir()
    assert left.name == f"mlflow-metrics-{run_id}.jsonl"
    assert "s3cret" not in left.read_text()
    assert '"loss"' in left.read_text()


def test_a_rank_that_is_not_the_chief_logs_nothing(
    new_model: NewModel, new_dataset: NewDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    logger = MLflowLogger(tracking_uri="http://127.0.0.1:1")
    new_model().fit(new_dataset(), callbacks=[logger], verbose=0)
    assert logger.run_id is None


def test_on_request_steps_are_logged_over_the_optimizers_steps(
    mlflow_store: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    seconds = iter(range(100))  # one more at each batch
    logger = MLflowLogger(
        tracking_uri=mlflow_store, log_path=tmp_path / "s.jsonl", step_seconds=3, clock=lambda: float(next(seconds))
    )
    history = new_model().fit(new_dataset(), epochs=2, callbacks=[logger], verbose=0)
    points = curve(mlflow_store, logger.run_id, "system/step_loss")
    assert [step for step, _ in points] == [1, 4, 7]
    # The fourth batch is the last of its epoch: Keras's mean so far is that of the epoch.
    assert points[1][1] == pytest.approx(history.history["loss"][0])
    assert curve(mlflow_store, logger.run_id, "system/step_steps_per_second") == [(4, 1.0), (7, 1.0)]
    assert [step for step, _ in curve(mlflow_store, logger.run_id, "loss")] == [1, 2]


def test_on_request_the_process_is_measured_under_mlflows_names(
    mlflow_store: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    class UntilMeasured(tf_keras.callbacks.Callback):
        """Keeps the training going until there is a measurement."""

        def on_train_end(self, logs: Any = None) -> None:
            assert measured.wait(60)

    measured = threading.Event()
    buffer = MetricBuffer(Target(None, mlflow_store, "Default"), log=tmp_path / "log.jsonl")
    log = buffer.log

    def logged(metrics: Any, step: int) -> None:
        log(metrics, step)
        if "system/worker_0_system_memory_usage_megabytes" in metrics:
            measured.set()

    buffer.log = logged  # type: ignore[method-assign, assignment]
    logger = MLflowLogger(buffer=buffer, system_seconds=0.01)
    before = set(threading.enumerate())
    new_model().fit(new_dataset(), callbacks=[UntilMeasured(), logger], verbose=0)
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.name == "system-metrics"]
    assert buffer.close(60)
    ((_, megabytes),) = curve(mlflow_store, buffer.run_id, "system/worker_0_system_memory_usage_megabytes")[:1]
    assert 50 < megabytes < 50_000


class Fails(tf_keras.callbacks.Callback):
    """Stands for anybody's error within an epoch."""

    is_to_fail = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.is_to_fail:
            raise LookupError("no such column")


def samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "system-metrics"]


def test_a_fit_that_failed_leaves_nothing_behind_when_another_one_begins(
    mlflow_store: str, tmp_path: Path, new_model: NewModel, new_dataset: NewDataset
) -> None:
    logger = MLflowLogger(tracking_uri=mlflow_store, log_path=tmp_path / "log.jsonl", system_seconds=60)
    fails = Fails()
    for _ in range(2):
        with pytest.raises(LookupError):
            new_model().fit(new_dataset(), callbacks=[logger, fails], verbose=0)
        assert len(samplers()) == 1
    run_id = logger.run_id
    # The second one has not ended: its run, which had failed with the first one, is a running one again.
    end = time.monotonic() + 30
    while MlflowClient(mlflow_store).get_run(run_id).info.status != "RUNNING":
        assert time.monotonic() < end
    fails.is_to_fail = False
    new_model().fit(new_dataset(), callbacks=[logger, fails], verbose=0)
    assert samplers() == []
    assert logger.run_id == run_id
    assert MlflowClient(mlflow_store).get_run(run_id).info.status == "FINISHED"
    assert len(curve(mlflow_store, run_id, "loss")) == 1


@pytest.mark.full
@pytest.mark.process
def test_a_process_that_ends_after_a_failed_fit_leaves_a_failed_run(mlflow_store: str, tmp_path: Path) -> None:
    program = f"""
import sys, time, tf_keras
from mirrorspark.callbacks.mlflow_log import MLflowLogger

class Fails(tf_keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        # At its exit a process waits only seconds for the server, and the first request also imports the client.
        end = time.monotonic() + 40
        while logger.run_id is None and time.monotonic() < end:
            time.sleep(0.01)
        raise LookupError("no such column")

logger = MLflowLogger(tracking_uri={mlflow_store!r}, log_path={str(tmp_path / "log.jsonl")!r})
model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(1,))])
model.compile(loss="mse")
model.fit([1.0], [1.0], callbacks=[logger, Fails()], verbose=0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert "no such column" in done.stderr
    (run,) = MlflowClient(mlflow_store).search_runs(["0"], max_results=1)
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("name", ["step_seconds", "system_seconds"])
def test_a_pace_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0; use seconds above 0"):
        MLflowLogger(**{name: 0})
