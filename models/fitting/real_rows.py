"""Keras' losses as means over the rows that are not padding.

A batch that is not full is filled up with rows of weight 0. Keras divides the sum of its losses by all rows, so the
loss and the gradient of such a batch would be too small, and the epoch's loss would count it as a full one.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.engine.compile_utils import LossesContainer  # what `Model.compile` makes of its losses

from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models.fitting import absent_rows

_MEANS = (tf_keras.losses.Reduction.AUTO, tf_keras.losses.Reduction.SUM_OVER_BATCH_SIZE)


def count_real_rows(model: tf_keras.Model) -> None:
    """Make the steps of a compiled model take a ``PaddedBatch``, and its losses means over the rows without padding.

    Its loss is then the sum of the rows' weighted losses divided by the number of these rows, over all workers; so is
    its gradient, and ``loss`` is the mean over all rows of an epoch. Other batches are used as before. A loss that is a
    sum by its ``reduction``, and one that a ``train_step`` of its own computes, stay as they are; on a ring a mean that
    such a step computes is multiplied by :func:`share_in_hand`.

    Args:
        model: A compiled model.
    """
    with model.distribute_strategy.scope():  # of the metric's variables, as in `Model.compile`
        losses = _LossesOfRealRows(model.compiled_loss)
    model.compiled_loss = losses
    if absent_rows.has_own_step(model):
        for optimizer in absent_rows.optimizers_of(model, tf_keras.optimizers.Optimizer):
            absent_rows.count_gradients(optimizer)
    model.train_step, model.test_step = losses.within(model, model.train_step), losses.within(model, model.test_step)


# By thread, since the replicas of a process run their steps in threads, which take turns within a step.
_of_thread = threading.local()


def scale_in_hand() -> Any:
    """Return the scale of the batch of the step that runs; 1.0 if it has none."""
    scale = getattr(_of_thread, "scale", None)
    return 1.0 if scale is None else scale


def share_in_hand() -> Any:
    """Return the share of a mean over this replica's rows in that over all rows of the step."""
    share = getattr(_of_thread, "share", None)
    return scale_in_hand() / tf.distribute.get_strategy().num_replicas_in_sync if share is None else share


@contextlib.contextmanager
def share_of_rows(share: Any) -> Iterator[None]:
    """Let :func:`share_in_hand` return ``share`` in the block, whose rows are not those of the batch."""
    _of_thread.share = share
    try:
        yield
    finally:
        _of_thread.share = None


class _LossesOfRealRows(LossesContainer):
    """Losses by Keras' rules, of which each that is a mean is scaled to the rows that are not padding."""

    def __init__(self, compiled: LossesContainer) -> None:
        super().__init__(
            compiled._user_losses,
            compiled._user_loss_weights,
            compiled._output_names,
            total_loss_mean=_MeanOfRealRows("loss", self),
        )

    @property
    def scale(self) -> Any:
        """The scale of the batch in hand, or None."""
        return getattr(_of_thread, "scale", None)

    def within(self, model: tf_keras.Model, step: Any) -> Any:
        """Return the model's ``step``, which is given a batch without its scale; losses are scaled meanwhile."""
        is_own = absent_rows.has_own_step(model) and absent_rows.may_lack_rows(model.distribute_strategy)
        # A function would keep the scale of the graph in which it is traced first, so there it has to be an argument.
        is_function = isinstance(step, tf.types.experimental.PolymorphicFunction)
        plain = step.python_function if is_function else step

        def scaled(batch: Any) -> Any:
            if not isinstance(batch, PaddedBatch):
                return plain(batch)
            # The losses of Keras are 0 of padding alone.
            has_rows = absent_rows.has_rows(batch) if is_own else True
            with self._scaled_by(batch.scale):
                rows = batch.features, batch.label, batch.weight
                return absent_rows.run_step(functools.partial(plain, rows), has_rows, model)[0]

        return tf.function(scaled) if is_function else scaled

    @contextlib.contextmanager
    def _scaled_by(self, scale: Any) -> Iterator[None]:
        _of_thread.scale = scale
        try:
            yield
        finally:
            _of_thread.scale = None

    def _get_loss_object(self, loss: Any) -> Any:
        found = super()._get_loss_object(loss)
        return None if found is None else _LossOfRealRows(found, self)

    def _create_metrics(self) -> None:
        super()._create_metrics()
        made: list[Any] = self._per_output_metrics
        self._per_output_metrics: list[Any] = [metric and _MeanOfRealRows(metric.name, self) for metric in made]


class _LossOfRealRows:
    """A loss object, whose mean over the rows of a batch becomes one over those that are not padding."""

    def __init__(self, loss: tf_keras.losses.Loss, losses: _LossesOfRealRows) -> None:
        self._loss, self._losses = loss, losses
        self.reduction = loss.reduction

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        value, scale = self._loss(y_true, y_pred, sample_weight=sample_weight), self._losses.scale
        return value if scale is None or self.reduction not in _MEANS else value * tf.cast(scale, value.dtype)


class _MeanOfRealRows(tf_keras.metrics.Mean):
    """The mean of the losses of batches, each of which counts by its rows that are not padding."""

    def __init__(self, name: str, losses: _LossesOfRealRows) -> None:
        super().__init__(name=name)
        self._losses = losses

    def update_state(self, values: Any, sample_weight: Any = None) -> Any:
        """Add the loss of a batch of ``sample_weight`` rows."""
        scale = self._losses.scale
        if sample_weight is not None and scale is not None:
            sample_weight = tf.cast(sample_weight, self.dtype) / tf.cast(scale, self.dtype)
        return super().update_state(values, sample_weight)
