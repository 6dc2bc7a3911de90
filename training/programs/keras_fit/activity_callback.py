"""The callback that reports a training's phase and step to the rank's `Activity`, for watchdog and live view."""

from collections.abc import Mapping
from typing import Any

import tf_keras

from mirrorspark.callbacks import optimizer_step
from mirrorspark.training.protocol.outcomes import Activity


class ActivityCallback(tf_keras.callbacks.Callback):
    """Updates the phase, epoch and step of an `Activity`, without waiting for the device."""

    def __init__(self, activity: Activity) -> None:
        """Update ``activity``."""
        super().__init__()
        # Batch logs are not used: without this Keras would copy them to the host after every step.
        self._supports_tf_logs = True
        self._activity = activity
        self._steps_before = 0
        self._first_batch: int | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Enter the phase of the first step."""
        self._activity.enter("first_step")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Set the epoch, and store its first step."""
        self._activity.epoch = epoch + 1
        self._steps_before = optimizer_step(self.model) or 0
        self._first_batch = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Store the first batch, which is not 0 in a resumed epoch."""
        if self._first_batch is None:
            self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Set the step."""
        self._activity.enter("training")
        self._activity.step = self._steps_before + batch + 1 - (self._first_batch or 0)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Enter the validation."""
        self._activity.enter("validation")

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Return to the training."""
        self._activity.enter("training")
