"""Ends a training on request, at the same step on all ranks, with a checkpoint of that step."""

from collections.abc import Callable, Mapping
from typing import Any

import tf_keras

from callbacks.agreement import AgreedInterval, sum_over_ranks
from callbacks.checkpoint import ChiefCheckpoint
from callbacks.roles import current_role


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """A training ended because it was asked to; the same command goes on from here.

    Attributes:
        step: Optimizer updates done.
        path: The checkpoint of that step.
    """

    def __init__(self, step: int, path: str) -> None:
        """Keep where it ended and what is left."""
        super().__init__(f"training stopped as asked, at step {step}; it goes on from {path}")
        self.step = step
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Pickle by the constructor's own arguments."""
        return type(self), (self.step, self.path)


class StopOnRequest(tf_keras.callbacks.Callback):
    """Raises `TrainingStopped` on all ranks at the same step once any of them was asked to stop.

    The ranks ask each other now and then within an epoch, and at its end; a validation is finished first. A training
    that is over at that epoch's end ends as usual. List it last, in any case after ``checkpoint``: the other callbacks
    have seen the step then, and the checkpoint of an epoch's end is there already.

    Args:
        is_requested: Tells whether this rank was asked to stop; called from the training thread.
        checkpoint: Saves the step; it has to be among the callbacks.
        every_steps: Steps between two questions; None to ask about every ``every_seconds`` by the chief's clock.
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
        # Batch logs are not looked at: without this Keras would bring them to the host after every step.
        self._supports_tf_logs = True
        self._is_requested = is_requested
        self._checkpoint = checkpoint
        self._every_steps = every_steps
        self._interval = AgreedInterval(every_seconds)
        self._steps = self._asked_at = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Find this process's role."""
        self._is_chief = current_role(self.model.distribute_strategy).is_chief
        self._steps = self._asked_at = 0
        self._interval.restart(0)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """A resumed epoch does not start with its first batch."""
        self._next_batch: int | None = None

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Learn from the first batch where the epoch starts."""
        if self._next_batch is None:
            self._next_batch = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Ask when it is due, but for the epoch's last step, after which its end asks.

        Raises:
            TrainingStopped: A rank was asked to stop, and a checkpoint of this step is published.
        """
        # Counted here: to read the optimizer's count would wait for the device in every step.
        self._steps += batch + 1 - (self._next_batch or 0)
        self._next_batch = batch + 1
        # An epoch of unknown length may end with any step: nobody could go on from "all steps done".
        steps = self.params.get("steps")
        if steps is not None and batch + 1 < steps and self._is_due():
            self._ask()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Ask, unless training ends here anyway.

        Raises:
            TrainingStopped: A rank was asked to stop, and the checkpoint of this epoch is published.
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
