"""Reduction of the learning rate on a plateau, with the same decision on every rank and a state that is saved."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import tf_keras

from mirrorspark.callbacks.collectives import AgreedMonitor

logger = logging.getLogger(__name__)


class AgreedReduceLROnPlateau(tf_keras.callbacks.Callback):
    """Multiplies the learning rate by ``factor`` when the monitored value has not improved for ``patience`` epochs.

    Keras' ``ReduceLROnPlateau`` with two differences: the value is averaged over all ranks, which could otherwise
    continue with different rates, and `ChiefCheckpoint` can save its state (the rate itself is in every checkpoint).
    List it before the checkpoint.

    Args:
        monitor: Name of the value in the epoch's logs.
        mode: ``max`` when larger is better, ``min`` when smaller is.
        factor: Factor for the learning rate, between 0 and 1.
        patience: Epochs in a row without improvement before a reduction.
        min_delta: Smallest change that counts as an improvement, at least 0.
        cooldown: Epochs after a reduction that do not count towards ``patience``.
        min_learning_rate: Lower bound of the learning rate.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_learning_rate: float = 0.0,
    ) -> None:
        """Check and keep the arguments."""
        super().__init__()
        if not 0 < factor < 1:
            raise ValueError(f"factor is {factor}; use a number between 0 and 1")
        if patience < 1:
            raise ValueError(f"patience is {patience}; use at least 1 epoch")
        if cooldown < 0:
            raise ValueError(f"cooldown is {cooldown}; use 0 or more epochs")
        self._monitor = AgreedMonitor(monitor, mode, min_delta, "the learning rate depends on")
        self._factor = factor
        self._patience = patience
        self._cooldown = cooldown
        self._min_learning_rate = min_learning_rate
        self._restored = False
        self._epoch = self._wait = self._cooling = 0
        self._best: float | None = None

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values; see `callbacks.checkpoints.training_state.Stateful`."""
        return {"epoch": self._epoch, "best": self._best, "wait": self._wait, "cooling": self._cooling}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state; the next ``on_train_begin`` keeps it, later ones start afresh."""
        self._epoch = int(state["epoch"])
        self._best = None if state["best"] is None else float(state["best"])
        self._wait = int(state["wait"])
        self._cooling = int(state["cooling"])
        self._restored = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Reset the state of an earlier training, unless a state was restored for this one.

        Raises:
            ValueError: The optimizer's learning rate follows a schedule.
        """
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        # In Keras' newer optimizers the public attribute is always a variable, even with a schedule.
        rate = getattr(optimizer, "_learning_rate", optimizer.learning_rate)
        if callable(rate):  # a schedule of either Keras
            raise ValueError(  # noqa: TRY004 - a wrong combination of settings
                "the learning rate follows a schedule, which a plateau cannot change; give the optimizer a number"
            )
        if not self._restored:
            self._epoch = self._wait = self._cooling = 0
            self._best = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Treat the restored state as that of this training from now on."""
        self._restored = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Update the state from the averaged value, and reduce the learning rate on a plateau.

        Raises:
            ValueError: The monitored value is not among the logs.
        """
        value = self._monitor.value(self.model, logs)
        self._epoch = epoch + 1
        is_cooling, self._cooling = self._cooling > 0, max(self._cooling - 1, 0)
        if is_cooling:
            self._wait = 0
        if self._monitor.improves(value, self._best):
            self._best, self._wait = value, 0
        elif not is_cooling:
            self._wait += 1
            if self._wait >= self._patience:
                self._reduce()
                self._wait, self._cooling = 0, self._cooldown

    def _reduce(self) -> None:
        rate = self.model.optimizer.learning_rate
        before = float(rate.numpy())
        after = max(before * self._factor, self._min_learning_rate)
        if after < before:
            rate.assign(after)
            logger.info("Learning rate reduced from %g to %g", before, after)
