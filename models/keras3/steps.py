"""The steps of a Keras 3 model on several workers: their losses, gradients and padding.

Within a step Keras counts one replica: a loss is the mean over the worker's rows, and the optimizer applies the means
of the workers' gradients. So clipping, loss scaling and accumulation see the gradient of the whole batch, and a
``train_step`` or ``compute_loss`` of the user's own computes what it does in one process.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics  # what `compile` makes of losses and metrics

from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models.fitting import absent_rows
from mirrorspark.models.keras3.model import inputs_of

_MEANS = ("sum_over_batch_size", "mean")


def share_steps(model: Any) -> None:
    """Make the steps of a compiled model those of one worker among several, whose gradients are averaged."""
    for optimizer in absent_rows.optimizers_of(model, keras.optimizers.Optimizer):
        _average_gradients(optimizer)
    losses = model._compile_loss
    if losses is not None and not isinstance(losses, _LossesOfRealRows):
        workers = model.distribute_strategy.num_replicas_in_sync
        _replace(model, _compile_loss=_LossesOfRealRows(losses, workers))
    if not getattr(model, "_has_shared_steps", False):  # of an earlier fit, or an earlier compilation
        _replace(model, _takes_part=tf.Variable(1.0, trainable=False))
        for name in ("train_step", "test_step"):
            setattr(model, name, _shared(model, getattr(model, name)))
        _replace(model, _has_shared_steps=True, _get_metrics_result_or_logs=_of_all_workers(model))


def _of_all_workers(model: Any) -> Callable[[Any], Any]:
    """Return the function from the last step's logs to those of ``fit``, which are equal on all workers.

    They are metrics over all rows, and means of other numbers. Different ones would stop ranks at different epochs.
    """

    def whole(logs: Any) -> Any:
        if not isinstance(logs, Mapping):
            return logs
        flat: dict[str, Any] = {}
        for name, value in logs.items():
            flat |= value if isinstance(value, Mapping) else {name: value}
        metrics = {name: value for name, value in model.get_metrics_result().items() if name in flat}
        numbers = {name: value for name, value in flat.items() if name not in metrics and np.ndim(value) == 0}
        strategy = model.distribute_strategy
        workers = strategy.reduce(tf.distribute.ReduceOp.SUM, model._takes_part, axis=None) if numbers else 1.0
        for name, value in numbers.items():  # in the same order on all ranks
            own = tf.cast(value, tf.float32) * model._takes_part
            flat[name] = strategy.reduce(tf.distribute.ReduceOp.SUM, own, axis=None) / tf.maximum(workers, 1.0)
        return flat | metrics

    return whole


def count_real_rows(model: Any, weighted_metrics: Any) -> None:
    """Have padding, rows of weight 0, count in no metric and not in the loss of an epoch; before :func:`share_steps`.

    Args:
        model: A compiled model.
        weighted_metrics: Its metrics from now on, in any form of Keras; None for none.
    """
    names = getattr(model, "output_names", None)
    with model.distribute_strategy.scope():
        metrics = CompileMetrics(None, weighted_metrics, output_names=names) if weighted_metrics else None
        _replace(model, _compile_metrics=metrics, _loss_tracker=_MeanOfRealRows(name="loss"))


def _replace(model: Any, **attributes: Any) -> None:
    for name, value in attributes.items():
        object.__setattr__(model, name, value)  # Keras' own would list losses and metrics twice


def _shared(model: Any, step: Any) -> Callable[[Any], Any]:
    """Return a step that takes a ``PaddedBatch`` or any other batch, maybe without a row, and counts one replica."""
    # A function of its own would keep the scale of the batch in which it is traced first.
    plain = getattr(step, "python_function", step)
    as_one_replica = getattr(model.distribute_strategy, "as_one_replica", contextlib.nullcontext)
    is_alone = not absent_rows.may_lack_rows(model.distribute_strategy)

    def shared(batch: Any) -> Any:
        # A compiled loss of padding is 0.
        is_certain = is_alone or (isinstance(batch, PaddedBatch) and not absent_rows.has_own_step(model))
        has_rows = True if is_certain else absent_rows.has_rows(batch)
        # Losses of padded batches, and sums, are already parts of a mean over all workers.
        needs_rows = not isinstance(batch, PaddedBatch) and not getattr(model._compile_loss, "has_sum", False)
        with as_one_replica():
            step = functools.partial(scaled, batch)
            logs, takes_part = absent_rows.run_step(step, has_rows, model.metrics, needs_rows=needs_rows)
        if takes_part is not True:
            model._takes_part.assign(tf.cast(takes_part, tf.float32))
        return logs

    def scaled(batch: Any) -> Any:
        if not isinstance(batch, PaddedBatch):
            return plain(batch)
        parts = [one for one in (model._compile_loss, model._loss_tracker) if hasattr(one, "scale")]
        with _scaled_by(batch.scale, parts):
            return plain(plain_batch(model, batch))

    return shared


def plain_batch(model: Any, batch: PaddedBatch) -> tuple[Any, Any, Any]:
    """Return the inputs, label and weights of a batch, or of its specification, in the form that the model takes."""
    label = batch.label
    if getattr(model, "has_column", False) and label.shape.rank == 1:
        rows = label.shape[0]
        label = tf.TensorSpec([rows, 1], label.dtype) if isinstance(label, tf.TensorSpec) else label[:, tf.newaxis]
    return inputs_of(model, batch.features), label, batch.weight


@contextlib.contextmanager
def _scaled_by(scale: Any, parts: Sequence[Any]) -> Iterator[None]:
    for part in parts:
        part.scale = scale
    try:
        yield
    finally:
        for part in parts:
            part.scale = None


class _LossesOfRealRows(CompileLoss):
    """Compiled losses, of which each that is a mean is one over the rows that are not padding."""

    scale: Any = None
    has_sum = False

    def __init__(self, compiled: Any, workers: int) -> None:
        super().__init__(compiled._user_loss, compiled._user_loss_weights, output_names=compiled.output_names)
        self._workers = workers

    def build(self, y_true: Any, y_pred: Any) -> None:
        super().build(y_true, y_pred)
        built: Any = self._flat_losses
        self.has_sum = any(one.loss.reduction == "sum" for one in built)
        self._flat_losses: Any = [one._replace(loss=self._of_real_rows(one.loss)) for one in built]

    def _of_real_rows(self, loss: Any) -> Callable[..., Any]:
        def of_real_rows(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            value = loss(y_true, y_pred, sample_weight)
            if loss.reduction == "sum":  # Gradients are averaged, and this one is to be summed.
                return value * tf.cast(self._workers, value.dtype)
            is_scaled = self.scale is not None and loss.reduction in _MEANS
            return value * tf.cast(self.scale, value.dtype) if is_scaled else value

        return of_real_rows


class _MeanOfRealRows(keras.metrics.Mean):
    """The mean of the losses of batches, each of which counts by its rows that are not padding."""

    scale: Any = None

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Add the loss of a batch of ``sample_weight`` rows."""
        if sample_weight is not None and self.scale is not None:
            sample_weight = tf.cast(sample_weight, self.dtype) / tf.cast(self.scale, self.dtype)
        super().update_state(values, sample_weight)


