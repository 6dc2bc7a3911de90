"""A limit on the duration of an execution of many steps, so that ``fit`` returns to Python regularly."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives import mean_over_ranks
from mirrorspark.callbacks.progress import optimizer_step


class ShortExecutions(tf_keras.callbacks.Callback):
    """Makes ``fit`` return to Python every ``seconds``, or after one step if that takes longer.

    Within an execution no step can be reported and no stop requested: a training with fifty steps of some seconds each
    would seem to hang. The model's compiled ``steps_per_execution`` is the upper limit. The first execution has one
    step, because its duration is unknown; later ones grow, at most twofold, while they are short enough. They end at
    the same steps as executions of ``steps_per_execution`` steps, so periodic actions fall on the same steps.

    All ranks run the same executions, because callbacks run collectives at the end of one. The ranks therefore agree
    on the duration: after each execution until the limit is reached, then once per epoch.

    The ``fit`` of Keras 3 itself does not allow another number of steps than the compiled one.

    Args:
        seconds: Longest duration of an execution, as the mean over the ranks.
        clock: Returns seconds; monotonic.
    """

    def __init__(self, seconds: float = 1.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; use a number above 0")
        # Batch logs are unused; without this flag Keras would copy them to the host after every execution.
        self._supports_tf_logs = True
        self._seconds = seconds
        self._clock = clock

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Read the limit from the model, and start with one step."""
        setting = getattr(self.model, "_steps_per_execution", None)
        # Without it, in the `fit` of Keras 3 itself, nothing is changed.
        self._setting = tf.Variable(1, dtype=tf.int64) if setting is None else setting
        self._limit = int(self._setting.numpy())
        self._steps = 1
        self._is_first = True
        # Built before the assignment to 1: for executions of one step Keras builds a function that can do no more.
        self.model.make_test_function()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Measure the first execution again, because an epoch may be slower than the one before."""
        self._is_settled = self._limit == 1
        self._setting.assign(self._steps)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Store the first step of an execution and its time."""
        self._batch, self._began = batch, self._clock()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Set the number of steps of the next execution."""
        if self._is_settled:
            return
        done = batch + 1
        if not self._is_first:
            optimizer_step(self.model)  # waits for the device
            taken = mean_over_ranks(self.model.distribute_strategy, self._clock() - self._began)
            fitting = int(self._seconds * (done - self._batch) / max(taken, 1e-9))
            self._steps = max(1, min(fitting, 2 * self._steps, self._limit))
        self._is_first = False  # the first one was not measured, because it compiles
        left = self._limit - done % self._limit
        self._is_settled = self._steps == left == self._limit
        self._setting.assign(min(self._steps, left))

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore the model's setting."""
        self._setting.assign(self._limit)
