"""T3, T6, H9: Keras 3 models train on two workers, go on after a kill with the same bits, and score in every way."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest

import mirrorspark as ms
from mirrorspark.testing import faults
from mirrorspark.testing.faults import Fault
from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.entry_points.launch import Launched, run_train_fn
from tests.cluster.test_fit_table import rides
from tests.processes.serving.served import ask, serving

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.timeout(600)


def focal_model() -> Callable[..., Any]:
    """Return a function that builds a compiled model; as a closure it travels by value."""

    def off(label: Any, score: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(label - score), axis=-1)

    def build(features: Any) -> Any:
        inputs = ms.feature_inputs(features, keras)
        hidden = keras.layers.Dense(8, activation="relu")(ms.feature_vector(features, inputs, 4))
        hidden = keras.layers.BatchNormalization()(keras.layers.Dropout(0.1)(hidden))
        model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))
        model.compile(keras.optimizers.Adam(0.03), loss=keras.losses.BinaryFocalCrossentropy(), metrics=[off])
        return model

    return build


def own_step() -> Callable[..., Any]:
    """Return a class with its own step, and no weights before its first call."""

    class OwnStep(keras.Model):
        def __init__(self, features: Any) -> None:
            super().__init__()
            self.places = keras.layers.Discretization([-0.5, 0.5], output_mode="one_hot")
            self.towns = keras.layers.Embedding(8, 2)
            self.head = keras.layers.Dense(1)
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.correct = keras.metrics.BinaryAccuracy(name="correct", threshold=0.0)

        def call(self, inputs: Any, training: Any = None) -> Any:
            places = self.places(inputs["kilometres"][:, None])
            return self.head(keras.ops.concatenate([self.towns(inputs["town"]), places], axis=1))

        def _loss_of(self, data: Any, training: bool) -> Any:
            x, y, weight = data
            logits = self(x, training=training)
            loss = keras.ops.binary_crossentropy(y, logits, from_logits=True)[:, 0]
            loss = keras.ops.sum(loss * weight) / keras.ops.sum(weight)
            self.loss_tracker.update_state(loss)
            self.correct.update_state(y, logits, weight)
            return loss

        def train_step(self, data: Any) -> Any:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self._loss_of(data, True)
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, data: Any) -> Any:
            self._loss_of(data, False)
            return {metric.name: metric.result() for metric in self.metrics}

        @property
        def metrics(self) -> list[Any]:
            return [self.loss_tracker, self.correct]

    return OwnStep


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keras3")


def fit(spark: "SparkSession", output: Path, name: str, **knobs: Any) -> ms.FitResult:
    settings = {"workers": 2, "epochs": 3, "global_batch_size": 128, "baseline": "none", "checkpoint_every_steps": 3}
    settings |= {"model": focal_model(), "monitor": "val_off", "mode": "min"}
    return ms.fit(rides(), label="late", name=name, output=str(output), spark=spark, **settings | knobs)


@pytest.fixture(scope="module")
def broken(spark: "SparkSession", output: Path) -> ms.FitResult:
    """Return the result of a training with a kill within its second epoch."""

    class Tells(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            (folder / f"{os.getpid()}-{epoch}").write_text(",".join(sorted(logs)))

    folder = output / "told"
    folder.mkdir()
    with faults.injected(spark, Fault("kill", rank=1, step=11)):
        return fit(spark, output, "broken", callbacks=[Tells()])


def test_a_lost_worker_costs_an_attempt_and_callbacks_see_all_metrics(broken: ms.FitResult, output: Path) -> None:
    first, second = [attempt.resumed_from for attempt in broken.trained.attempts]
    assert first == 0
    assert second in (8, 9)  # the end of an epoch, or a step within the next if its checkpoint was published by then
    assert broken.metrics["test"]["auc"] > 0.8
    files = {path.name: path.read_text() for path in (output / "told").iterdir()}
    assert {name.split("-")[1] for name in files} == {"0", "1", "2"}
    assert all({"loss", "off", "val_loss", "val_off"} <= set(logs.split(",")) for logs in files.values())


def test_it_scores_alike_in_every_way(broken: ms.FitResult, spark: "SparkSession", output: Path) -> None:
    rows = rides().head(6).assign(row_number=range(6))
    expected = np.array([row["score"] for row in ms.Predictor(broken.model).predict_rows(rows)])
    assert ((expected > 0) & (expected < 1)).all()
    scored = ms.score(spark.createDataFrame(rows), broken.model, keys="row_number").orderBy("row_number").toPandas()
    np.testing.assert_allclose(scored["score"], expected, atol=1e-6)
    rows.to_parquet(output / "rows.parquet")
    ms.score_files(spark, output / "rows.parquet", broken.model, output / "scored", keys="row_number")
    from_files = pd.read_parquet(output / "scored").sort_values("row_number")["score"]
    np.testing.assert_allclose(from_files, expected, atol=1e-6)
    by_mlflow = mlflow.pyfunc.load_model(str(broken.model.path.parents[1])).predict(rows[["town", "kilometres"]])
    np.testing.assert_allclose(by_mlflow["score"], expected, atol=1e-6)


@pytest.mark.full
def test_a_server_answers_with_the_same_scores(broken: ms.FitResult) -> None:
    rows = json.loads(rides().head(6).drop(columns="late").to_json(orient="records"))
    predicted = ms.Predictor(broken.model).predict_rows(rows)
    with serving("--model", str(broken.model.path)) as (port, _):
        _, answer, _ = ask(port, "POST", "/invocations", {"instances": rows}, **{"Content-Type": "application/json"})
    found = [row["score"] for row in answer["predictions"]]
    assert found == pytest.approx([row["score"] for row in predicted], abs=1e-6)


@pytest.mark.full
def test_the_kill_has_changed_no_bit(broken: ms.FitResult, spark: "SparkSession", output: Path) -> None:
    unbroken = fit(spark, output, "unbroken")
    assert len(unbroken.trained.attempts) == 1
    scores = [result.score(rides())["score"] for result in (broken, unbroken)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.full
@pytest.mark.parametrize(
    ("build", "precision"),
    [(own_step(), "float32"), (None, "float32"), (None, "mixed_float16")],
    ids=["own step", "uncompiled", "mixed precision"],
)
def test_other_kinds_of_models_learn(spark: "SparkSession", output: Path, build: Any, precision: str) -> None:
    def plain(features: Any) -> Any:
        inputs = ms.feature_inputs(features, keras)
        return keras.Model(inputs, keras.layers.Dense(1)(ms.feature_vector(features, inputs, 4)))

    class Compiled(build or object):  # type: ignore[misc]
        def __init__(self, features: Any) -> None:
            super().__init__(features)
            self.compile(keras.optimizers.Adam(0.03), loss=keras.losses.BinaryCrossentropy(from_logits=True))

    of_kind = {"model": Compiled if build else plain, "monitor": "val_loss", "learning_rate": 0.03}
    result = fit(spark, output, "own-step" if build else f"plain-{precision}", precision=precision, **of_kind)
    assert result.metrics["test"]["auc"] > 0.8


@pytest.mark.full
def test_tensorflows_strategy_for_tables_needs_tf_keras(spark: "SparkSession", output: Path) -> None:
    with pytest.raises(TrainingFailedError, match="the strategy multi_worker_mirrored needs a model of tf-keras, and"):
        fit(spark, output, "refused", workers=1, strategy="multi_worker_mirrored")


def with_our_callbacks() -> Callable[..., Any]:
    """Return a function that fits by itself, with callbacks of both kinds, and returns its weights or its model."""

    def train(epochs: int, of_model: bool = False) -> Any:
        import os

        import keras
        import numpy as np

        import mirrorspark as ms

        keras.utils.set_random_seed(1)
        numbers = np.random.default_rng(2).normal(size=(64, 2)).astype(np.float32)
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1, name="price")]
        )
        model.compile(keras.optimizers.Adam(0.1, clipnorm=1.0), loss="mse")
        folder = os.environ["MIRRORSPARK_CHECKPOINTS"]
        ours = [ms.BackupAndRestore(folder), ms.StopOnNaN(), ms.Throughput(16), ms.AgreedReduceLROnPlateau("loss")]
        ours += [ms.ChiefCheckpoint(folder, monitor=None), keras.callbacks.TerminateOnNaN()]
        history = model.fit(numbers, numbers.sum(1), batch_size=16, epochs=epochs, verbose=0, callbacks=ours)
        return model if of_model else {"epochs": history.epoch, "weights": model.get_weights()}

    return train


def run(spark: "SparkSession", output: Path, **knobs: Any) -> Launched:
    return run_train_fn(with_our_callbacks(), spark=spark, output=output, **knobs)


@pytest.mark.full
def test_a_function_of_ones_own_resumes_bit_equal_and_its_model_is_registered(
    spark: "SparkSession", output: Path
) -> None:
    unbroken = run(spark, output, name="fn-unbroken", kwargs={"epochs": 4})
    with faults.injected(spark, Fault("kill", rank=1, step=6)):
        killed = run(spark, output, name="fn-broken", kwargs={"epochs": 4})
    assert [attempt.resumed_from for attempt in killed.attempts] == [0, 4]
    assert (unbroken.result["epochs"], killed.result["epochs"]) == ([0, 1, 2, 3], [1, 2, 3])
    for ours, theirs in zip(killed.result["weights"], unbroken.result["weights"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    curve = mlflow.MlflowClient(killed.tracking_uri).get_metric_history(killed.run_id, "loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]

    of_model = {"kwargs": {"epochs": 4, "of_model": True}, "model_columns": ["size", "age"]}
    done = run(spark, output, name="fn-model", **of_model)
    table = pd.DataFrame({"id": [1, 2], "size": [0.5, 2.0], "age": [1.0, -1.0]})
    scored = ms.Predictor(done.model, tracking_uri=done.tracking_uri).predict_rows(table)
    mean, variance, kernel, bias = [unbroken.result["weights"][place] for place in (2, 3, 4, 5)]
    gamma, beta = unbroken.result["weights"][:2]
    rows = (table[["size", "age"]].to_numpy() - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    given = [next(value for name, value in row.items() if name != "model_version") for row in scored]
    np.testing.assert_allclose(given, (rows @ kernel + bias)[:, 0], rtol=1e-4)


@pytest.mark.full
def test_tensorflows_strategy_says_that_it_needs_tf_keras(spark: "SparkSession", output: Path) -> None:
    with pytest.raises(TrainingFailedError, match=r"fits a model of Keras 3 under .*: give strategy='ring', or build"):
        run(spark, output, name="mwms", kwargs={"epochs": 1}, strategy="multi_worker_mirrored")


# Examples and tests of Keras itself, except for two: demo_custom_tf_workflow needs a keras.backend.Variable, which this
# Keras lacks, and numerical_test needs two Keras to agree after steps of Adam on gradients that are all rounding.
OWN_STRATEGY = ("tf_distribute_training_test",)
OTHERS = (
    *("basic_full_flow", "demo_custom_layer_backend_agnostic", "demo_functional", "demo_mnist_convnet"),
    *("demo_subclass", "tf_custom_fit_test"),
)
# Others fit once.
FITS = {"tf_distribute_training_test": 2}


def peer() -> Callable[..., Any]:
    """Return a function that runs files of Keras', on few rows and without a download, and returns their fits."""

    def run_files(folder: str, names: tuple[str, ...]) -> dict[str, list[dict[str, float]]]:
        import runpy
        import unittest

        import keras
        import numpy as np
        from sklearn.datasets import load_digits

        fits: list[dict[str, float]] = []
        plain = keras.Model.fit

        def fit(model: Any, *data: Any, epochs: int = 1, **knobs: Any) -> Any:
            few = [part[:512] if isinstance(part, np.ndarray) else part for part in data]
            history = plain(model, *few, epochs=min(epochs, 2), **(knobs | {"verbose": 0}))
            fits.append({name: float(np.ravel(values)[-1]) for name, values in history.history.items()})
            return history

        def images() -> Any:
            digits = load_digits()
            rows = np.kron(digits.images, np.ones((1, 3, 3)))[:512] * 16
            rows = np.pad(rows, ((0, 0), (2, 2), (2, 2))).clip(0, 255).astype(np.uint8), digits.target[:512]
            return rows, rows

        keras.Model.fit, keras.datasets.mnist.load_data = fit, images
        found = {}
        for name in names:
            fits.clear()
            module = runpy.run_path(f"{folder}/{name}.py", run_name="__main__")
            for kind in module.values():
                if isinstance(kind, type) and issubclass(kind, unittest.TestCase) and kind.__module__ == "__main__":
                    result = unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(unittest.TestResult())
                    assert result.testsRun, name
                    assert not result.errors + result.failures, result.errors + result.failures
            found[name] = list(fits)
        return found

    return run_files


@pytest.mark.full
@pytest.mark.parametrize(("strategy", "names"), [("ring", OTHERS), ("own", OWN_STRATEGY)])
def test_keras_own_examples_and_tests_run_on_two_workers(
    spark: "SparkSession", output: Path, peers: Path, strategy: Any, names: tuple[str, ...]
) -> None:
    folder = peers / "keras"
    knobs = {"name": f"peers-{strategy}", "strategy": strategy, "start_limit_seconds": 300}
    done = run_train_fn(peer(), kwargs={"folder": str(folder), "names": names}, spark=spark, output=output, **knobs)
    fitted = {name: len(fits) for name, fits in done.result.items()}
    assert fitted == dict.fromkeys(names, 1) | {name: number for name, number in FITS.items() if name in names}
    assert all(np.isfinite(list(one.values())).all() for fits in done.result.values() for one in fits)
