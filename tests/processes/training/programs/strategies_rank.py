"""A rank that makes the same steps under TensorFlow's own strategy and under the ring, and writes what ``fit`` returns.

Arguments: rank, the addresses of TensorFlow's servers and of the ring, each separated by commas, and the file.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives.step_values import whole_values
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy

GLOBAL_BATCH_SIZE = 48
STEPS = 10
CASES = ("compiled", "own steps")


class OwnSteps(tf_keras.Sequential):
    """A model whose steps return a summed loss next to its metrics, as those of a ``tfrs.Model`` do."""

    def _loss_of(self, batch: Any) -> Any:
        rows, labels = batch
        predicted = self(rows)
        self.compiled_metrics.update_state(labels, predicted)
        return tf.reduce_sum(tf.square(labels - predicted))

    def train_step(self, batch: Any) -> dict[str, Any]:
        """Make one update."""
        with tf.GradientTape() as tape:
            loss = self._loss_of(batch)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics} | {"loss": loss}

    def test_step(self, batch: Any) -> dict[str, Any]:
        """Return the metrics so far, and the loss of the last batch."""
        loss = self._loss_of(batch)
        return {metric.name: metric.result() for metric in self.metrics} | {"loss": loss}


def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Return a worker's part of every global batch."""
    rows = np.random.default_rng(5).normal(size=(STEPS, GLOBAL_BATCH_SIZE, 4)).astype(np.float32)
    labels = rows.sum(axis=2, keepdims=True)
    size = GLOBAL_BATCH_SIZE // context.num_input_pipelines
    part = slice(context.input_pipeline_id * size, (context.input_pipeline_id + 1) * size)
    return tf.data.Dataset.from_tensor_slices((rows[:, part], labels[:, part])).repeat()


def logs(strategy: tf.distribute.Strategy, case: str) -> dict[str, list[float]]:
    """Return the history of two epochs of ``fit``."""
    tf_keras.utils.set_random_seed(1)
    layers = [tf_keras.layers.Dense(8, activation="relu", input_shape=(4,)), tf_keras.layers.Dense(1)]
    with strategy.scope():
        model = OwnSteps(layers) if case == "own steps" else tf_keras.Sequential(layers)
        loss = None if case == "own steps" else "mse"
        model.compile(tf_keras.optimizers.SGD(0.001), loss=loss, metrics=["mae"])
    steps = {"steps_per_epoch": STEPS, "validation_steps": STEPS}
    data, validation = (strategy.distribute_datasets_from_function(share) for _ in range(2))
    with whole_values():
        history = model.fit(data, validation_data=validation, epochs=2, **steps, verbose=0).history
    return {name: [float(value) for value in values] for name, values in history.items()}


def main(rank: int, servers: list[str], ring: list[str], file: Path) -> None:
    """Train under both strategies. TensorFlow's comes first: its servers start before any other operation."""
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": servers}, "task": {"type": "worker", "index": rank}})
    mirrored = tf.distribute.MultiWorkerMirroredStrategy()
    found = {"multi_worker_mirrored": {case: logs(mirrored, case) for case in CASES}}
    ours = RingStrategy(Ring.connect(rank, ring, "secret", timeout_seconds=240))
    found["ring"] = {case: logs(ours, case) for case in CASES}
    file.write_text(json.dumps(found))
    ours.ring.all_reduce(np.zeros(1, np.float32))  # TensorFlow ends the ranks whose chief has ended.
    sys.stdout.flush()
    os._exit(0)  # TensorFlow's threads take their time


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","), Path(sys.argv[4]))
