"""T2, T3, T6, T7: functions written for MirroredStrategyRunner, unchanged, on two workers of a real session."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pytest

import mirrorspark as ms
from mirrorspark.testing import faults
from mirrorspark.testing.faults import Fault
from mirrorspark.training.driver.errors import TrainingFailedError, TrainingStoppedError
from mirrorspark.training.entry_points.launch import Launched, run_train_fn
from tests.cluster import distributor
from tests.cluster.programs import local_mode_gpus
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(240)


def with_our_callbacks() -> Callable[..., Any]:
    """Return a function that keeps checkpoints in a given folder; as a closure it travels by value."""

    def train(epochs: int) -> Any:
        import os

        import tensorflow as tf

        from mirrorspark.callbacks.backup import BackupAndRestore
        from mirrorspark.callbacks.checkpoint import ChiefCheckpoint

        features = tf.random.stateless_uniform((64, 4), seed=(1, 2))
        labels = tf.reduce_sum(features, axis=1, keepdims=True)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        data = tf.data.Dataset.from_tensor_slices((features, labels)).batch(16).with_options(options)
        tf.keras.utils.set_random_seed(1)
        model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=(4,))])
        model.compile(optimizer=tf.keras.optimizers.Adam(0.1), loss="mse")
        folder = os.environ["MIRRORSPARK_CHECKPOINTS"]
        history = model.fit(
            data,
            epochs=epochs,
            verbose=0,
            callbacks=[BackupAndRestore(folder), ChiefCheckpoint(folder, monitor=None)],
        )
        return {
            "epochs": history.epoch,
            "weights": [weight.tolist() for weight in model.get_weights()],
            "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
            "process": os.getpid(),
        }

    return train


def run(spark: "SparkSession", output: Path, **knobs: Any) -> Launched:
    return run_train_fn(with_our_callbacks(), kwargs={"epochs": 4}, spark=spark, output=output, **knobs)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def unbroken(spark: "SparkSession", output: Path) -> Launched:
    return run(spark, output, name="unbroken")


def test_it_runs_as_under_the_plain_runner_and_its_value_comes_back(unbroken: Launched) -> None:
    assert unbroken.result["epochs"] == [0, 1, 2, 3]
    assert unbroken.result["replicas"] == 2
    assert unbroken.result["process"] != os.getpid()
    assert [attempt.epochs for attempt in unbroken.attempts] == [4]


def test_mlflow_has_its_curve_though_it_knows_nothing_of_mlflow(unbroken: Launched) -> None:
    client = mlflow.MlflowClient(unbroken.tracking_uri)
    assert unbroken.run_id is not None
    found = client.get_run(unbroken.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["function"] == "train"
    curve = client.get_metric_history(unbroken.run_id, "loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]
    assert curve[-1].value < curve[0].value
    assert {"system/examples_per_second", "system/seconds_per_epoch"} <= set(found.data.metrics)


@pytest.mark.full
def test_a_model_that_it_returns_becomes_a_version_that_scores_like_it(spark: "SparkSession", output: Path) -> None:
    """H9: with moving averages, which all ranks have to give at save time."""

    def train(predictions: str) -> Any:
        import json
        import os

        import numpy as np
        import tf_keras

        rows = np.arange(32, dtype=np.float32).reshape(16, 2) / 32
        model = tf_keras.Sequential(
            [tf_keras.layers.BatchNormalization(input_shape=(2,)), tf_keras.layers.Dense(1, name="price")]
        )
        model.compile(optimizer="sgd", loss="mse")
        model.fit(rows, rows.sum(axis=1), batch_size=8, epochs=1, verbose=0)
        predicted = model(rows).numpy()
        if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
            np.save(predictions, predicted)
        return model

    file = str(output / "predictions.npy")
    done = run_train_fn(
        train,
        kwargs={"predictions": file},
        spark=spark,
        output=output,
        name="prices",
        registered_model="shop.ml.prices",
        model_columns=["size", "age"],
    )
    assert (done.result, done.model) == (None, "models:/shop.ml.prices/1")
    rows = [(number, number * 2 / 32, (number * 2 + 1) / 32) for number in range(16)]
    table = spark.createDataFrame(rows, "id int, size double, age double")
    scored = ms.score(table, done.model, keys="id", tracking_uri=done.tracking_uri).orderBy("id").toPandas()
    np.testing.assert_allclose(scored["price"], np.load(file)[:, 0], rtol=1e-5)
    assert set(scored["model_version"]) == {"shop.ml.prices/1"}
    assert "models:/shop.ml.prices/1" in done._repr_html_()


@pytest.mark.full
def test_a_lost_worker_and_one_that_hangs_cost_an_attempt_each_and_change_nothing(
    spark: "SparkSession", output: Path, unbroken: Launched
) -> None:
    with faults.injected(spark, Fault("kill", rank=1, step=6), Fault("hang", rank=0, step=10, attempt=2)):
        broken = run(spark, output, name="broken", step_limit_seconds=5)
    assert [attempt.first_error.cause for attempt in broken.attempts[:-1]] == ["lost", "hung"]
    assert [attempt.resumed_from for attempt in broken.attempts] == [0, 4, 8]
    assert broken.attempts[-1].epochs == 4
    assert broken.result["epochs"] == [2, 3]
    for ours, theirs in zip(broken.result["weights"], unbroken.result["weights"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert broken.run_id is not None
    curve = mlflow.MlflowClient(broken.tracking_uri).get_metric_history(broken.run_id, "loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]


@pytest.mark.full
def test_an_error_of_the_function_comes_back_as_it_was_and_is_not_tried_again(
    spark: "SparkSession", output: Path
) -> None:
    def train() -> None:
        raise LookupError("no table called rides")

    with pytest.raises(TrainingFailedError, match="LookupError: no table called rides") as failed:
        run_train_fn(train, spark=spark, output=output, name="failing")
    (attempt,) = failed.value.attempts
    assert attempt.first_error.type == "LookupError"
    assert "in train" in attempt.first_error.traceback


@pytest.mark.full
def test_a_strategy_of_its_own_and_ours_both_run(spark: "SparkSession", output: Path) -> None:
    def train() -> Any:
        import tensorflow as tf

        strategy = tf.distribute.get_strategy()
        if not tf.distribute.has_strategy():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return type(strategy).__name__, strategy.num_replicas_in_sync

    own = run_train_fn(train, spark=spark, output=output, name="own", use_custom_strategy=True)
    assert own.result == ("CollectiveAllReduceStrategy", 2)
    ring = run_train_fn(train, spark=spark, output=output, name="ring", strategy="ring")
    assert ring.result == ("RingStrategy", 2)


def with_made_digits(train_fn: Callable[..., Any]) -> Callable[[], Any]:
    """Return the function with random digits in place of MNIST's, and the name of its strategy next to its value."""

    def train() -> Any:
        import numpy as np
        import tensorflow as tf

        random = np.random.default_rng(1)
        digits = random.integers(0, 256, (640, 28, 28), np.uint8), random.integers(0, 10, 640, np.uint8)
        tf.keras.datasets.mnist.load_data = lambda path: (digits, digits)
        strategy = tf.distribute.get_strategy()
        return train_fn(), type(strategy).__name__, strategy.num_replicas_in_sync

    return train


