"""T2, T6, T7: a function written for the plain runner, in one rank: unchanged, watched, stopped, and reported.

Its data is made up, where the runner's own example downloads MNIST; otherwise it is that example.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute.distribute_lib import StrategyBase

from mirrorspark.callbacks.backup import BackupAndRestore
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.callbacks.checkpoints.fencing import StaleAttemptError, fence
from mirrorspark.callbacks.stop_request import TrainingStopped
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.scoring.input.inputs import Column
from mirrorspark.scoring.model.folder.directory import ModelDirectory
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.predictor import Predictor
from mirrorspark.testing.injected import DelayedInput, InjectedFault, InjectedFaults
from mirrorspark.testing.injected import hook_for as faults_for
from mirrorspark.training.executor.training_hook import TrainingHook, hook_for
from mirrorspark.training.programs.user_functions import worker as function_rank
from mirrorspark.training.programs.user_functions.fit_watch import FitWatch, global_batch_size
from mirrorspark.training.programs.user_functions.plan import (
    FunctionPlan,
    UnsupportedKerasError,
    pack_function,
    unpack_value,
)
from mirrorspark.training.protocol.outcomes.activity import Activity
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.conftest import PATIENCE
from tests.unit.scoring.other_models import png

Event = dict[str, Any]


def readme_example() -> Callable[[], Any]:
    def train() -> Any:
        import tensorflow as tf

        BUFFER_SIZE = 10000  # noqa: N806
        BATCH_SIZE = 64  # noqa: N806

        def make_datasets() -> tf.data.Dataset:
            images = tf.random.stateless_uniform((256, 28, 28), seed=(1, 2), maxval=255.0)
            labels = tf.random.stateless_uniform((256,), seed=(3, 4), maxval=10, dtype=tf.int32)
            dataset = tf.data.Dataset.from_tensor_slices(
                (tf.cast(images[..., tf.newaxis] / 255.0, tf.float32), tf.cast(labels, tf.int64))
            )
            return dataset.repeat().shuffle(BUFFER_SIZE).batch(BATCH_SIZE)

        def build_and_compile_cnn_model() -> Any:
            model = tf.keras.Sequential(
                [
                    tf.keras.layers.Conv2D(4, 3, activation="relu", input_shape=(28, 28, 1)),
                    tf.keras.layers.MaxPooling2D(),
                    tf.keras.layers.Flatten(),
                    tf.keras.layers.Dense(10, activation="softmax"),
                ]
            )
            model.compile(
                loss=tf.keras.losses.sparse_categorical_crossentropy,
                optimizer=tf.keras.optimizers.SGD(learning_rate=0.001),
                metrics=["accuracy"],
            )
            return model

        train_datasets = make_datasets()
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        train_datasets = train_datasets.with_options(options)
        multi_worker_model = build_and_compile_cnn_model()
        history = multi_worker_model.fit(x=train_datasets, epochs=3, steps_per_epoch=5)
        return type(tf.distribute.get_strategy()).__name__, history.history

    return train


class Rank:
    """Messages of a rank's process to its training, and the training's results."""

    def __init__(self, train_fn: Callable[..., Any], **kwargs: Any) -> None:
        self.events: list[Event] = []
        self.phases: list[str] = []
        self.answer: Any = None
        self.is_to_stop = False
        self._payload = pack_function(train_fn, kwargs)

    def run(self, **knobs: Any) -> Any:
        plan = FunctionPlan(**{"workers": 1, "checkpoints": "c", "strategy": "own"} | knobs)
        activity = Activity(on_phase=self.phases.append)
        control = SimpleNamespace(
            rank=0,
            events=SimpleNamespace(send=self.events.append),
            stop_request=SimpleNamespace(is_set=lambda: self.is_to_stop),
            activity=activity,
            payload=self._payload,
            hook=hook_for(os.environ, plan, 0, activity),
        )
        function_rank.train(plan, control, self._finish)  # type: ignore[arg-type]
        return unpack_value(self.answer["value"])

    def _finish(self, epochs: int, **more: str) -> None:
        self.answer = json.loads(json.dumps({"epochs": epochs} | more))

    def told(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A rank's environment is its own; here the test's has to come back."""
    before = dict(os.environ)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


