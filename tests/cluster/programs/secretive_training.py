"""Runs a training function whose errors, prints and log are full of secrets, under our supervision, and fails with it.

Usage: secretive_training.py OUTPUT

Twice: with an SQLite store, and with the server that RIDES_TRACKING names. The secrets are in the environment.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from mirrorspark.training.driver.errors import TrainingFailedError
from mirrorspark.training.entry_points.launch import run_train_fn
from mirrorspark.training.run_records import tracked_run


def secretive() -> Any:
    """Return a training function; as a closure it travels by value."""

    def train(database: str, arguments: str, secrets: str = "") -> None:
        import logging
        import os
        from pathlib import Path

        import psutil
        import tensorflow as tf

        def words(process: psutil.Process) -> list[str]:
            try:
                return process.cmdline()
            except psutil.Error:
                return []

        # Every user of this machine can read the arguments of every process.
        with Path(arguments).open("a", encoding="utf-8") as file:
            file.writelines(f"{words(process)}\n" for process in psutil.process_iter())
        token, key = os.environ["MLFLOW_TRACKING_TOKEN"], os.environ["AWS_SECRET_ACCESS_KEY"]
        print(f"connecting to {database} as {token}{secrets}")
        logging.getLogger("rides").warning("no answer from %s (secret_access_key=%s)%s", database, key, secrets)

        def refuse() -> None:
            raise ConnectionError(f"{database} refuses token {token}")

        class Betray(tf.keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: object = None) -> None:
                try:
                    refuse()
                except ConnectionError as error:
                    raise LookupError(f"no rides in {database}: token {token}, key {key}{secrets}") from error

        model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=(1,))])
        model.compile(optimizer="sgd", loss="mse")
        model.fit(tf.ones((8, 1)), tf.ones((8, 1)), batch_size=4, epochs=1, verbose=0, callbacks=[Betray()])

    return train


def main(output: str) -> None:
    # A server that is away is waited for at the end of a run.
    tracked_run._CLOSE_SECONDS = 1.0
    kwargs = {"database": os.environ["RIDES_DATABASE"], "arguments": str(Path(output) / "arguments.txt")}
    knobs: dict[str, Any] = {"kwargs": kwargs, "output": output, "strategy": "ring", "verbose": True}
    try:
        run_train_fn(secretive(), name="sqlite", **knobs)
    except TrainingFailedError:
        traceback.print_exc()
    run_train_fn(secretive(), name="server", tracking_uri=os.environ["RIDES_TRACKING"], **knobs)


if __name__ == "__main__":
    main(*sys.argv[1:])
