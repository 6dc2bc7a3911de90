"""Early stopping that every rank decides alike, and that survives a restart."""

from collections.abc import Mapping
from typing import Any, Literal

import tf_keras

from callbacks.agreed_monitor import AgreedMonitor


class AgreedEarlyStopping(tf_keras.callbacks.Callback):
    """Stops when the monitored value, averaged over all ranks, has not improved for ``patience`` epochs.

    Ranks that decided each from its own value could disagree, and the ones that go on would wait for ever. No weights
    are kept: the best epoch's checkpoint is the caller's to restore (`callbacks.commit.best_committed`).

    Args:
        monitor: Name of the value in the epoch's logs.
        mode: ``max`` when larger is better, ``min`` when smaller is.
        patience: Epochs in a row without improvement after which training stops, at least 1.
        min_delta: Least change that counts as an improvement, at least 0.
        baseline: Value to be better than from the start; None for any finite value.

    Attributes:
        best: Best averaged value so far, None before the first.
        best_epoch: Completed epochs when it was reached, 0 before the first.
        wait: Epochs since then.
        stopped: Whether the decision to stop has fallen.
    """

    def __init__(
        self,
        monitor: str = "val_auc",
        *,
        mode: Literal["min", "max"] = "max",
        patience: int = 15,
        min_delta: float = 0.0,
        baseline: float | None = None,
    ) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if patience < 1:
            raise ValueError(f"patience is {patience}; use at least 1 epoch")
        self._monitor = AgreedMonitor(monitor, mode, min_delta, "early stopping monitors")
        self._patience = patience
        self._baseline = baseline
        self._restored = False
        self._epoch = self.best_epoch = self.wait = 0
        self.best: float | None = None

    @property
    def stopped(self) -> bool:
        """Whether ``patience`` is used up."""
        return self.wait >= self._patience

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values; see `callbacks.training_state.Stateful`."""
        return {"epoch": self._epoch, "best": self.best, "best_epoch": self.best_epoch, "wait": self.wait}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next ``on_train_begin`` keeps it, a later one starts afresh."""
        self._epoch = int(state["epoch"])
        self.best = None if state["best"] is None else float(state["best"])
        self.best_epoch = int(state["best_epoch"])
        self.wait = int(state["wait"])
        self._restored = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Forget an earlier training, unless its state was set for this one to go on with."""
        if not self._restored:
            self._epoch = self.best_epoch = self.wait = 0
            self.best = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """From here on the restored state is this training's own."""
        self._restored = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Decide, on every rank from the same value.

        Raises:
            ValueError: The monitored value is not among the logs.
        """
        value = self._monitor.value(self.model, logs)
        self._epoch = epoch + 1
        if self._monitor.improves(value, self._baseline if self.best is None else self.best):
            self.best, self.best_epoch, self.wait = value, epoch + 1, 0
        else:
            self.wait += 1
        if self.stopped:
            self.model.stop_training = True
