"""Stops a training whose loss is no longer a number."""

import math
from collections.abc import Mapping
from typing import Any

import tf_keras

from callbacks.metric_values import as_float


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite.

    Attributes:
        epoch: Epoch under way, 1-based.
        step_in_epoch: Steps of it that were done when this was seen.
        value: The loss.
    """

    def __init__(self, epoch: int, step_in_epoch: int, value: float) -> None:
        """Keep where and what."""
        super().__init__(
            f"loss is {value} in epoch {epoch} by step {step_in_epoch}; look for NaN or huge values in the features "
            "and labels, lower the learning rate, or clip gradients (the optimizer's clipnorm)"
        )
        self.epoch = epoch
        self.step_in_epoch = step_in_epoch
        self.value = value

    def __reduce__(self) -> tuple[type, tuple[int, int, float]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.epoch, self.step_in_epoch, self.value)


class StopOnNaN(tf_keras.callbacks.Callback):
    """Raises `NonFiniteLossError` at an epoch's end, and within it every ``every_steps`` steps.

    Keras' batch loss is the epoch's mean so far: once it is not finite it stays so, and looking now and then misses
    nothing. Each look waits for the device. List it before the callbacks that keep weights or metrics.

    Args:
        every_steps: Steps between two looks.
    """

    def __init__(self, *, every_steps: int = 100) -> None:
        """Check and keep the argument."""
        super().__init__()
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; use a positive number")
        # Logs stay on the device between looks.
        self._supports_tf_logs = True
        self._every_steps = every_steps
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch
        self._steps = self._looked_at = 0

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
        if value is not None and not math.isfinite(value):
            raise NonFiniteLossError(self._epoch + 1, self._steps, value)
