"""Steps of a worker that has no row of a batch, or fewer than the others: the last one of an epoch may be smaller.

Its share is padding alone, or nothing. A mean over its rows that a user's own step or a layer computes is not a number
then: such a value counts for nothing, and a worker whose gradient has one takes no part in the step.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.python.autograph.core.ag_ctx import ControlStatusCtx, Status
from tensorflow.python.autograph.impl import api as autograph

from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models import keras3

# By thread, since the replicas of a process run their steps in threads.
_of_thread = threading.local()


def has_rows(batch: Any) -> Any:
    """Return whether a batch has a row, of a padded one a row with a weight: a tensor, or True if that is certain."""
    if isinstance(batch, PaddedBatch):
        return tf.reduce_any(batch.weight != 0)
    rows = row_count(batch)
    return True if rows is None else rows > 0


def row_count(batch: Any) -> Any:
    """Return the number of rows of a batch that has no padding, or None if that of every worker surely is the same."""
    first = tf.nest.flatten(batch)[0]
    if not tf.is_tensor(first) or first.shape.rank in (None, 0):
        return None
    # Of a graph, all workers know the same; without one, each knows its own rows, and they would decide differently.
    is_certain = first.shape[0] and not tf.executing_eagerly()
    return None if is_certain else tf.cast(tf.shape(first)[0], tf.float32)


def may_lack_rows(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a worker of a strategy may have no row of a batch; those of a coordinator have batches alone."""
    return bool(strategy.num_replicas_in_sync > 1 and not strategy._should_use_with_coordinator)


def run_step(step: Callable[[], Any], has_rows: Any, model: Any, *, rows: Any = None) -> tuple[Any, Any]:
    """Return the logs of a step, and the worker's weight among the others, a tensor, or 1.0 if it surely has a row.

    Without a row, values, metrics and moving averages that are not numbers after it count for nothing.

    Args:
        step: Computes gradients that pass through :func:`counted_gradients`, and updates metrics.
        has_rows: The return value of :func:`has_rows`.
        model: The model, of either Keras.
        rows: The worker's weight, the number of its rows. Without it a worker weighs 1, and 0 if it has no row and
            its gradient is not a number.
    """
    if has_rows is True:
        return step(), 1.0
    before = [[(variable, tf.identity(variable)) for variable in of] for of in _states(model)]
    _of_thread.has_rows, _of_thread.rows = has_rows, rows
    try:
        logs = step()
    finally:
        _of_thread.has_rows = True

    def put_back() -> tf.Tensor:
        for state in before:
            is_finite = _are_finite([tf.identity(variable) for variable, _ in state])
            for variable, value in state:
                variable.assign(tf.where(is_finite, tf.identity(variable), value))
        return tf.constant(True)

    tf.cond(has_rows, lambda: tf.constant(True), put_back)
    values = [value for value in tf.nest.flatten(logs) if isinstance(value, tf.Tensor)]
    weight = tf.cast(tf.logical_or(has_rows, _are_finite(values)), tf.float32) if rows is None else rows
    if not isinstance(logs, dict):
        return counted(logs, has_rows), weight
    # The step has read metrics before they were put back.
    again = {one.name: one.result for one in model.metrics}
    return {name: counted(value, has_rows, again.get(name)) for name, value in logs.items()}, weight


def _states(model: Any) -> list[list[Any]]:
    """Return the variables of each metric, and those of each layer that a worker computes from its own rows."""
    metrics = [keras3.tf_variables(metric.variables) for metric in model.metrics]
    known = {id(variable) for metric in metrics for variable in metric}  # to tf-keras a metric is a layer
    of_layer = "_non_trainable_variables" if keras3.is_keras3(model) else "_non_trainable_weights"
    layers = [keras3.tf_variables(getattr(layer, of_layer)) for layer in model._flatten_layers()]
    own = [[one for one in layer if id(one) not in known and _is_local(one)] for layer in layers]
    return metrics + [layer for layer in own if layer]


def _is_local(variable: Any) -> bool:
    """Return whether a variable is a number, and one that a worker may set without the others."""
    is_shared = isinstance(variable, tf.distribute.DistributedValues)
    is_own = not is_shared or variable.synchronization == tf.VariableSynchronization.ON_READ
    # A layer of a vocabulary has its table among its weights, which has no type.
    dtype = getattr(variable, "dtype", None)
    return dtype is not None and bool(dtype.is_floating and is_own)


def counted(value: Any, has_rows: Any, otherwise: Callable[[], Any] | None = None) -> Any:
    """Return a value; of a worker without a row, 0 or the result of ``otherwise`` for one that is not a number."""
    if has_rows is True or not isinstance(value, tf.Tensor) or not value.dtype.is_floating:
        return value
    other = tf.zeros_like(value) if otherwise is None else tf.cast(otherwise(), value.dtype)
    return tf.where(tf.logical_or(has_rows, tf.math.is_finite(value)), value, other)


