"""The callback that keeps a rank's board: what the driver's watchdog and live view go by."""

from collections.abc import Mapping
from typing import Any

import tf_keras

from mirrorspark.callbacks.progress import optimizer_step
from mirrorspark.training.protocol.activity import Activity


class Follow(tf_keras.callbacks.Callback):
    """Notes on the rank's board what the training does."""

    def __init__(self, activity: Activity) -> None:
        """Keep the board."""
        super().__init__()
        # Batch logs are not looked at: without this Keras would bring them to the host after every step.
        self._supports_tf_logs = True
        self._activity = activity
        self._steps_before = 0
        self._first_batch: int | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """The next step is the first one."""
        self._activity.enter("first_step")

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch, and where it begins."""
        self._activity.epoch = epoch + 1
        self._steps_before = optimizer_step(self.model) or 0
        self._first_batch = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Learn from the first batch where a resumed epoch starts."""
        if self._first_batch is None:
            self._first_batch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the steps done, without waiting for the device."""
        self._activity.enter("training")
        self._activity.step = self._steps_before + batch + 1 - (self._first_batch or 0)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Note the validation."""
        self._activity.enter("validation")

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Note its end."""
        self._activity.enter("training")
