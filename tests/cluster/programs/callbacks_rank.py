"""One rank of a training with all callbacks; a test starts two. Its result is a JSON file.

Usage: callbacks_rank.py STORE SCRATCH EPOCHS RESULT
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from callbacks.backup import BackupAndRestore
from callbacks.checkpoint import ChiefCheckpoint
from callbacks.early_stopping import AgreedEarlyStopping
from callbacks.nan_guard import StopOnNaN
from callbacks.progress import EventCallback
from callbacks.roles import current_role
from callbacks.throughput import Throughput

STEPS_PER_EPOCH = 4
BATCH_PER_WORKER = 8
# With patience 2, rank 0 alone would never stop, rank 1 alone after 3 epochs. The means 0, 0, 0.5, -0.5, -1: after 5.
LOCAL_VALUES = ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.0, -1.0, -1.0, -4.0, -6.0, -8.0, -9.0, -9.0])


class LocalValue(tf_keras.callbacks.Callback):
    """Logs a value that differs between the ranks."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["local"] = LOCAL_VALUES[self._rank][epoch]


def build_model() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(1)
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(4, activation="relu", input_shape=(3,)),
            # Its moving averages are read by all ranks together when they are saved.
            tf_keras.layers.BatchNormalization(),
            tf_keras.layers.Dense(1),
        ]
    )
    model.compile(tf_keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


def epoch_data(rank: int) -> tf.data.Dataset:
    features = np.random.default_rng(rank).normal(size=(STEPS_PER_EPOCH * BATCH_PER_WORKER, 3)).astype("float32")
    labels = features.sum(axis=1, keepdims=True)
    return tf.data.Dataset.from_tensor_slices((features, labels)).batch(BATCH_PER_WORKER).repeat()


def main(store: str, scratch: str, epochs: str, result: str) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    role = current_role(strategy)
    with strategy.scope():
        model = build_model()
    data = strategy.distribute_datasets_from_function(lambda context: epoch_data(role.rank))
    stopping = AgreedEarlyStopping("local", patience=2)
    stateful = {"stopping": stopping}
    events: list[dict[str, Any]] = []
    callbacks = [
        BackupAndRestore(store, stateful=stateful),
        LocalValue(role.rank),
        Throughput(2 * BATCH_PER_WORKER),
        StopOnNaN(every_steps=2),
        stopping,
        ChiefCheckpoint(store, monitor="local", every_steps=3, scratch_dir=scratch, stateful=stateful),
        EventCallback(events.append, global_batch_size=2 * BATCH_PER_WORKER),
    ]
    history = model.fit(data, epochs=int(epochs), steps_per_epoch=STEPS_PER_EPOCH, callbacks=callbacks, verbose=0)
    trained = [*model.trainable_variables, *model.optimizer.variables]
    values = b"".join(variable.numpy().tobytes() for variable in trained)
    Path(result).write_text(
        json.dumps(
            {
                "is_chief": role.is_chief,
                "rank": role.rank,
                "workers": role.workers,
                "epochs": history.epoch,
                "stopping": stopping.get_state(),
                "weights_sha256": hashlib.sha256(values).hexdigest(),
                "moving_averages": [v.numpy().tolist() for v in model.non_trainable_variables],
                "last_event": events[-1],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
