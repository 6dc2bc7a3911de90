"""The steps of a Keras 3 model on several workers: their losses, gradients and padding.

Within a step Keras counts one replica: a loss is the mean over the worker's rows, and the optimizer applies the means
of the workers' gradients, in which a worker weighs as many rows as it has. So clipping, loss scaling and accumulation
see the gradient of the whole batch, and a ``train_step`` or ``compute_loss`` of the user's own that is a mean over rows
computes what it does in one process. A loss object of Keras that is a sum, or a mean by the weights, comes out as that
over the rows of all workers wherever it is called.
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
        _replace(model, _weight_in_step=tf.Variable(1.0, trainable=False))
        for name in ("train_step", "test_step"):
            setattr(model, name, _shared(model, getattr(model, name)))
        _replace(
            model,
            _has_shared_steps=True,
            _get_metrics_result_or_logs=_of_all_workers(model),
            _maybe_symbolic_build=_built_by_own_batch(model),
        )
    model._weight_in_step.assign(1.0)  # an earlier fit may have ended with another


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
        weight = strategy.reduce(tf.distribute.ReduceOp.SUM, model._weight_in_step, axis=None) if numbers else 1.0
        for name, value in numbers.items():  # in the same order on all ranks
            own = tf.cast(value, tf.float32) * model._weight_in_step
            flat[name] = strategy.reduce(tf.distribute.ReduceOp.SUM, own, axis=None) / tf.maximum(weight, 1.0)
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
        rows = None if is_alone or isinstance(batch, PaddedBatch) else absent_rows.row_count(batch)
        with as_one_replica():
            logs, weight = absent_rows.run_step(functools.partial(counted, batch, rows), has_rows, model, rows=rows)
        if tf.is_tensor(weight):
            model._weight_in_step.assign(weight)
        return logs

    def counted(batch: Any, rows: Any) -> Any:
        if not isinstance(batch, PaddedBatch):
            if finds_candidates:
                _replace(model, _inputs_of_steps=_any_rows(keras.utils.unpack_x_y_sample_weight(batch)[0]))
            others = _Workers(workers, rows)
            with _losses_of_all_workers(model, others, 1.0), _losses_of_outputs(model, others):
                return plain(batch)
        scale, rows = batch.scale, tf.cast(tf.shape(batch.weight)[0], tf.float32) / batch.scale
        if hasattr(model, "own_rows"):  # which sees no padding
            scale *= tf.reduce_mean(tf.cast(batch.weight > 0, tf.float32))
        of_all = _losses_of_all_workers(model, _Workers(workers), scale)
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
        rows: This worker's weight in the means; None if all weigh the same.
    """

    def __init__(self, count: int, rows: Any = None) -> None:
        self._count, self._rows = count, rows

    def summed(self, value: Any) -> Any:
        """Return the multiple of a value whose mean over the workers is the sum of their values."""
        factor, _ = self._of_all()
        return value * tf.cast(factor, value.dtype)

    def averaged(self, value: Any, weight: Any) -> Any:
        """Return the multiple of a value whose mean over the workers is the mean of their values by ``weight``."""
        factor, totals = self._of_all(weight)
        return value * tf.cast(factor * tf.math.divide_no_nan(weight, totals[0]), value.dtype)

    @property
    def surely_weigh_the_same(self) -> bool:
        """True if their weights need not be exchanged."""
        return self._rows is None

    def part(self) -> Any:
        """Return this worker's part of their weight."""
        return tf.math.reciprocal_no_nan(tf.convert_to_tensor(self._of_all()[0], tf.float32))

    def _of_all(self, *weights: Any) -> tuple[Any, Sequence[Any]]:
        """Return the quotient of all workers' weight and this one's in a mean, and the sums of other weights."""
        own = () if self._rows is None else (self._rows,)
        sums: Sequence[Any] = (*own, *weights)
        replica = tf.distribute.get_replica_context()
        if sums and replica is not None:
            sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, [tf.stop_gradient(weight) for weight in sums])
        if self._rows is None:
            return float(self._count), sums
        return tf.math.divide_no_nan(sums[0], self._rows), sums[1:]


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
            return workers.summed(value)
        if loss.reduction == "mean_with_sample_weight":
            weight = tf.shape(y_true)[0] if sample_weight is None else tf.reduce_sum(sample_weight)
            return workers.averaged(value, tf.cast(weight, tf.float32))
        if loss.reduction not in _MEANS:
            return value
        # A loss of no row, whose scale is 0, may be 0/0.
        return tf.math.multiply_no_nan(value, tf.cast(scale, value.dtype))

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = of_model(*args, **kwargs)
        if not len(getattr(loss, "shape", ())):
            return loss
        value = tf.stop_gradient(loss)
        return value + workers.summed(loss - value)

    keras.losses.Loss.__call__ = call
    _replace(model, compute_loss=compute_loss)
    try:
        yield
    finally:
        keras.losses.Loss.__call__ = plain
        _replace(model, compute_loss=of_model)


@contextlib.contextmanager
def _losses_of_outputs(model: Any, workers: _Workers) -> Iterator[None]:
    """Let the shown loss of each output of a model with several count this worker by its weight, in the block.

    Of batches with any number of rows Keras counts each once, which would make that of a worker without a row a 0.
    """
    trackers = getattr(getattr(model, "_compile_loss", None), "metrics", [])
    if not trackers or workers.surely_weigh_the_same:
        yield
        return
    part = workers.part()
    for tracker in trackers:
        _replace(tracker, update_state=_counting(tracker.update_state, part))
    try:
        yield
    finally:
        for tracker in trackers:
            object.__delattr__(tracker, "update_state")


def _counting(update_state: Callable[..., None], part: Any) -> Callable[..., None]:
    return lambda values, sample_weight=None: update_state(values, sample_weight=part)


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
    """Return the means of the workers' gradients, each by its weight in the step."""
    if not gradients:
        return ()
    given, weight = absent_rows.counted_gradients(gradients)
    if weight is None:
        return replica.all_reduce(tf.distribute.ReduceOp.MEAN, given)
    *sums, total = replica.all_reduce(tf.distribute.ReduceOp.SUM, [*given, weight])
    return [_divided(one, tf.maximum(total, 1.0), own.dtype) for one, own in zip(sums, gradients, strict=True)]


def _divided(gradient: Any, by: Any, dtype: Any) -> Any:
    """Return a gradient divided by a number, as values of ``dtype``."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(_divided(gradient.values, by, dtype), gradient.indices, gradient.dense_shape)
    return tf.cast(gradient / tf.cast(by, gradient.dtype), dtype)


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
