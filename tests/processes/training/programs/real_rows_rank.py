"""A rank of several rings, that measures the losses and the last gradients of one table.

Arguments: the rank, a folder with the dataset, the cases, and the addresses of each ring, both separated by commas, the
largest ring first: no rank then waits for one that is busy in another ring. It writes ``RANK.npz`` into the folder:
``WORKERS/BATCH/CASE/NAME``.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.reading.dataset import Dataset, ReadPlan, load_batches
from mirrorspark.data_pipelines.reading.padding import PaddedBatch
from mirrorspark.models.own_model import keep_compilation
from mirrorspark.training.programs.keras_fit.fit import split_among_replicas
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy
from tests.unit.models.fitting import test_real_rows as alone

BATCHES = (32, 48, 128, 512)
# The size of the batches of an epoch of training, whose rate is 0.
TRAINED = 48
OWN = "own model"
# Divides by the weights of a worker's rows: that is the mean over all where one worker has all of them.
OWN_STEP, OF_ONE_ROW = "own step", (32, 128)
CASES = ("binary", "multi_class", "multi_label", "squared", "binary ensemble", OWN, OWN_STEP)
# The places of the inputs and of the labels of each task among the table's numbers.
INPUTS = slice(0, 3)
LABELS = {"binary": 3, "multi_class": 4, "multi_label": slice(5, 9), "regression": 9}


class OwnStep(tf_keras.Model):
    """Computes its own loss, which is 0/0 of padding alone."""

    def __init__(self, *graph: Any) -> None:
        super().__init__(*graph)
        self.tracker = tf_keras.metrics.Mean(name="loss")

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self._loss_of(data)
        self.optimizer.minimize(loss, self.trainable_variables, tape)
        return {"loss": self.tracker.result()}

    def test_step(self, data: Any) -> dict[str, Any]:
        self._loss_of(data)
        return {"loss": self.tracker.result()}

    def _loss_of(self, data: Any) -> Any:
        x, y, weight = data
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(y, tf.float32)[:, None], self(x))[:, 0]
        loss = tf.reduce_sum(losses * weight) / tf.reduce_sum(weight)
        self.tracker.update_state(loss, tf.reduce_sum(weight))
        return loss


def task_of(case: str) -> str:
    return "binary" if case in (OWN, OWN_STEP) else alone.CASES[case][0]


def compiled(case: str, rate: float) -> tf_keras.Model:
    """Return the model of a case; its updates with a rate of 1 are its gradients."""
    if case not in (OWN, OWN_STEP):
        return alone.compiled(case, rate)
    model = alone.model_of(1)
    loss = tf_keras.losses.BinaryCrossentropy(from_logits=True) if case == OWN else None
    model = model if loss else OwnStep(model.inputs, model.outputs)
    model.compile(tf_keras.optimizers.SGD(rate), loss=loss)
    keep_compilation(model, 1)
    return model


def read(dataset: Dataset, plan: ReadPlan) -> list[PaddedBatch]:
    """Return the batches of an epoch, with all numbers of the table as features."""
    batches = load_batches(dataset, plan, scaled_to="batch", values_as="numbers")
    return [batch._replace(features=batch.features["numbers"]) for batch in batches]


def of_case(batch: PaddedBatch, case: str) -> PaddedBatch:
    """Return the batch with the inputs and labels of a case."""
    task, numbers = task_of(case), batch.features
    label = numbers[:, LABELS[task]]
    return batch._replace(
        features=numbers[:, INPUTS], label=tf.cast(label, tf.int64) if task == "multi_class" else label
    )


def measured(strategy: RingStrategy, epochs: Mapping[int, Sequence[PaddedBatch]], case: str) -> dict[str, Any]:
    """Return by the size of the batches the losses of given weights, and the gradient of the last batch."""
    with strategy.scope():
        still, moved = compiled(case, rate=0.0), compiled(case, rate=1.0)
    before, found = moved.get_weights(), {}
    for size, epoch in epochs.items():
        given = [of_case(batch, case) for batch in epoch]
        steps = {"val_loss": still.test_step} | ({"loss": still.train_step} if size == TRAINED else {})
        for name, step in steps.items():
            still.reset_metrics()
            for batch in given:
                strategy.run(step, args=(batch,))
            found[f"{size}/{case}/{name}"] = float(still.get_metrics_result()["loss"])
        moved.set_weights(before)
        strategy.run(moved.train_step, args=(given[-1],))
        changes = [(old - new).ravel() for old, new in zip(before, moved.get_weights(), strict=True)]
        found[f"{size}/{case}/gradient"] = np.concatenate(changes)
    return found


def of_two_devices(dataset: Dataset, case: str) -> dict[str, Any]:
    """Return the loss of an epoch and of a validation on two devices of a process, as two GPUs would have them."""
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    given = [of_case(batch, case) for batch in read(dataset, ReadPlan("train", TRAINED, seed=1))]
    rows = tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *parts: tf.stack(parts), *given))
    with strategy.scope():
        model = compiled(case, rate=0.0)

    def shares(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return split_among_replicas(rows.repeat(), context.num_replicas_in_sync)

    training, validation = (strategy.distribute_datasets_from_function(shares) for _ in range(2))
    steps = {"steps_per_epoch": len(given), "validation_steps": len(given)}
    history = model.fit(training, validation_data=validation, **steps, verbose=0).history
    return {f"devices/{TRAINED}/{case}/{name}": history[name][0] for name in ("loss", "val_loss")}


def main(rank: int, folder: Path, cases: Sequence[str], rings: list[list[str]]) -> None:
    """Measure in every ring that the rank belongs to; the last rank has two devices after its ring."""
    has_devices = rank == len(rings[0]) - 1
    if has_devices:
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    dataset, results = Dataset.open(folder / "dataset"), {}
    for addresses in rings:
        if rank >= len(addresses):
            continue
        strategy = RingStrategy(Ring.connect(rank, addresses, "secret", timeout_seconds=240))
        plans = {size: ReadPlan("train", size, rank=rank, workers=len(addresses), seed=1) for size in BATCHES}
        epochs = {size: read(dataset, plan) for size, plan in plans.items()}
        for case in cases:
            results |= {f"{len(addresses)}/{name}": value for name, value in measured(strategy, epochs, case).items()}
    if has_devices:
        results |= of_two_devices(dataset, CASES[0])
    np.savez(folder / f"{rank}.npz", **results)
    sys.stdout.flush()
    os._exit(0)  # TensorFlow's threads take their time


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(","), [part.split(",") for part in sys.argv[4:]])
