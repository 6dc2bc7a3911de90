"""Stopping a training on request, at the same step on all ranks, with a checkpoint of that step."""

from collections.abc import Callable, Mapping
from typing import Any

import tf_keras

from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
from mirrorspark.callbacks.collectives import AgreedInterval, current_role, sum_over_ranks


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """A training ended on request; the same command continues it.

    Attributes:
        step: Optimizer updates done.
        path: The checkpoint of that step.
    """

    def __init__(self, step: int, path: str) -> None:
        """Build the message from the step and the checkpoint."""
        super().__init__(f"training stopped as asked, at step {step}; it goes on from {path}")
        self.step = step
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.step, self.path)


class StopOnRequest(tf_keras.callbacks.Callback):
    """Raises `TrainingStopped` on all ranks at the same step once any of them has a stop request.

    The ranks compare their requests at intervals within an epoch, and at its end; a validation is finished first. If
    training is over at that epoch's end, it ends as usual. List this callback last, at least after ``checkpoint``: then
    the other callbacks have seen the step, and the checkpoint of an epoch's end exists.

    Args:
        is_requested: Returns whether this rank has a stop request; called from the training thread.
        checkpoint: Saves the step; it has to be among the callbacks.
        every_steps: Steps between two comparisons; None for about every ``every_seconds`` by the chief's clock.
        every_seconds: See ``every_steps``.
    """

    def __init__(
        self,
        is_requested: Callable[[], bool],
        checkpoint: ChiefCheckpoint,
        *,
        every_steps: int | None = None,
        every_seconds: float = 1.0,
    ) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; use None or a positive number")
        # Batch logs are unused; without this flag Keras would copy them to the host after every step.
        self._supports_tf_logs = True
        self._is_requested = is_requested
        self._checkpoint = checkpoint
        self._every_steps = every_steps
        self._interval = AgreedInterval(every_seconds)
        self._steps = self._asked_at = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Determine this process's role."""
        self._is_chief = current_role(self.model.distribute_strategy).is_chief
        self._steps = self._asked_at = 0
        self._interval.restart(0)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Reset the position, because a resumed epoch does not start with its first batch."""
        self._next_batch: int | None = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Take the starting step of a resumed epoch from its first batch."""
        if self._next_batch is None:
            self._next_batch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Compare requests when that is due, except after the epoch's last step, which ``on_epoch_end`` covers.

        Raises:
            TrainingStopped: A rank has a stop request, and a checkpoint of this step is published.
        """
        # Counted here, because reading the optimizer's count would wait for the device in every step.
        self._steps += batch + 1 - (self._next_batch or 0)
        self._next_batch = batch + 1
        # An epoch of unknown length may end with any step, and a training cannot resume after all its steps.
        steps = self.params.get("steps")
        if steps is not None and batch + 1 < steps and self._is_due():
            self._ask()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Compare requests, unless training ends here anyway.

        Raises:
            TrainingStopped: A rank has a stop request, and the checkpoint of this epoch is published.
        """
        is_over = self.model.stop_training or epoch + 1 >= self.params["epochs"]
        if not is_over:
            self._ask()

    def _is_due(self) -> bool:
        if self._every_steps is None:
            return self._interval.is_over(self.model.distribute_strategy, self._steps, is_chief=self._is_chief)
        is_due = self._steps - self._asked_at >= self._every_steps
        if is_due:
            self._asked_at = self._steps
        return is_due

    def _ask(self) -> None:
        if sum_over_ranks(self.model.distribute_strategy, float(self._is_requested())) > 0:
            raise TrainingStopped(int(self.model.optimizer.iterations.numpy()), str(self._checkpoint.save_now()))
