"""One rank of small trainings of Keras 3 models under `RingStrategy`; their weights and logs are in a file.

Arguments: rank, the ranks' addresses, a folder, and the cases. It writes ``RANK.npz`` there: ``CASE/NAME``.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}

import keras
import numpy as np
import tensorflow as tf

from mirrorspark.callbacks.backup import BackupAndRestore, resume_point
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.nan_guard import StopOnNaN
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models.keras3.loop import fit
from mirrorspark.models.keras3.steps import count_real_rows, share_steps
from mirrorspark.training.programs.keras_fit.local_updates import SettleLocalUpdates
from mirrorspark.training.protocol.ring.predictions import whole_predictions
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy

ROWS, BATCH, EPOCHS = 49, 16, 3
STEPS = -(-ROWS // BATCH)
# Of Keras' own fit: two workers share no batch evenly, and the last one has one row.
KERAS_ROWS, KERAS_BATCH = 46, 15
# An execution need not divide an epoch.
STEPS_PER_EXECUTION = 3

Weights = list[np.ndarray]

SGD, BINARY = keras.optimizers.SGD, keras.losses.BinaryCrossentropy


class OwnStep(keras.Model):
    """Applies its own gradient of its own loss, has its own metric, and logs a value that does not belong to one."""

    def __init__(self, *graph: Any) -> None:
        super().__init__(*graph)
        self.error = keras.metrics.MeanAbsoluteError(name="error")

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data[:2]
        with tf.GradientTape() as tape:
            predicted = self(x, training=True)
            loss = keras.ops.mean((predicted - y) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.error.update_state(y, predicted)
        return {"of_step": loss, "metrics": {"error": self.error.result()}}


class Weighted(keras.Model):
    """Divides by the weights of a worker's rows, whose sum may be 0."""

    def __init__(self, *graph: Any) -> None:
        super().__init__(*graph)
        self.tracker = keras.metrics.Mean(name="loss")

    def _loss_of(self, data: Any) -> Any:
        x, y, *weights = data
        weight = weights[0] if weights else keras.ops.ones_like(y[:, 0])
        losses = keras.ops.sum((self(x, training=True) - y) ** 2, axis=1)
        loss = keras.ops.sum(losses * weight) / keras.ops.sum(weight)
        self.tracker.update_state(loss, keras.ops.sum(weight))
        return loss

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self._loss_of(data)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": self.tracker.result()}

    def test_step(self, data: Any) -> dict[str, Any]:
        self._loss_of(data)
        return {"loss": self.tracker.result()}


class TwoOptimizers(keras.Model):
    """Trains its last layer by an optimizer of its own, as the two parts of a GAN are trained; with a condition."""

    def __init__(self, *graph: Any) -> None:
        super().__init__(*graph)
        self.of_last = SGD(0.1)

    @tf.function
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data[:2]
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x, training=True) - y) ** 2)
            if loss > 1e9:
                loss = 0.0 * loss
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients[:2], self.trainable_variables[:2])
        self.of_last.apply(gradients[2:], self.trainable_variables[2:])
        return {"of_step": loss}


class OwnLoss(keras.Model):
    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any) -> Any:
        return keras.ops.mean((y_pred - y) ** 2)


class OwnLosses(keras.Model):
    """Adds up a sum and two kinds of means."""

    def __init__(self, *graph: Any) -> None:
        super().__init__(*graph)
        self.sum, self.mean = BINARY(reduction="sum"), keras.losses.MeanSquaredError()
        self.by_weights = keras.losses.MeanAbsoluteError(reduction="mean_with_sample_weight")

    def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True) -> Any:
        given = y, y_pred, sample_weight
        return 0.05 * self.sum(*given) + self.mean(*given) + self.by_weights(*given)


class OwnMetric(keras.metrics.Metric):
    """The sum of the labels."""

    def __init__(self, name: str = "labels") -> None:
        super().__init__(name=name)
        self.total = self.add_variable((), "zeros", name="total")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(keras.ops.sum(keras.ops.cast(y_true, "float32")))

    def result(self) -> Any:
        return self.total


