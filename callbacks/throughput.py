"""Examples per second of an epoch's training steps, and the callback that adds them to its metrics."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras

EXAMPLES_PER_SECOND = "examples_per_second"


class RateMeter:
    """Measures examples per second from step counts and times in seconds.

    The first step of a training builds the graph, so it is excluded as there is a second one. Validation is
    excluded too: time is measured from the start of the epoch to its last training step.
    """

    def __init__(self, global_batch_size: int) -> None:
        """Start with nothing measured.

        Args:
            global_batch_size: Examples that one step uses over all replicas.
        """
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size is {global_batch_size}; use a positive number")
        self._global_batch_size = global_batch_size
        self._has_traced = False
        self._since = self._until = 0.0
        self._steps = self._last_step = 0

    def begin_epoch(self, now: float, step_in_epoch: int = 0) -> None:
        """Store the time at which an epoch begins, after ``step_in_epoch`` steps if it is resumed."""
        self._has_traced = self._has_traced or self._steps > 0
        self._since = self._until = now
        self._steps, self._last_step = 0, step_in_epoch

    def before_step(self, steps_done: int) -> None:
        """Take the starting step of a resumed epoch from its first step."""
        if not self._steps:
            self._last_step = steps_done

    def step_done(self, now: float, step_in_epoch: int) -> None:
        """Store the time at which step ``step_in_epoch`` (1-based) of the epoch was done."""
        new_steps = step_in_epoch - self._last_step
        if self._steps and not self._has_traced:
            # Measurement restarts after the step that built the graph.
            self._since, self._steps, self._has_traced = self._until, 0, True
        self._until = now
        self._steps += new_steps
        self._last_step = step_in_epoch

    def examples_per_second(self) -> float:
        """Return the rate of the epoch so far; 0.0 before its first step."""
        seconds = self._until - self._since
        return self._steps * self._global_batch_size / seconds if seconds > 0 else 0.0


class Throughput(tf_keras.callbacks.Callback):
    """Adds ``examples_per_second`` to each epoch's logs; list it before the callbacks that read them.

    Args:
        global_batch_size: Examples that one step uses over all replicas.
        clock: Returns seconds; monotonic.
    """

    def __init__(self, global_batch_size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Check and keep the arguments."""
        super().__init__()
        # Batch logs are unused; without this flag Keras would copy them to the host after every step.
        self._supports_tf_logs = True
        self._global_batch_size = global_batch_size
        self._clock = clock
        self._meter = RateMeter(global_batch_size)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Start a new measurement: each ``fit`` builds its graph again."""
        self._meter = RateMeter(self._global_batch_size)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the time."""
        self._meter.begin_epoch(self._clock())

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the starting step of a resumed epoch from its first batch."""
        self._meter.before_step(batch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the time."""
        self._meter.step_done(self._clock(), batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the rate to the logs, which Keras passes on to later callbacks."""
        if logs is not None:
            logs[EXAMPLES_PER_SECOND] = self._meter.examples_per_second()
