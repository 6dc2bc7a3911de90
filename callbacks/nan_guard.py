"""Stops a training whose loss is no longer a number, and says in which step that began."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from callbacks.metric_values import as_float

Locate = Callable[[int, int], str]


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite.

    Attributes:
        epoch: Epoch under way, 1-based.
        step_in_epoch: The first step of it, 1-based, whose loss was no number.
        value: The loss.
        where: What the step read, and where to go on from, as far as somebody could tell.
    """

    def __init__(self, epoch: int, step_in_epoch: int, value: float, where: str = "") -> None:
        """Keep where and what."""
        super().__init__(
            f"loss is {value} in epoch {epoch}, first in step {step_in_epoch}{f' ({where})' if where else ''}; look "
            f"for huge values in the features and labels, lower the learning rate, or clip gradients (clip_norm)"
        )
        self.epoch = epoch
        self.step_in_epoch = step_in_epoch
        self.value = value
        self.where = where

    def __reduce__(self) -> tuple[type, tuple[int, int, float, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.epoch, self.step_in_epoch, self.value, self.where)


class StopOnNaN(tf_keras.callbacks.Callback):
    """Raises `NonFiniteLossError` at an epoch's end, and within it every ``every_steps`` steps.

    Keras' batch loss is the epoch's mean so far: once it is not finite it stays so, and looking now and then misses
    nothing. Each look waits for the device. Which step it was is counted within the training step, at no cost. List it
    before the callbacks that keep weights or metrics.

    Args:
        every_steps: Steps between two looks.
        locate: Returns for an epoch (0-based) and a step in it (0-based) what that step read.
    """

    def __init__(self, *, every_steps: int = 100, locate: Locate | None = None) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; use a positive number")
        # Logs stay on the device between looks.
        self._supports_tf_logs = True
        self._every_steps = every_steps
        self._locate = locate
        self._counted: Any = None
        self._finite_steps: Any = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let the training step count how many of its losses were finite."""
        if self._counted is self.model:
            return
        self._counted = self.model
        with self.model.distribute_strategy.scope():
            self._finite_steps = tf.Variable(
                0,
                dtype=tf.int64,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
        self.model.train_step = _counting(self.model.train_step, self._finite_steps)
        # An earlier fit may have compiled the step as it was.
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch
        self._steps = self._looked_at = 0
        self._first_step: int | None = None
        if self._finite_steps is not None:
            self._finite_steps.assign(0)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Learn from the first batch where a resumed epoch starts."""
        if self._first_step is None:
            self._first_step = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the loss when it is due.

        Raises:
            NonFiniteLossError: It is NaN or infinite.
        """
        # With several steps per execution the count jumps: compare instead of taking the remainder.
        self._steps = batch + 1
        if self._steps - self._looked_at >= self._every_steps:
            self._looked_at = self._steps
            self._look(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Look at the loss.

        Raises:
            NonFiniteLossError: It is NaN or infinite.
        """
        self._look(logs)

    def _look(self, logs: Mapping[str, Any] | None) -> None:
        value = as_float(logs["loss"]) if logs and "loss" in logs else None
        if value is None or math.isfinite(value):
            return
        step = max(self._steps - 1, 0)
        if self._finite_steps is not None:
            # At an epoch's end the loss is that of all workers, and this one's own may have been finite to the end.
            step = min(step, (self._first_step or 0) + int(self._finite_steps.numpy()))
        where = self._locate(self._epoch, step) if self._locate else ""
        raise NonFiniteLossError(self._epoch + 1, step + 1, value, where)


def _counting(train_step: Callable[[Any], Any], finite_steps: Any) -> Callable[[Any], Any]:
    def counted(batch: Any) -> Any:
        logs = train_step(batch)
        if "loss" in logs:
            finite_steps.assign_add(tf.cast(tf.math.is_finite(logs["loss"]), tf.int64))
        return logs

    return counted