# The class, the optimizer, and the loss of each case.
CASES: dict[str, tuple[type, Callable[[], Any], Any]] = {
    "plain": (keras.Model, lambda: SGD(0.5, momentum=0.9), "binary_crossentropy"),
    "clipped": (keras.Model, lambda: SGD(0.5, global_clipnorm=0.05), "binary_crossentropy"),
    "scaled": (keras.Model, lambda: keras.optimizers.LossScaleOptimizer(SGD(0.5)), "binary_crossentropy"),
    "averaged": (keras.Model, lambda: SGD(0.5, use_ema=True, ema_momentum=0.5), "binary_crossentropy"),
    "accumulated": (keras.Model, lambda: SGD(0.5, gradient_accumulation_steps=2), "binary_crossentropy"),
    "summed": (keras.Model, lambda: SGD(0.05), BINARY(reduction="sum")),
    "by weights": (keras.Model, lambda: SGD(0.5), BINARY(reduction="mean_with_sample_weight")),
    "of rows": (keras.Model, lambda: SGD(0.05), BINARY(reduction=None)),
    "eagerly": (keras.Model, lambda: SGD(0.5), "binary_crossentropy"),
    "two outputs": (keras.Model, lambda: SGD(0.5), [BINARY(), keras.losses.MeanSquaredError()]),
    "own losses": (OwnLosses, lambda: SGD(0.1), None),
    "own loss": (OwnLoss, lambda: SGD(0.5), None),
    "own step": (OwnStep, lambda: SGD(0.5), None),
    "weighted": (Weighted, lambda: SGD(0.5), None),
    "two optimizers": (TwoOptimizers, lambda: SGD(0.5), None),
}


def rows() -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    return numbers, (numbers[:, :1] > 0).astype(np.float32)


def compiled(case: str) -> Any:
    """Return the model of a case with weights that are the same everywhere, and a regularizer, which has no rows."""
    kind, optimizer, loss = CASES[case]
    inputs = keras.Input((4,))
    first, last = (keras.initializers.GlorotUniform(seed) for seed in (3, 4))
    penalty = None if case == "of rows" else "l2"  # Keras adds up losses of one shape
    hidden = keras.layers.Dense(8, "relu", kernel_initializer=first, kernel_regularizer=penalty)(inputs)
    outputs = keras.layers.Dense(1, "sigmoid", kernel_initializer=last, name="last")(hidden)
    model = kind(inputs, [outputs, outputs] if case == "two outputs" else outputs)
    metrics = ["accuracy", OwnMetric()] if isinstance(loss, str | keras.losses.Loss) else None
    model.compile(optimizer(), loss, metrics=metrics, run_eagerly=case == "eagerly")
    return model


def data(rows_used: int, batch: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(rows()).take(rows_used).batch(batch).with_options(options)


def by_keras(case: str) -> tuple[Any, dict[str, list[float]]]:
    """Train by the ``fit`` of Keras itself, as a function of a user's does."""
    model = compiled(case)
    if hasattr(model.distribute_strategy, "as_one_replica"):
        share_steps(model)
        share_steps(model)  # as before another fit, which it leaves as it is
    # Keras weights the losses of rows that it shows by their number twice, so that equal shares alone are comparable.
    given = data(3 * BATCH, BATCH) if case == "of rows" else data(KERAS_ROWS, KERAS_BATCH)
    if case == "two outputs":
        given = given.map(lambda x, y: (x, (y, y)))
    return model, model.fit(given, epochs=EPOCHS, verbose=0).history


def padded(ring: Ring, step: int = 0) -> tf.data.Dataset:
    """Return a rank's share of every batch of an endless training, the last batch of an epoch filled up."""
    numbers, labels = rows()
    weights = (np.arange(STEPS * BATCH) < ROWS).astype(np.float32)
    scales = np.repeat(weights.reshape(STEPS, BATCH).mean(1), ring.workers) ** -1
    share = BATCH // ring.workers
    parts = (numbers * weights[:, None], labels * weights[:, None], weights)
    shares = [part.reshape(STEPS * ring.workers, share, *part.shape[1:]) for part in parts]
    mine = slice(ring.rank, None, ring.workers)
    batches = PaddedBatch(*(part[mine] for part in shares), scales[mine].astype(np.float32))
    return tf.data.Dataset.from_tensor_slices(batches).repeat().skip(step)


def by_us(case: str, ring: Ring, steps_per_execution: int = 1) -> tuple[Any, dict[str, list[float]]]:
    """Train on padded batches by our loop, as ``ms.fit`` does."""
    model = compiled(case)
    metrics = model._compile_metrics
    count_real_rows(model, metrics and metrics._user_metrics)
    model.steps_per_execution = steps_per_execution
    share_steps(model)
    of_fit = {"epochs": EPOCHS, "steps_per_epoch": STEPS, "validation_steps": STEPS, "callbacks": [StopOnNaN()]}
    return model, fit(model, padded(ring), validation_data=padded(ring), **of_fit).history


class Lost(Exception):  # noqa: N818 - no error of the program
    """The training is lost at a step."""


class LoseAt(keras.callbacks.Callback):
    """Ends a training after a step, once its checkpoints are published."""

    def __init__(self, step: int, checkpoint: ChiefCheckpoint) -> None:
        super().__init__()
        self._step, self._checkpoint = step, checkpoint

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) == self._step:
            self._checkpoint.wait_until_published()
            raise Lost