def small_model() -> tf_keras.Model:
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))])
    model.compile(optimizer="sgd", loss="mse")
    return model


def rows(count: int = 12) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    return np.ones((count, 2), np.float32), np.ones((count, 1), np.float32)


@pytest.mark.parametrize("strategy", ["ring", "multi_worker_mirrored"])
def test_the_runners_own_example_runs_unchanged_and_tells_how_it_goes(strategy: str) -> None:
    rank = Rank(readme_example())
    scope, history = rank.run(strategy=strategy)
    assert scope == {"ring": "RingStrategy", "multi_worker_mirrored": "CollectiveAllReduceStrategy"}[strategy]
    assert rank.answer["epochs"] == 3
    (begin,) = rank.told("train_begin")
    assert (begin["epochs"], begin["steps"], begin["global_batch_size"]) == (3, 5, 64)
    ends = rank.told("epoch_end")
    assert [(event["epoch"], event["step"]) for event in ends] == [(1, 5), (2, 10), (3, 15)]
    assert [event["logs"]["loss"] for event in ends] == pytest.approx(history["loss"])
    assert all(event["examples_per_second"] > 0 for event in ends)
    assert rank.phases == ["connecting", "building", "first_step", "training", "building"]


@pytest.mark.parametrize("kind", ["BruteForce", "ScaNN", "Streaming"])
@pytest.mark.parametrize("is_within_a_model", [False, True])
def test_an_index_of_tensorflow_recommenders_is_packaged_from_raw_query_to_items(
    tmp_path: Path, kind: str, is_within_a_model: bool
) -> None:
    """#53: the index that it returns, or that is a part of the model that it returns."""
    rank = Rank(index_of_titles(kind, is_within_a_model))
    assert rank.run(strategy="ring", model=str(tmp_path), model_columns=["user"]) is None, rank.answer
    found = Predictor(rank.answer["model"]).predict_rows([{"user": user} for user in ("u2", "u0", "nobody")])
    vectors = tf.random.stateless_normal([64, 4], (1, 2)).numpy()
    expected = (vectors[[2, 0]] @ vectors.T).argsort(axis=1)[:, ::-1][:, :3]
    assert [row["candidates"] for row in found[:2]] == [[f"m{place}" for place in row] for row in expected]
    assert [len(row["scores"]) for row in found] == [3] * 3


def index_of_titles(kind: str, is_within_a_model: bool) -> Callable[[], Any]:
    def train() -> Any:
        import tensorflow as tf
        import tensorflow_recommenders as tfrs

        users, movies = [f"u{number}" for number in range(3)], [f"m{number}" for number in range(64)]
        vectors = tf.random.stateless_normal([64, 4], (1, 2))
        asked = tf.keras.layers.Embedding(4, 4, weights=[tf.concat([tf.zeros([1, 4]), vectors[:3]], axis=0)])
        tower = tf.keras.Sequential([tf.keras.layers.StringLookup(vocabulary=users, mask_token=None), asked])
        every = {"num_leaves": 4, "num_leaves_to_search": 4, "num_reordering_candidates": 64}
        of_kind = every if kind == "ScaNN" else {}
        index = getattr(tfrs.layers.factorized_top_k, kind)(tower, k=3, **of_kind)
        index.index_from_dataset(tf.data.Dataset.from_tensor_slices((movies, vectors)).batch(16))
        index(tf.constant(["u1"]))
        if not is_within_a_model:
            return index
        model = tfrs.Model()
        model.best = index
        return model

    return train


@pytest.mark.process
def test_an_index_of_scann_scores_in_a_process_of_its_own(tmp_path: Path) -> None:
    """#53: whose package its backend imports, by which TensorFlow gets the operations."""
    rank = Rank(index_of_titles("ScaNN", is_within_a_model=False))
    rank.run(strategy="ring", model=str(tmp_path), model_columns=["user"])
    program = f"from mirrorspark import Predictor; print(Predictor({rank.answer['model']!r}).predict({{'user': 'u0'}}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 200,
        check=False,
    )
    vectors = tf.random.stateless_normal([64, 4], (1, 2)).numpy()
    assert f"'candidates': ['m{(vectors @ vectors[0]).argmax()}', " in done.stdout, done.stderr