def _means(replica: Any, gradients: Sequence[Any]) -> Sequence[Any]:
    """Return the means of the gradients of the workers that take part in the step."""
    if not gradients:
        return ()
    given, takes_part = absent_rows.counted_gradients(gradients)
    if takes_part is True:
        return replica.all_reduce(tf.distribute.ReduceOp.MEAN, given)
    *sums, workers = replica.all_reduce(tf.distribute.ReduceOp.SUM, [*given, tf.cast(takes_part, tf.float32)])
    workers = tf.maximum(workers, 1.0)
    return [
        tf.IndexedSlices(one.values / tf.cast(workers, one.dtype), one.indices, one.dense_shape)
        if isinstance(one, tf.IndexedSlices)
        else one / tf.cast(workers, one.dtype)
        for one in sums
    ]


def _average_gradients(optimizer: Any) -> None:
    """Make ``optimizer`` apply the means of all replicas' gradients, before it clips or inspects them."""
    plain = optimizer.apply
    if getattr(plain, "averages", False):
        return

    def apply(grads: Sequence[Any], trainable_variables: Any = None) -> Any:
        replica = tf.distribute.get_replica_context()
        if replica is not None:
            means = iter(_means(replica, [gradient for gradient in grads if gradient is not None]))
            grads = [None if gradient is None else next(means) for gradient in grads]
        return plain(grads, trainable_variables)

    apply.averages = True  # type: ignore[attr-defined]
    optimizer.apply = apply
    # The one that Keras' loss scaling wraps is the one that would sum them once more.
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner._all_reduce_sum_gradients = lambda pairs: pairs
