"""The callback that stops each model of a stack by its own validation loss, with its best weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras

_PER_MODEL = ("best_loss", "best_epoch", "waited", "train_loss", "area")


class ModelStopping(tf_keras.callbacks.Callback):
    """Early stopping of each model of a :class:`fleet.training.stack.StackedModels`; all ranks decide the same.

    A model stops when its validation loss has not fallen for ``patience`` epochs, and has the weights of its best epoch
    from then on. The training ends when all models have stopped. The logs get means over the models: of the losses, and
    of the area under the curve.

    Args:
        models: Number of models.
        patience: Epochs without a lower validation loss after which a model stops.

    Attributes:
        best_loss: float64 ``[models]``: lowest validation loss; inf before the first finite one.
        best_epoch: int64 ``[models]``: number of the epoch with that loss, from 1; 0 before.
        waited: int64 ``[models]``: epochs since then, until the model stopped.
        train_loss: float64 ``[models]``: mean training loss in the best epoch.
        area: float64 ``[models]``: area under the curve of the validation rows after the best epoch.
    """

    def __init__(self, models: int, patience: int) -> None:
        """Begin with no epoch."""
        super().__init__()
        self._patience = patience
        self._epoch = 0
        self.best_loss = np.full(models, np.inf)
        self.best_epoch, self.waited = np.zeros(models, np.int64), np.zeros(models, np.int64)
        self.train_loss, self.area = np.full(models, np.nan), np.full(models, np.nan)

    @property
    def is_active(self) -> np.ndarray:
        """Bool ``[models]``, false for models that have stopped."""
        return self.waited < self._patience

    @property
    def stopped(self) -> bool:
        """True once all models have stopped."""
        return not self.is_active.any()

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values; see `callbacks.checkpoints.training_state.Stateful`."""
        return {"epoch": self._epoch} | {name: getattr(self, name).tolist() for name in _PER_MODEL}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self._epoch = int(state["epoch"])
        for name in _PER_MODEL:
            setattr(self, name, np.array(state[name], getattr(self, name).dtype))

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Read the training losses before Keras resets them, and begin new counts of scores."""
        self._train_losses = self._losses()
        self.model.scores.reset()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compare the models' validation losses with their best ones."""
        losses, areas = self._losses(), self.model.scores.areas()
        is_better = self.is_active & (losses < self.best_loss)  # NaN never is
        self.waited = np.where(is_better, 0, self.waited + self.is_active)
        self.best_loss = np.where(is_better, losses, self.best_loss)
        self.best_epoch = np.where(is_better, epoch + 1, self.best_epoch)
        self.train_loss = np.where(is_better, self._train_losses, self.train_loss)
        self.area = np.where(is_better, areas, self.area)
        self._epoch = epoch + 1
        self.model.keep_best(is_better, self.is_active)
        means = {"loss": self._train_losses, "val_loss": losses, "val_auc": areas}
        if logs is not None:
            logs |= {name: _mean(values) for name, values in means.items() if np.isfinite(values).any()}
            logs["active_models"] = float(np.count_nonzero(self.is_active))
        if self.stopped:
            self.model.stop_training = True

    def _losses(self) -> np.ndarray:
        """Return the mean losses of the epoch or validation, over all ranks, float64 ``[models]``."""
        return np.asarray(self.model.mean_losses.result(), np.float64)


def _mean(values: np.ndarray) -> float:
    return float(values[np.isfinite(values)].mean())