def test_a_model_of_keras_3_is_watched_under_the_ring_and_refused_under_tensorflows_strategy() -> None:
    """H9: where it is imported makes no difference; under the other strategy Keras 3 fails with a dump of tensors."""

    def train() -> Any:
        import keras

        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        history = model.fit(*rows(), batch_size=4, epochs=2, verbose=0)
        return history.history["loss"], type(model.distribute_strategy).__name__

    rank = Rank(train)
    losses, strategy = rank.run(strategy="ring")
    assert strategy == "RingStrategy"
    ends = rank.told("epoch_end")
    assert [(event["epoch"], event["step"]) for event in ends] == [(1, 3), (2, 6)]
    assert [event["logs"]["loss"] for event in ends] == pytest.approx(losses)
    assert rank.told("train_begin")[0]["parameter_bytes"] == 12
    assert rank.answer["epochs"] == 2
    with pytest.raises(UnsupportedKerasError, match=r"under Collective.*: give strategy='ring', or build the model"):
        Rank(train).run(strategy="multi_worker_mirrored")
    assert "fit" not in vars(__import__("keras").Model)


@pytest.mark.parametrize("module", ["tf_keras.backend", "keras.utils"])
def test_a_cleared_session_keeps_the_scope_of_the_strategy(module: str) -> None:
    """Without it every rank would train a model of its own, and no error would say so."""

    def train() -> str:
        import importlib

        importlib.import_module(module).clear_session()
        return type(tf.distribute.get_strategy()).__name__

    assert Rank(train).run(strategy="ring") == "RingStrategy"


def test_a_model_of_keras_3_that_it_returns_is_packaged(tmp_path: Path) -> None:
    def train() -> Any:
        import keras

        size = {"size": keras.Input((1,), name="size"), "rooms": keras.Input((1,), name="rooms")}
        return keras.Model(size, keras.layers.Dense(1, name="price")(keras.layers.Concatenate()(list(size.values()))))

    rank = Rank(train)
    assert rank.run(strategy="ring", model=str(tmp_path)) is None
    assert set(ModelDirectory.open(Path(rank.answer["model"])).inputs.columns) == {"size", "rooms"}


def test_a_model_of_pictures_that_it_returns_is_packaged_with_their_decoder(tmp_path: Path) -> None:
    """F13: the encoder of an autoencoder, for example."""

    def train() -> Any:
        photo = tf_keras.Input((2, 3, 1), name="photo")
        return tf_keras.Model(photo, tf_keras.layers.Dense(2)(tf_keras.layers.Flatten()(photo)))

    rank = Rank(train)
    columns = [Column("photo", "binary", decode="resized_image")]
    assert rank.run(strategy="ring", model=str(tmp_path), model_columns=columns) is None
    scores = LoadedModel(Path(rank.answer["model"])).score(pa.table({"photo": [png(np.zeros((2, 3), np.uint8))]}))
    assert [values.shape for values in scores.values()] == [(1, 2)]


def test_the_function_learns_where_its_checkpoints_belong_and_which_attempt_it_is() -> None:
    def look(name: str) -> tuple[str, str, str]:
        import os

        return name, os.environ["MIRRORSPARK_CHECKPOINTS"], os.environ["MIRRORSPARK_ATTEMPT"]

    assert Rank(look, name="argument").run(checkpoints="s3://there", attempt=2) == ("argument", "s3://there", "2")


