"""Early stopping with the same decision on every rank, and with a state that survives a restart."""

from collections.abc import Mapping
from typing import Any, Literal

import tf_keras

from mirrorspark.callbacks.collectives import AgreedMonitor


class AgreedEarlyStopping(tf_keras.callbacks.Callback):
    """Stops when the monitored value, averaged over all ranks, has not improved for ``patience`` epochs.

    If each rank decided from its own value, ranks could disagree, and those that continue would wait for ever. No
    weights are kept; the caller restores the best epoch's checkpoint (`callbacks.checkpoints.commit.best_committed`).

    Args:
        monitor: Name of the value in the epoch's logs.
        mode: ``max`` when larger is better, ``min`` when smaller is.
        patience: Epochs in a row without improvement after which training stops, at least 1.
        min_delta: Smallest change that counts as an improvement, at least 0.
        baseline: Value that the first epoch has to improve on; None for any finite value.

    Attributes:
        best: Best averaged value so far, None before the first.
        best_epoch: Completed epochs when it was reached, 0 before the first.
        wait: Epochs since then.
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
        """True once ``patience`` is used up."""
        return self.wait >= self._patience

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values; see `callbacks.checkpoints.training_state.Stateful`."""
        return {"epoch": self._epoch, "best": self.best, "best_epoch": self.best_epoch, "wait": self.wait}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state; the next ``on_train_begin`` keeps it, later ones start afresh."""
        self._epoch = int(state["epoch"])
        self.best = None if state["best"] is None else float(state["best"])
        self.best_epoch = int(state["best_epoch"])
        self.wait = int(state["wait"])
        self._restored = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Reset the state of an earlier training, unless a state was restored for this one."""
        if not self._restored:
            self._epoch = self.best_epoch = self.wait = 0
            self.best = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Treat the restored state as that of this training from now on."""
        self._restored = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Update the state from the averaged value, and stop training if ``patience`` is used up.

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
