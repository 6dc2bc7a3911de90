"""Profiling of some training steps, for XProf (``xprof --logdir FOLDER``)."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.storage import without_credentials

logger = logging.getLogger(__name__)


class ProfileSteps(tf_keras.callbacks.Callback):
    """Profiles some consecutive training steps after a warm-up, once per process.

    Keras calls back once per execution, which may be many steps (``steps_per_execution``). The profile therefore begins
    and ends between executions, and covers at least two. If the profiler cannot start or write, a warning is logged and
    training continues.

    Args:
        folder: Folder of this rank's profile; ``xprof --logdir`` accepts it or its parent.
        warm_up_executions: Executions to skip: the first builds the graph, the second still fills caches.
        steps: Least number of steps to profile.
        longest_seconds: Longest duration of the profile, because a trace grows with time.
        clock: Returns seconds; monotonic.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        warm_up_executions: int = 2,
        steps: int = 20,
        longest_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the arguments."""
        super().__init__()
        # Logs are unused, so they stay on the device.
        self._supports_tf_logs = True
        self._folder = str(folder)
        self._left_to_warm_up = warm_up_executions
        self._steps = steps
        self._longest_seconds = longest_seconds
        self._clock = clock
        self._is_running = False
        self._is_done = False
        self._executions = 0
        self._first_step = 0
        self._begin = 0.0

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the profile after the warm-up."""
        if self._is_done or self._is_running or self._left_to_warm_up > 0:
            return
        try:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            tf.profiler.experimental.start(self._folder)
        except (tf.errors.OpError, OSError) as error:
            self._give_up(error)
            return
        self._is_running = True
        self._executions, self._first_step = 0, batch
        self._begin = self._clock()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """End the profile when it covers enough steps."""
        if not self._is_running:
            self._left_to_warm_up -= 1
            return
        self._executions += 1
        has_enough = self._executions > 1 and batch + 1 - self._first_step >= self._steps
        if has_enough or self._clock() - self._begin >= self._longest_seconds:
            self._stop()

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """End a profile for which the epoch was too short, because validation is not a training step."""
        self._stop()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """End a profile for which the epoch was too short, because step numbers start again."""
        self._stop()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End a profile that is still running."""
        self._stop()

    def _stop(self) -> None:
        if not self._is_running:
            return
        self._is_running, self._is_done = False, True
        try:
            tf.profiler.experimental.stop()
        except (tf.errors.OpError, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._is_done = True
        lines = without_credentials(str(error)).splitlines() or [type(error).__name__]
        logger.warning("no profile is written to %s: %s", self._folder, lines[0])
