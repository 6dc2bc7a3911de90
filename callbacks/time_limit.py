"""A time limit that becomes a number of epochs: settled once, the same on every rank, and kept by a restart."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tf_keras

from mirrorspark.callbacks.collectives import current_role, sum_over_ranks

# A clock may be too coarse for a short epoch.
_SHORTEST = 1e-3


class AgreedTimeLimit(tf_keras.callbacks.Callback):
    """Stops after as many epochs as fit into a time by the chief's clock.

    The chief measures the second epoch, since the first one has the work of the start in it, and settles how many
    epochs there will be. From then on the number counts, not the clock: an epoch that takes longer changes nothing, and
    a training that is resumed from a checkpoint, or given the same number of epochs, ends with the same weights. If
    after the first epoch there is no time for another one, as long as the first was after its first step, it is the
    last. The number is at most that of ``fit``.

    Args:
        seconds: Time of the epochs together, with their validations and checkpoints.
        settled: Called on every rank with the number of epochs once it is settled, and again when a training resumes.
        clock: Returns seconds; monotonic.

    Attributes:
        epochs: The number of epochs; None before it is settled.
    """

    def __init__(
        self, seconds: float, *, settled: Callable[[int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; use a positive number")
        self._supports_tf_logs = True  # it reads none
        self._seconds, self._settled, self._clock = seconds, settled, clock
        self._spent, self._epoch = 0.0, 0
        self._restored = False
        self._first_step: float | None = None
        self.epochs: int | None = None

    @property
    def stopped(self) -> bool:
        """True once all of the settled epochs are done: a checkpoint of the last one is not trained further."""
        return self.epochs is not None and self._epoch >= self.epochs

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values; see `callbacks.checkpoints.training_state.Stateful`."""
        return {"epoch": self._epoch, "epochs": self.epochs, "spent": self._spent}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state; the next ``on_train_begin`` keeps it, later ones start afresh."""
        self._epoch, self._spent = int(state["epoch"]), float(state["spent"])
        self.epochs = None if state["epochs"] is None else int(state["epochs"])
        self._restored = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin to measure, and repeat a number that was settled before."""
        if not self._restored:
            self._spent, self._epoch, self.epochs = 0.0, 0, None
        self._restored = False
        self._since, self._first_step = self._clock(), None
        self._is_first, self._most = True, int(self.params["epochs"])
        if self.epochs is not None:
            self.params["epochs"] = self.epochs  # which the callbacks share, and show
            self._settled(self.epochs)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the end of the first step, which builds the graph."""
        if self._first_step is None:
            self._first_step = self._clock()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Settle the number of epochs if that is due, and stop the training after the last one."""
        now = self._clock()
        self._spent += now - self._since
        self._epoch = epoch + 1
        # Early stopping, which is listed before, may have ended the training.
        if self.epochs is None and not self.model.stop_training:
            seconds = now - (self._first_step or self._since) if self._is_first else now - self._since
            left = self._seconds - self._spent
            is_due = not self._is_first or left < seconds
            fitting = min(self._most, self._epoch + max(0, int(left / max(seconds, _SHORTEST)))) if is_due else 0
            # The others add nothing to the chief's number.
            strategy = self.model.distribute_strategy
            agreed = int(sum_over_ranks(strategy, fitting if current_role(strategy).is_chief else 0))
            if agreed:
                self.epochs = agreed
                self._settled(agreed)
        self._since, self._is_first = now, False
        if self.stopped:
            self.model.stop_training = True
