"""Stopping a training whose loss is no longer finite, with the step in which that began."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives import as_float, sum_over_ranks
from mirrorspark.clear_error import ClearError
from mirrorspark.models import keras3

Locate = Callable[[int, int], str]


class NonFiniteLossError(ClearError, ArithmeticError):
    """The loss, or a weight, is NaN or infinite.

    Attributes:
        epoch: Current epoch, 1-based.
        step_in_epoch: The first step of the epoch, 1-based, whose loss was not finite.
        value: The loss, or the first such number in the weight.
        where: The input of the step and the checkpoint to resume from, as known.
        what: ``loss``, or the name of the weight.
    """

    def __init__(self, epoch: int, step_in_epoch: int, value: float, where: str = "", what: str = "loss") -> None:
        """Build the message from the values."""
        seen = "first" if what == "loss" else "seen"
        super().__init__(
            f"{what} is {value} in epoch {epoch}, {seen} in step {step_in_epoch}{f' ({where})' if where else ''}; look "
            f"for huge values in the features and labels, lower the learning rate, or clip gradients (clip_norm)"
        )
        self.epoch = epoch
        self.step_in_epoch = step_in_epoch
        self.value = value
        self.where = where
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[int, int, float, str, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.epoch, self.step_in_epoch, self.value, self.where, self.what)


class StopOnNaN(tf_keras.callbacks.Callback):
    """Raises `NonFiniteLossError` at an epoch's end, and within it every ``every_steps`` steps.

    Keras' batch loss is the epoch's mean so far: once it is not finite it stays so, and occasional checks miss nothing.
    Each check waits for the device. The training step itself counts the finite losses, at no cost, so the error names
    the step. List this callback before those that keep weights or metrics, and pass `check` to the one that saves;
    otherwise it could save bad weights between two checks.

    Args:
        every_steps: Steps between two checks.
        locate: Returns a description of the input for an epoch (0-based) and a step in it (0-based).
    """

    def __init__(self, *, every_steps: int = 100, locate: Locate | None = None) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; use a positive number")
        # Logs stay on the device between checks.
        self._supports_tf_logs = True
        self._every_steps = every_steps
        self._locate = locate
        self._epoch = 0
        self._steps = self._checked_at = 0
        self._first_step: int | None = None
        self._logs: Mapping[str, Any] | None = None
        self._counted: Any = None
        self._finite_steps: Any = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Make the training step count its finite losses."""
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
        # An earlier fit may have compiled the step without the counter.
        self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Store the epoch and reset the counters."""
        self._epoch = epoch
        self._steps = self._checked_at = 0
        self._first_step = None
        self._logs = None
        if self._finite_steps is not None:
            self._finite_steps.assign(0)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the starting step of a resumed epoch from its first batch."""
        if self._first_step is None:
            self._first_step = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the loss when a check is due.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        # With several steps per execution the count jumps: compare instead of taking the remainder.
        self._steps = batch + 1
        self._logs = logs
        if self._steps - self._checked_at >= self._every_steps:
            self._checked_at = self._steps
            self._check_loss(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Check the loss.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite.
        """
        self._check_loss(logs)

    def check(self) -> None:
        """Check the losses of all ranks, and the weights, which a gradient may spoil while the loss is finite.

        Every rank has to call this at the end of the same step. Summing a weight of 200 MB takes a hundredth of a
        second.

        Raises:
            NonFiniteLossError: On all ranks, if the loss of one rank or a weight is NaN or infinite.
        """
        mine = _loss(self._logs)
        total = sum_over_ranks(self.model.distribute_strategy, 0.0 if mine is None else mine)
        if not math.isfinite(total):
            self._raise(total if mine is None or math.isfinite(mine) else mine)
        for weight in keras3.tf_variables(self.model.trainable_variables):
            if (value := _first_non_finite(weight)) is not None:
                self._raise(value, f"weight {weight.name}")

    def _check_loss(self, logs: Mapping[str, Any] | None) -> None:
        value = _loss(logs)
        if value is not None and not math.isfinite(value):
            self._raise(value)

    def _raise(self, value: float, what: str = "loss") -> NoReturn:
        step = max(self._steps - 1, 0)
        if self._finite_steps is not None:
            # At an epoch's end the loss is that of all workers; this worker's own losses may all have been finite.
            step = min(step, (self._first_step or 0) + int(self._finite_steps.numpy()))
        try:
            where = self._locate(self._epoch, step) if self._locate else ""
        except OSError as error:
            where = f"its input is unknown: {error}"
        raise NonFiniteLossError(self._epoch + 1, step + 1, value, where, what)


def _loss(logs: Mapping[str, Any] | None) -> float | None:
    return as_float(logs["loss"]) if logs and "loss" in logs else None


def _first_non_finite(weight: Any) -> float | None:
    """Return the first NaN or infinite value in a weight, or None."""
    if not weight.dtype.is_floating:
        return None
    # On the weight's own device: a parameter server sums its own weights.
    with tf.device(weight.device):
        total = tf.reduce_sum(weight)
    # A sum takes no memory and almost always suffices; the sum of large 16-bit numbers may overflow, though.
    if math.isfinite(float(total)):
        return None
    value = tf.convert_to_tensor(weight)
    non_finite = tf.boolean_mask(value, ~tf.math.is_finite(value))
    return float(non_finite[0]) if len(non_finite) else None


def _counting(train_step: Callable[[Any], Any], finite_steps: Any) -> Callable[[Any], Any]:
    def counted(batch: Any) -> Any:
        logs = train_step(batch)
        if "loss" in logs:
            finite_steps.assign_add(tf.cast(tf.math.is_finite(logs["loss"]), tf.int64))
        return logs

    return counted