@pytest.mark.parametrize("strategy", ["ring", "own"])
def test_a_model_that_it_returns_is_packaged_in_its_folder(tmp_path: Path, strategy: str) -> None:
    """H9: a model that cannot be scored or saved costs no finished training; each attempt has its own folder."""
    rank = Rank(small_model)
    folder = tmp_path / "model" / "1"
    assert rank.run(strategy=strategy, model=str(folder.parent), model_columns=["size", "age"]) is None
    assert rank.answer["model"] == str(folder / "packaged")
    assert ModelDirectory.open(folder / "packaged").inputs.columns == ("size", "age")
    refused = Rank(small_model)
    with pytest.raises(KeyError):
        refused.run(strategy=strategy, model=str(folder.parent), attempt=2)
    assert "cannot be packaged (the model takes one array of 2 values per row" in refused.answer["refused"]
    assert f"it is in {folder.parent}/2/saved: give model_columns=" in refused.answer["refused"]
    unsaved = Rank(tf_keras.Sequential)  # without an input, so without variables
    with pytest.raises(KeyError):
        unsaved.run(strategy=strategy, model=str(folder.parent), attempt=3)
    assert "the model that it returned cannot be saved" in unsaved.answer["refused"]


def test_it_goes_on_from_its_own_checkpoints_when_it_has_our_callbacks(tmp_path: Path) -> None:
    def train(epochs: int) -> list[int]:
        folder = os.environ["MIRRORSPARK_CHECKPOINTS"]
        callbacks = [BackupAndRestore(folder), ChiefCheckpoint(folder, monitor=None)]
        return list(small_model().fit(*rows(), batch_size=4, epochs=epochs, callbacks=callbacks, verbose=0).epoch)

    assert Rank(train, epochs=2).run(checkpoints=str(tmp_path)) == [0, 1]
    again = Rank(train, epochs=4)
    assert again.run(checkpoints=str(tmp_path), attempt=2) == [2, 3]
    assert [(event["epoch"], event["step"]) for event in again.told("epoch_end")] == [(3, 9), (4, 12)]
    assert again.answer["epochs"] == 4
    over = Rank(train, epochs=4)
    assert over.run(checkpoints=str(tmp_path), attempt=3) == []
    assert over.answer["epochs"] == 4


def test_a_stop_waits_for_a_checkpoint_where_the_function_keeps_ours(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def train() -> None:
        small_model().fit(
            *rows(), batch_size=4, epochs=50, verbose=0, callbacks=[ChiefCheckpoint(folder, monitor=None)]
        )

    rank = Rank(train)
    rank.is_to_stop = True
    with pytest.raises(TrainingStopped) as stopped:
        rank.run()
    assert list(folder.glob(f"step-*{stopped.value.step}"))


def test_a_stop_without_checkpoints_ends_the_function_all_the_same() -> None:
    rank = Rank(lambda: small_model().fit(*rows(), batch_size=4, epochs=50, verbose=0))
    rank.is_to_stop = True
    with pytest.raises(TrainingStopped, match="its own checkpoints, if it has any"):
        rank.run()
    assert len(rank.told("epoch_end")) <= 1


@pytest.mark.parametrize("then", ["returns", "raises"])
def test_a_function_that_catches_what_stops_its_fit_has_not_finished(then: str) -> None:
    """T6: as around the folds of a validation."""

    def train() -> str:
        try:
            small_model().fit(*rows(), batch_size=4, epochs=50, verbose=0)
        except Exception:
            if then == "raises":
                raise KeyError("no history") from None
        return "half a training"

    rank = Rank(train)
    rank.is_to_stop = True
    with pytest.raises(TrainingStopped):
        rank.run()
    assert rank.answer is None


def test_an_attempt_that_was_given_up_publishes_no_more_checkpoints(tmp_path: Path) -> None:
    """T5: a chief that only its driver has lost goes on for a while."""

    def train() -> None:
        folder = os.environ["MIRRORSPARK_CHECKPOINTS"]
        fence(folder, 2)  # the next attempt has begun
        small_model().fit(*rows(), epochs=1, verbose=0, callbacks=[ChiefCheckpoint(folder, monitor=None)])

    mine = fence(tmp_path, 1)
    with pytest.raises(StaleAttemptError, match="attempt 1 may not publish"):
        Rank(train).run(checkpoints=str(tmp_path), attempt=1, fence=mine.id)
    assert commit.committed(tmp_path) == []


def test_a_second_training_has_curves_of_its_own_and_one_that_goes_on_has_not() -> None:
    def train() -> None:
        model = small_model()
        model.fit(*rows(), epochs=2, verbose=0)
        model.fit(*rows(), epochs=3, initial_epoch=2, verbose=0)
        model.fit(*rows(), epochs=1, verbose=0)

    rank = Rank(train)
    rank.run()
    assert [(event["epoch"], *event["logs"]) for event in rank.told("epoch_end")] == [
        (1, "loss"),
        (2, "loss"),
        (3, "loss"),
        (1, "fit_2/loss"),
    ]
    assert rank.answer["epochs"] == 4


def test_metrics_that_the_functions_own_callbacks_add_are_told() -> None:
    def train() -> None:
        adds = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(own=7.0))
        small_model().fit(*rows(), callbacks=adds, verbose=0)

    rank = Rank(train)
    rank.run()
    assert rank.told("epoch_end")[0]["logs"]["own"] == 7.0


