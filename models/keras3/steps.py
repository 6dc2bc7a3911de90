"""The steps of a Keras 3 model on several workers: their losses, gradients and padding.

Within a step Keras counts one replica: a loss is the mean over the worker's rows, and the optimizer applies the means
of the workers' gradients. So clipping, loss scaling and accumulation see the gradient of the whole batch, and a
``train_step`` or ``compute_loss`` of the user's own computes what it does in one process. A loss object of Keras that
is a sum, or a mean by the weights, comes out as that over the rows of all workers wherever it is called.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileMetrics  # what `compile` makes of metrics

from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models.fitting import absent_rows
from mirrorspark.models.keras3.model import inputs_of
from mirrorspark.models.keras3.retrieval import retrieval_layer

_MEANS = ("sum_over_batch_size", "mean")


def share_steps(model: Any) -> None:
    """Make the steps of a compiled model those of one worker among several, whose gradients are averaged."""
    for optimizer in absent_rows.optimizers_of(model, keras.optimizers.Optimizer):
        _average_gradients(optimizer)
    if not getattr(model, "_has_shared_steps", False):  # of an earlier fit, or an earlier compilation
        _replace(model, _takes_part=tf.Variable(1.0, trainable=False))
        for name in ("train_step", "test_step"):
            setattr(model, name, _shared(model, getattr(model, name)))
        _replace(
            model,
            _has_shared_steps=True,
            _get_metrics_result_or_logs=_of_all_workers(model),
            _maybe_symbolic_build=_built_by_own_batch(model),
        )


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


def _built_by_own_batch(model: Any) -> Callable[..., None]:
    """Return the function that creates the last variables before ``fit``, from this worker's first batch.

    Keras would take the mean of all workers' batches, which truth values and texts do not have.
    """
    plain, strategy = model._maybe_symbolic_build, model.distribute_strategy

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is None or not hasattr(strategy, "as_one_replica"):
            plain(iterator, data_batch)
            return
        _, _, batches = next(iter(iterator))
        local = tf.nest.map_structure(lambda one: strategy.experimental_local_results(one)[0], next(batches))
        plain(data_batch=local)

    return build


def _shared(model: Any, step: Any) -> Callable[[Any], Any]:
    """Return a step that takes a ``PaddedBatch`` or any other batch, maybe without a row, and counts one replica."""
    plain = absent_rows.code_of(step)
    strategy = model.distribute_strategy
    as_one_replica = getattr(strategy, "as_one_replica", contextlib.nullcontext)
    is_alone = not absent_rows.may_lack_rows(strategy)
    workers, finds_candidates = strategy.num_replicas_in_sync, retrieval_layer(model)[0] is not None

    def shared(batch: Any) -> Any:
        # A compiled loss of padding is 0.
        sees_padding = isinstance(batch, PaddedBatch) and not hasattr(model, "own_rows")
        is_certain = is_alone or (sees_padding and not absent_rows.has_own_step(model))
        has_rows = True if is_certain else absent_rows.has_rows(batch)
        # Losses of padded batches are already parts of a mean over all workers.
        needs_rows = not isinstance(batch, PaddedBatch)
        with as_one_replica():
            step = functools.partial(counted, batch, has_rows)
            logs, takes_part = absent_rows.run_step(step, has_rows, model, needs_rows=needs_rows)
        if takes_part is not True:
            model._takes_part.assign(tf.cast(takes_part, tf.float32))
        return logs

    def counted(batch: Any, has_rows: Any) -> Any:
        if not isinstance(batch, PaddedBatch):
            if finds_candidates:
                _replace(model, _inputs_of_steps=_any_rows(keras.utils.unpack_x_y_sample_weight(batch)[0]))
            with _losses_of_all_workers(model, _Workers(workers, has_rows), 1.0):
                return plain(batch)
        scale, rows = batch.scale, tf.cast(tf.shape(batch.weight)[0], tf.float32) / batch.scale
        if hasattr(model, "own_rows"):  # which sees no padding
            scale *= tf.reduce_mean(tf.cast(batch.weight > 0, tf.float32))
        of_all = _losses_of_all_workers(model, _Workers(workers, True), scale)
        with of_all, _weighted(model._loss_tracker, scale, rows):
            return plain(plain_batch(model, batch))

    return shared


def _any_rows(inputs: Any) -> Any:
    """Return the specifications of inputs with any number of rows."""
    return tf.nest.map_structure(lambda one: tf.TensorSpec([None, *one.shape[1:]], one.dtype), inputs)


def plain_batch(model: Any, batch: PaddedBatch) -> tuple[Any, Any, Any]:
    """Return the inputs, label and weights of a batch, or of its specification, in the form that the model takes."""
    if hasattr(model, "own_rows"):
        given: tuple[Any, Any, Any] = model.own_rows.of_batch(batch)
        return given
    label = batch.label
    if getattr(model, "has_column", False) and label.shape.rank == 1:
        rows = label.shape[0]
        label = tf.TensorSpec([rows, 1], label.dtype) if isinstance(label, tf.TensorSpec) else label[:, tf.newaxis]
    return inputs_of(model, batch.features), label, batch.weight


class _Workers:
    """The workers whose gradients are averaged in a step.

    Args:
        count: Number of workers.
        has_rows: True if all of them take part in the step; else a tensor, whether this one does.
    """

    def __init__(self, count: int, has_rows: Any) -> None:
        self._count, self._has_rows = count, has_rows

    def times(self, value: Any) -> Any:
        """Return a value that is multiplied by their number: its mean over them is then its sum."""
        return value * tf.cast(self._sums()[0], value.dtype)

    def share_of(self, weight: Any) -> Any:
        """Return this worker's ``weight`` divided by their mean one."""
        count, total = self._sums(weight)
        return tf.math.divide_no_nan(weight * count, total)

    def _sums(self, *weights: Any) -> Sequence[Any]:
        """Return their number, and the sum of each weight over them."""
        if self._has_rows is not True:
            weights = (tf.cast(self._has_rows, tf.float32), *weights)
        replica = tf.distribute.get_replica_context()
        if weights and replica is not None:
            weights = replica.all_reduce(tf.distribute.ReduceOp.SUM, [tf.stop_gradient(weight) for weight in weights])
        return weights if self._has_rows is not True else (float(self._count), *weights)