def counted_gradients(gradients: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return the gradients that a worker adds to those of the others, times its weight, and the weight.

    Both are those of :func:`run_step`; the weight is None if all workers surely weigh the same.

    Args:
        gradients: Gradients of the step that runs: tensors or ``tf.IndexedSlices``.
    """
    has_rows = getattr(_of_thread, "has_rows", True)
    if has_rows is True or not gradients:
        return list(gradients), None
    values = [one.values if isinstance(one, tf.IndexedSlices) else one for one in gradients]
    if (weight := _of_thread.rows) is None:
        takes_part = tf.cond(has_rows, lambda: tf.constant(True), lambda: _are_finite(values))
        # Only a branch that is taken costs a copy.
        kept = tf.cond(takes_part, lambda: values, lambda: [tf.zeros_like(one) for one in values])
        weight = tf.cast(takes_part, tf.float32)
    else:
        kept = [_times(one, weight) for one in values]
    return [_with_values(one, own) for one, own in zip(gradients, kept, strict=True)], weight


def count_gradients(optimizer: Any) -> None:
    """Make an optimizer of tf-keras, which sums the workers' gradients, take :func:`counted_gradients`."""
    plain = optimizer.apply_gradients
    if getattr(plain, "counts", False):
        return

    def apply_gradients(grads_and_vars: Iterable[tuple[Any, Any]], *args: Any, **kwargs: Any) -> Any:
        pairs = list(grads_and_vars)
        counted = iter(counted_gradients([gradient for gradient, _ in pairs if gradient is not None])[0])
        kept = [(None if gradient is None else next(counted), variable) for gradient, variable in pairs]
        return plain(kept, *args, **kwargs)

    apply_gradients.counts = True  # type: ignore[attr-defined]
    optimizer.apply_gradients = apply_gradients


def guard_steps(model: Any) -> None:
    """Make the user's own steps of a tf-keras model, which takes batches of any form, allow for one without a row."""
    if not has_own_step(model):
        return
    for optimizer in optimizers_of(model, tf_keras.optimizers.Optimizer):  # new ones if it was compiled again
        count_gradients(optimizer)
    if getattr(model.train_step, "is_guarded", False):
        return
    model.train_step, model.test_step = (_guarded(model, step) for step in (model.train_step, model.test_step))


def _guarded(model: Any, step: Any) -> Callable[[Any], Any]:
    plain = code_of(step)

    def guarded(batch: Any) -> Any:
        return run_step(functools.partial(plain, batch), has_rows(batch), model)[0]

    guarded.is_guarded = True  # type: ignore[attr-defined]
    return guarded


def code_of(step: Any) -> Callable[[Any], Any]:
    """Return the Python code of a step that is a function of TensorFlow, with its conditions; any other step unchanged.

    The function would keep tensors of the graph in which it is traced first.
    """
    code = getattr(step, "python_function", None)
    if code is None:
        return step
    converted = autograph.convert(recursive=True, user_requested=True)(code)

    def with_conditions(batch: Any) -> Any:
        with ControlStatusCtx(Status.ENABLED):  # which Keras 3 switches off
            return converted(batch)

    return with_conditions


def optimizers_of(model: Any, kind: Any) -> list[Any]:
    """Return the compiled optimizer, and those of a kind that the model keeps for parts of itself, as a GAN does."""
    values = (value if isinstance(value, list | tuple) else [value] for value in vars(model).values())
    own = [one for some in values for one in some if isinstance(one, kind)]
    return list({id(one): one for one in (model.optimizer, *own)}.values())


def has_own_step(model: Any) -> bool:
    """Return whether a model computes its loss or its step by code of the user's own."""
    names = ("train_step", "test_step", "compute_loss")
    packages = {str(getattr(type(model), name).__module__).partition(".")[0] for name in names}
    return not packages <= {"keras", "tf_keras", "mirrorspark"}


def _are_finite(values: Sequence[Any]) -> Any:
    floating = [value for value in values if value.dtype.is_floating]
    return tf.reduce_all([tf.constant(True), *(tf.reduce_all(tf.math.is_finite(value)) for value in floating)])


def _times(values: Any, weight: Any) -> Any:
    """Return ``values`` times ``weight``, and 0 for a weight of 0, whatever they are."""
    if values.dtype in (tf.float16, tf.bfloat16):
        values = tf.cast(values, tf.float32)  # whose range has room for thousands of rows
    return tf.math.multiply_no_nan(values, tf.cast(weight, values.dtype))


def _with_values(gradient: Any, values: Any) -> Any:
    if not isinstance(gradient, tf.IndexedSlices):
        return values
    return type(gradient)(values, gradient.indices, gradient.dense_shape)