def test_rates_are_told_only_where_the_batch_is_known() -> None:
    def train() -> None:
        def batches() -> Iterator[Any]:
            yield from [rows(4)] * 3

        small_model().fit(batches(), steps_per_epoch=3, verbose=0)

    rank = Rank(train)
    rank.run()
    assert [event["examples_per_second"] for event in rank.told("epoch_end") + rank.told("progress")] == [None, None]
    assert rank.told("train_begin")[0]["global_batch_size"] is None


class Twin:
    """The ring of two workers that do the same: the other one is made up."""

    workers, rank, failure = 2, 0, None

    def all_reduce(self, array: Any) -> Any:
        return 2 * array

    def all_gather_many(self, arrays: Any) -> Any:
        return [arrays, arrays]

    def broadcast(self, array: Any) -> Any:
        return array


def strategies() -> list[Any]:
    return [tf.distribute.MirroredStrategy(["/cpu:0"]), RingStrategy(Twin())]  # type: ignore[arg-type]


def injected(faults: str, rank: int = 0, attempt: int = 1) -> InjectedFaults:
    plan = FunctionPlan(workers=2, checkpoints="c", attempt=attempt)
    return faults_for({"MIRRORSPARK_FAULTS": faults}, plan, rank, Activity())


@contextlib.contextmanager
def watched(faults: str = "") -> Iterator[list[Event]]:
    """Watch the block as a rank does; yields its events."""
    events: list[Event] = []
    with FitWatch(events.append, Activity(), lambda: False, injected(faults)).installed():
        yield events


@pytest.mark.parametrize("strategy", strategies(), ids=["mirrored", "ring"])
def test_a_step_has_the_rows_of_all_replicas_whoever_distributes_them(strategy: Any) -> None:
    sizes = []
    with watched() as events, strategy.scope():
        batches = tf.data.Dataset.from_tensor_slices(rows()).repeat()
        model = small_model()
        for data in (
            batches.batch(6),
            strategy.distribute_datasets_from_function(lambda context: batches.batch(6)),
            strategy.experimental_distribute_dataset(batches.batch(6)),
        ):
            model.fit(data, steps_per_epoch=1, verbose=0)
            sizes.append([event for event in events if event["event"] == "train_begin"][-1]["global_batch_size"])
    assert sizes == [6, 6 * strategy.num_replicas_in_sync, 6]


class MovingMean(tf_keras.layers.Layer):
    """Takes the moving average of the means of batches off."""

    def build(self, shape: Any) -> None:
        self.mean = self.add_weight("mean", shape[-1:], trainable=False)

    def call(self, values: Any) -> Any:
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(values, axis=0))
        return values - self.mean


