"""One rank of a training in Keras' loop of steps and of the same one in ours; a test starts two.

Usage: step_loop_rank.py STRATEGY RESULT

STRATEGY is one that `callbacks_rank` opens. The result is a JSON file: the logs and the weights of either loop.
"""

import json
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives.roles import current_role
from mirrorspark.models.fitting.step_loop import use_step_loop
from tests.cluster.programs.callbacks_rank import build_model, epoch_data, open_strategy

STEPS = 6


class BatchLogs(tf_keras.callbacks.Callback):
    """Keeps what every execution logs."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.logs.append({name: float(value) for name, value in logs.items()})


def trained(strategy: tf.distribute.Strategy, *, ours: bool) -> dict[str, Any]:
    rank = current_role(strategy).rank
    with strategy.scope():
        model = build_model()
        model.compile("adam", "mse", metrics=["mae", tf_keras.metrics.AUC(name="auc")], steps_per_execution=4)
    if ours:
        use_step_loop(model)
    data = strategy.distribute_datasets_from_function(
        lambda context: epoch_data(rank).map(lambda rows, sums: (rows, tf.sigmoid(sums)))
    )
    batches = BatchLogs()
    fit = model.fit(
        data,
        steps_per_epoch=STEPS,
        validation_data=data,
        validation_steps=STEPS,
        epochs=2,
        callbacks=[batches],
        verbose=0,
    )
    weights = [weight.numpy().tolist() for weight in model.trainable_variables]
    return {"batches": batches.logs, "epochs": fit.history, "weights": weights}


def main(strategy_name: str, result: str) -> None:
    strategy = open_strategy(strategy_name)
    found = {name: trained(strategy, ours=name == "ours") for name in ("keras", "ours")}
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