@contextlib.contextmanager
def _losses_of_all_workers(model: Any, workers: _Workers, scale: Any) -> Iterator[None]:
    """Let losses in the block be such that their means over the workers are the losses of all rows.

    Args:
        model: Its losses of rows get the gradient of their sum.
        workers: The workers whose gradients are averaged.
        scale: Factor of a mean over this worker's rows, with their padding.
    """
    plain, of_model = keras.losses.Loss.__call__, model.compute_loss
    outer: list[Any] = []

    def call(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if outer:  # a part of another loss
            return plain(loss, y_true, y_pred, sample_weight)
        outer.append(loss)
        try:
            value = plain(loss, y_true, y_pred, sample_weight)
        finally:
            outer.pop()
        if loss.reduction not in (None, "none") and tuple(value.shape) == (0,):
            value = tf.reduce_sum(value)  # Keras reduces no losses that surely are none
        if loss.reduction == "sum":
            return workers.times(value)
        if loss.reduction == "mean_with_sample_weight":
            weight = tf.shape(y_true)[0] if sample_weight is None else tf.reduce_sum(sample_weight)
            return value * tf.cast(workers.share_of(tf.cast(weight, tf.float32)), value.dtype)
        if loss.reduction not in _MEANS:
            return value
        # A loss of no row, whose scale is 0, may be 0/0.
        return tf.math.multiply_no_nan(value, tf.cast(scale, value.dtype))

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = of_model(*args, **kwargs)
        if not len(getattr(loss, "shape", ())):
            return loss
        value = tf.stop_gradient(loss)
        return value + workers.times(loss - value)

    keras.losses.Loss.__call__ = call
    _replace(model, compute_loss=compute_loss)
    try:
        yield
    finally:
        keras.losses.Loss.__call__ = plain
        _replace(model, compute_loss=of_model)


@contextlib.contextmanager
def _weighted(tracker: Any, scale: Any, rows: Any) -> Iterator[None]:
    """Let a tracker of losses count a batch by its rows that are not padding, in the block."""
    is_ours = isinstance(tracker, _MeanOfRealRows)
    if is_ours:
        tracker.of_batch = scale, rows
    try:
        yield
    finally:
        if is_ours:
            tracker.of_batch = None


class _MeanOfRealRows(keras.metrics.Mean):
    """The mean of the losses of batches, each of which counts by its rows that are not padding.

    Attributes:
        of_batch: The scale of a mean over the rows in hand, and the worker's part of the rows of all workers.
    """

    of_batch: Any = None

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Add the loss of a batch, or the losses of its rows."""
        if self.of_batch is not None:
            scale, sample_weight = self.of_batch
            if tf.convert_to_tensor(values).shape.rank:
                values = tf.reduce_mean(values) * tf.cast(scale, values.dtype)
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