class Words(tf_keras.layers.Layer):
    """Adds the places of words in a vocabulary, whose table is a weight without a type."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = tf_keras.layers.StringLookup()
        self.lookup.set_vocabulary(["0", "1"])

    def call(self, values: Any) -> Any:
        return values + tf.cast(self.lookup(tf.strings.as_string(values, precision=0)), tf.float32)


class OwnMean(tf_keras.Sequential):
    """Computes a mean over its rows, which is 0/0 of none, and has a condition for TensorFlow."""

    def __init__(self, *layers: Any) -> None:
        super().__init__([tf_keras.Input((2,)), *layers, MovingMean(), tf_keras.layers.Dense(1)])
        self.error = tf_keras.metrics.Mean(name="error")

    @tf.function
    def train_step(self, batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(batch[0]) - batch[1]) ** 2)
            scaled = loss / tf.stop_gradient(loss)
            if loss > 1e9:
                scaled = 0.0 * loss
        self.optimizer.minimize(scaled, self.trainable_variables, tape)
        self.error.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics} | {"loss": loss}


def normalized() -> Any:
    """Return a model of Keras 3 with moving averages."""
    import keras

    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])


@pytest.mark.parametrize(
    ("build", "loss", "metric"),
    [(OwnMean, None, "error"), (lambda: OwnMean(Words()), None, "error"), (normalized, "mse", "loss")],
    ids=["own step", "with a vocabulary", "Keras 3"],
)
def test_a_batch_without_rows_adds_nothing_to_a_model(build: Callable[[], Any], loss: Any, metric: str) -> None:
    """#53: the last batch has fewer rows than there are workers; also if it is compiled and trained again."""
    strategy = RingStrategy(Twin())  # type: ignore[arg-type]
    real = tf.data.Dataset.from_tensor_slices(rows()).batch(64)
    nothing = tf.data.Dataset.from_tensors(tuple(part[:0] for part in rows()))
    found = []
    for data in (real, real.concatenate(nothing)):
        tf_keras.utils.set_random_seed(1)
        with watched(), strategy.scope():
            model = build()
            for _ in range(2):
                model.compile("sgd", loss=loss)
                shares = strategy.distribute_datasets_from_function(lambda context, data=data: data)
                history = model.fit(shares, shuffle=False, verbose=0).history
                assert np.isfinite(history["loss"]).all()
        found.append([*model.get_weights(), history[metric]])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_size_of_a_batch() -> None:
    x = np.zeros((10, 2))
    batched = tf.data.Dataset.from_tensor_slices(x).batch(4)
    assert global_batch_size(batched.repeat().prefetch(1), None) == 4
    full = tf.data.Dataset.from_tensor_slices(x).batch(5, drop_remainder=True)
    assert global_batch_size(full.map(lambda x: PaddedBatch(x, x, x[:, 0], tf.ones([]))), None) == 5
    loose = tf.data.Dataset.from_generator(lambda: [x], output_signature=tf.TensorSpec([None, 2]))
    assert global_batch_size(loose, None) is None
    assert global_batch_size({"a": x, "b": tf.constant(x)}, 5) == 5
    assert global_batch_size(x, None) == 32
    assert global_batch_size(iter([x]), None) is None


def test_keras_is_as_it_was_afterwards() -> None:
    original = tf_keras.Model.fit

    def fail() -> None:
        raise LookupError("no such table")

    with pytest.raises(LookupError, match="no such table"):
        Rank(fail).run()
    assert tf_keras.Model.fit is original


def test_a_return_value_that_cannot_travel_does_not_fail_the_training() -> None:
    rank = Rank(lambda: threading.Lock())
    with pytest.raises(KeyError):
        rank.run()
    assert rank.answer["epochs"] == 0
    assert rank.answer["refused"].startswith("the function's result (lock) cannot be pickled")


def test_faults_are_none_unless_asked_for_and_strike_who_they_are_for(caplog: pytest.LogCaptureFixture) -> None:
    assert injected("").callbacks([]) == []
    text = "raise:rank=1,step=2"
    assert injected(text).callbacks([]) == []
    assert injected(text, rank=1, attempt=2).callbacks([]) == []
    assert not caplog.records
    assert len(injected(text, rank=1).callbacks([])) == 1
    assert "MIRRORSPARK_FAULTS asks for faults in this rank: raise:rank=1,step=2" in caplog.text


def test_an_error_is_raised_after_the_step_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRRORSPARK_FAULTS", "raise:rank=0,step=4")
    rank = Rank(lambda: small_model().fit(*rows(), batch_size=4, epochs=5, verbose=0))
    with pytest.raises(InjectedFault, match="after step 4"):
        rank.run()
    assert [event["step"] for event in rank.told("epoch_end")] == [3]