def test_the_distributors_own_example_runs_unchanged_on_the_slots_that_there_are(
    spark: "SparkSession", output: Path, peers: Path
) -> None:
    """T3, H9: in the scope of TensorFlow's strategy, which the runner opens for it."""

    def run(train_fn: Callable[..., Any], workers: int, **settings: Any) -> Launched:
        launched.append(run_train_fn(with_made_digits(train_fn), workers, **settings, spark=spark, output=output))
        return launched[0]

    launched: list[Launched] = []
    distributor.program(peers / "spark_tensorflow_distributor/example.py", slots=2, run=run)
    (done,) = launched
    assert done.result == (None, "CollectiveAllReduceStrategy", 2)
    assert [attempt.epochs for attempt in done.attempts] == [3]


@pytest.mark.parametrize(
    "name",
    ["test_cpu_training_with_gpus", "test_zero_num_slots", pytest.param("test_run_on_ssl", marks=pytest.mark.full)],
)
def test_the_distributors_own_tests_pass(spark: "SparkSession", output: Path, peers: Path, name: str) -> None:
    """T3: they exchange texts through ``BarrierTaskContext``, as in the tasks of the plain runner."""
    file = peers / "spark_tensorflow_distributor/test_mirrored_strategy_runner.py"
    tests = distributor.program(file, slots=2, spark=spark, output=output)
    if name != "test_run_on_ssl":
        tests[name](2, 4)
        return
    settings = spark.sparkContext._conf
    try:
        settings.set("spark.ssl.enabled", "true")
        tests["test_run_on_ssl_cluster"](2, 4, None)
        settings.set("tensorflow.spark.distributor.ignoreSsl", "true")
        tests["test_run_on_ssl_cluster_override"](2, 4, None)
    finally:
        settings.set("spark.ssl.enabled", "false")


def test_in_local_mode_a_function_runs_on_the_drivers_machine_without_a_job(
    spark: "SparkSession", output: Path
) -> None:
    def train(factor: int) -> Any:
        import os

        import tensorflow as tf

        strategy = tf.distribute.get_strategy()
        return factor * strategy.num_replicas_in_sync, os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()

    scheduler, before = spark.sparkContext._jsc.sc().dagScheduler(), os.environ.get("CUDA_VISIBLE_DEVICES")
    jobs = scheduler.numTotalJobs()
    done = run_train_fn(train, 1, kwargs={"factor": 3}, spark=spark, output=output, name="local", local_mode=True)
    value, devices, process = done.result
    assert (value, devices) == (3, "")
    assert process != os.getpid()
    assert not Path(f"/proc/{process}").exists()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    assert scheduler.numTotalJobs() == jobs


def test_a_second_signal_ends_a_function_in_local_mode_at_once(spark: "SparkSession", output: Path) -> None:
    """T6: it has no Spark job that could be cancelled, and no `fit` that could stop at a step."""
    begun = output / "begun"

    def train() -> None:
        import os
        import time

        begun.write_text(str(os.getpid()))
        time.sleep(100)

    def interrupt_twice() -> None:
        while not begun.exists():
            time.sleep(0.1)
        # Python takes two of one kind for one where it comes to them late.
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt_twice)
    thread.start()
    with pytest.raises(TrainingStoppedError):
        run_train_fn(train, 1, spark=spark, output=output, name="interrupted", local_mode=True)
    thread.join()
    assert time.time() - begun.stat().st_mtime < PATIENCE * 10
    assert not Path(f"/proc/{begun.read_text()}").exists()


@pytest.mark.full
def test_in_local_mode_a_function_gets_as_many_of_the_drivers_gpus_as_it_asks_for(peers: Path, tmp_path: Path) -> None:
    """T3: the distributor's own test of it; the names of GPUs are made up, which TensorFlow then does not find."""
    file = peers / "spark_tensorflow_distributor/test_mirrored_strategy_runner.py"
    found = subprocess.run(
        [sys.executable, local_mode_gpus.__file__, str(file), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 200,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    first, second, refused = found.stdout.splitlines()[-3:]
    assert (first, second) == ("1 of None", "3 of 10,11,12,13")
    assert refused.startswith("gpus: Spark gave the driver 4 GPUs of the resource gpu, and gpus_per_worker is 5; start")
