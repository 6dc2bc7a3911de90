"""One rank of a training with all callbacks; a test starts two. Its result is a JSON file.

Usage: callbacks_rank.py STRATEGY STORE SCRATCH EPOCHS STOP_AFTER RESULT

STRATEGY is ``mirrored`` (MultiWorkerMirroredStrategy) or ``ring``; rank 1 is asked to stop after STOP_AFTER steps.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.backup import BackupAndRestore, resume_point
from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.collectives.roles import current_role
from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping
from mirrorspark.callbacks.nan_guard import StopOnNaN
from mirrorspark.callbacks.progress import EventCallback
from mirrorspark.callbacks.stop_request import StopOnRequest, TrainingStopped
from mirrorspark.callbacks.throughput import Throughput
from mirrorspark.training.protocol.ring.ring import Ring
from mirrorspark.training.protocol.ring.strategy import RingStrategy

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


class StopAfter(tf_keras.callbacks.Callback):
    """Requests a stop after a number of steps of the training."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def is_requested(self) -> bool:
        return int(self.model.optimizer.iterations.numpy()) >= self._steps


def open_strategy(name: str) -> tf.distribute.Strategy:
    if name == "mirrored":
        return tf.distribute.MultiWorkerMirroredStrategy()
    config = json.loads(os.environ["TF_CONFIG"])
    # Strategies without a cluster resolver describe themselves; that has to suffice.
    rank = config["task"]["index"]
    del os.environ["TF_CONFIG"]
    return RingStrategy(Ring.connect(rank, config["cluster"]["worker"], "made-up token"))


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


def main(strategy_name: str, store: str, scratch: str, epochs: str, stop_after: str, result: str) -> None:
    strategy = open_strategy(strategy_name)
    role = current_role(strategy)
    with strategy.scope():
        model = build_model()
    start = resume_point(store).step_in_epoch
    data = strategy.distribute_datasets_from_function(lambda context: epoch_data(role.rank).skip(start))
    stopping = AgreedEarlyStopping("local", patience=2)
    stateful = {"stopping": stopping}
    events: list[dict[str, Any]] = []
    request = StopAfter(int(stop_after) if role.rank == 1 else 10**9)
    checkpoint = ChiefCheckpoint(
        store, monitor="local", every_steps=3, every_seconds=0.5, scratch_dir=scratch, stateful=stateful
    )
    callbacks = [
        BackupAndRestore(store, stateful=stateful),
        LocalValue(role.rank),
        Throughput(2 * BATCH_PER_WORKER),
        StopOnNaN(every_steps=2),
        stopping,
        EventCallback(events.append, global_batch_size=2 * BATCH_PER_WORKER),
        checkpoint,
        request,
        StopOnRequest(request.is_requested, checkpoint, every_steps=1),
    ]
    stopped = None
    try:
        model.fit(data, epochs=int(epochs), steps_per_epoch=STEPS_PER_EPOCH, callbacks=callbacks, verbose=0)
    except TrainingStopped as stop:
        stopped = [stop.step, stop.path]
    trained = [*model.trainable_variables, *model.optimizer.variables]
    values = b"".join(variable.numpy().tobytes() for variable in trained)
    Path(result).write_text(
        json.dumps(
            {
                "is_chief": role.is_chief,
                "rank": role.rank,
                "workers": role.workers,
                "epochs": model.history.epoch,
                "mae": model.history.history.get("mae"),
                "stopping": stopping.get_state(),
                "stopped": stopped,
                "weights_sha256": hashlib.sha256(values).hexdigest(),
                "moving_averages": [v.numpy().tolist() for v in model.non_trainable_variables],
                "last_event": events[-1],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