def test_input_that_hangs_goes_on_when_its_time_is_over() -> None:
    batches = tf.data.Dataset.from_tensor_slices(rows(6)).batch(2)
    gated = injected("hang_input:step=1,seconds=0.3").input(batches)
    assert gated.element_spec == batches.element_spec
    assert int(gated.cardinality()) == 3
    begin = tf.timestamp()
    assert [len(x) for x, _ in gated] == [2, 2, 2]
    assert float(tf.timestamp() - begin) >= 0.3
    assert injected("").input(batches) is batches
    padded = batches.map(lambda x, y: PaddedBatch(x, y, y, tf.ones([])))
    assert type(DelayedInput([]).wrap(padded).element_spec) is PaddedBatch


@pytest.mark.parametrize("strategy", strategies(), ids=["mirrored", "ring"])
@pytest.mark.parametrize("way", ["plain", "from function", "distributed"])
def test_input_is_held_up_however_it_is_distributed(strategy: Any, way: str, caplog: pytest.LogCaptureFixture) -> None:
    with watched("hang_input:step=1,seconds=0.6"), strategy.scope():
        model = small_model()

        def batches() -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(rows()).repeat().batch(6)

        def distributed() -> Any:
            if way == "from function":
                return strategy.distribute_datasets_from_function(lambda context: batches())
            return batches() if way == "plain" else strategy.experimental_distribute_dataset(batches())

        model.evaluate(distributed(), steps=2, verbose=0)
        assert "injecting fault" not in caplog.text
        begin = time.monotonic()
        model.fit(distributed(), steps_per_epoch=2, verbose=0)
    assert "injecting fault hang_input:seconds=0.6 after 1 batches" in caplog.text
    assert time.monotonic() - begin >= 0.6


def test_input_that_cannot_be_held_up_is_refused_instead_of_left_alone() -> None:
    with watched("slow_input:"), pytest.raises(TypeError, match=r"asks for slow_input, but .* is ndarray, .*'hang'"):
        small_model().fit(*rows(), verbose=0)
    with watched("raise:"), pytest.raises(InjectedFault):
        small_model().fit(*rows(), verbose=0)


def test_distribution_is_as_it_was_afterwards() -> None:
    before = dict(vars(StrategyBase))
    with watched("slow_input:"):
        pass
    assert vars(StrategyBase) == before


def test_a_fit_within_a_fit_is_the_outer_ones_own_affair() -> None:
    events: list[Event] = []

    def inner(epoch: int, logs: Any) -> None:
        small_model().fit(*rows(), verbose=0)

    watch = FitWatch(events.append, Activity(), lambda: False, TrainingHook())
    with watch.installed(), contextlib.nullcontext():
        small_model().fit(*rows(), verbose=0, callbacks=[tf_keras.callbacks.LambdaCallback(on_epoch_end=inner)])
    assert [event["event"] for event in events].count("train_begin") == 1
    assert watch.epochs == 1


def test_a_disk_that_was_full_for_a_while_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    monkeypatch.setenv("MIRRORSPARK_FAULTS", f"full_disk:step=3,seconds=0.5,path={folder}")

    def train() -> None:
        checkpoint = ChiefCheckpoint(folder, monitor=None)
        small_model().fit(*rows(), batch_size=4, epochs=2, verbose=0, callbacks=[checkpoint])

    Rank(train).run()
    newest = commit.latest_committed(folder)
    assert newest is not None
    assert newest.step == 6


def test_a_frozen_rank_runs_no_other_thread() -> None:
    over, looks = threading.Event(), list[float]()

    def look() -> None:
        looks.append(time.monotonic())
        while not over.wait(0.01):
            looks.append(time.monotonic())
        looks.append(time.monotonic())

    thread = threading.Thread(target=look)
    thread.start()
    while not looks:
        time.sleep(0.001)
    small_model().fit(*rows(), callbacks=injected("freeze:step=0,seconds=0.4").callbacks([]), verbose=0)
    over.set()
    thread.join()
    assert max(later - earlier for earlier, later in itertools.pairwise(looks)) >= 0.4