def random_model() -> Any:
    """Return a model with random generators and moving averages, which every worker has of its own rows."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(8, "relu")(inputs))
    hidden = keras.layers.BatchNormalization()(keras.layers.GaussianNoise(0.1)(hidden))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(hidden))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    count_real_rows(model, model._compile_metrics._user_metrics)
    share_steps(model)
    return model


def resumed(folder: Path, ring: Ring, lost_at: int | None, in_our_loop: bool) -> tuple[Any, dict[str, list[float]]]:
    """Train with a checkpoint every second step; if ``lost_at`` a step, once more from the last one on."""

    def attempt(step: int | None) -> tuple[Any, dict[str, list[float]]]:
        model, start = random_model(), resume_point(folder)
        checkpoint = ChiefCheckpoint(folder, monitor=None, every_steps=2, keep_last=9)
        callbacks = [BackupAndRestore(folder), SettleLocalUpdates(), checkpoint]
        callbacks += [] if step is None else [LoseAt(step, checkpoint)]
        ours, validation = padded(ring, start.step_in_epoch), padded(ring)
        if in_our_loop:
            of_fit = {"epochs": EPOCHS, "steps_per_epoch": STEPS, "validation_steps": STEPS, "callbacks": callbacks}
            return model, fit(model, ours, validation_data=validation, **of_fit).history
        context = model.distribute_strategy.distribute_datasets_from_function
        of_fit = {"epochs": EPOCHS, "steps_per_epoch": STEPS, "callbacks": callbacks, "verbose": 0}
        shares = context(lambda _: ours.map(lambda batch: (batch.features, batch.label, batch.weight)))
        return model, model.fit(shares, **of_fit).history

    if lost_at is not None:
        try:
            attempt(lost_at)
        except Lost:
            ring.barrier()
    return attempt(None)


def main(rank: int, addresses: list[str], folder: Path, cases: list[str]) -> None:
    """Train the cases: ``LOOP/CASE``, or ``LOOP/resumed``, which is two trainings."""
    found: dict[str, Any] = {}

    def add(case: str, trained: tuple[Any, dict[str, list[float]]]) -> None:
        model, history = trained
        found.update({f"{case}/weights/{place}": value for place, value in enumerate(model.get_weights())})
        found.update({f"{case}/logs/{name}": values for name, values in history.items()})

    ring = Ring.connect(rank, addresses, "secret")
    strategy = RingStrategy(ring)
    with strategy.ring_errors(), whole_predictions(strategy), strategy.scope():
        for name in cases:
            loop, case = name.split("/")
            if case == "resumed":
                for lost_at in (None, 7):
                    checkpoints = folder / f"{loop}-{lost_at}"
                    add(f"{name}/{lost_at}", resumed(checkpoints, ring, lost_at, loop == "ours"))
            else:
                add(name, by_keras(case) if loop == "keras" else by_us(case, ring, STEPS_PER_EXECUTION))
        found["predictions"] = compiled("plain").predict(rows()[0][:5], verbose=0)
    np.savez(folder / f"{rank}.npz", **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]), sys.argv[4].split(","))
