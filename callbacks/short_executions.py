"""Keeps an execution of many steps short, however long a step takes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras

from callbacks.agreement import mean_over_ranks
from callbacks.progress import optimizer_step


class ShortExecutions(tf_keras.callbacks.Callback):
    """Lets ``fit`` come back to Python every ``seconds``, or after a step that takes longer.

    Within an execution nobody can see a step done or ask for a stop: fifty steps of some seconds each would be a
    training that seems to hang. The ``steps_per_execution`` that the model was compiled with are the most. The first
    execution is one step, since nobody knows how long it takes; then they grow, at most twofold, while they are short
    enough. They end where executions of ``steps_per_execution`` steps would: what is done every so many steps falls on
    the same ones.

    All ranks run the same executions, as callbacks need it that ask all ranks at the end of one. So they agree on the
    time it took: after each execution until they have grown to the end, from then on once in an epoch.

    Args:
        seconds: What an execution may take, by the mean of the ranks.
        clock: Returns seconds; monotonic.
    """

    def __init__(self, seconds: float = 1.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; use a number above 0")
        # Batch logs are not looked at: without this Keras would bring them to the host after every execution.
        self._supports_tf_logs = True
        self._seconds = seconds
        self._clock = clock

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Learn how many steps an execution may have."""
        self._most = int(self.model._steps_per_execution.numpy())
        self._steps = 1
        self._is_first = True
        # Made while there are many: for executions of one step Keras makes a function that can do no more than that.
        self.model.make_test_function()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at how long its first execution takes; an epoch may be slower than the one before."""
        self._is_settled = self._most == 1
        self.model._steps_per_execution.assign(self._steps)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note when an execution begins, and where."""
        self._batch, self._began = batch, self._clock()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Decide how many steps come next."""
        if self._is_settled:
            return
        done = batch + 1
        if not self._is_first:
            optimizer_step(self.model)  # waits for the device
            taken = mean_over_ranks(self.model.distribute_strategy, self._clock() - self._began)
            fitting = int(self._seconds * (done - self._batch) / max(taken, 1e-9))
            self._steps = max(1, min(fitting, 2 * self._steps, self._most))
        self._is_first = False  # which compiles
        left = self._most - done % self._most
        self._is_settled = self._steps == left == self._most
        self.model._steps_per_execution.assign(min(self._steps, left))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leave the model as it was."""
        self.model._steps_per_execution.assign(self._most)
