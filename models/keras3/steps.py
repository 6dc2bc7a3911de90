"""The steps of a Keras 3 model on several workers: their losses, gradients and padding.

Within a step Keras counts one replica: a loss is the mean over the worker's rows, and the optimizer applies the means
of the workers' gradients. So clipping, loss scaling and accumulation see the gradient of the whole batch, and a
``train_step`` or ``compute_loss`` of the user's own computes what it does in one process. A loss object of Keras that
is a sum, or a mean by the weights, comes out as that over the rows of all workers wherever it is called.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.compile_utils import CompileMetrics  # what `compile` makes of metrics

from mirrorspark.data_pipelines.reading import PaddedBatch
from mirrorspark.models.keras3.model import inputs_of
from mirrorspark.models.keras3.rows import retrieval_layer

_MEANS = ("sum_over_batch_size", "mean")


def share_steps(model: Any) -> None:
    """Make the steps of a compiled model those of one worker among several, whose gradients are averaged."""
    for optimizer in _optimizers(model):
        _average_gradients(optimizer)
    if not getattr(model, "_has_shared_steps", False):  # of an earlier fit, or an earlier compilation
        for name in ("train_step", "test_step"):
            setattr(model, name, _shared(model, getattr(model, name)))
        _replace(
            model,
            _has_shared_steps=True,
            _get_metrics_result_or_logs=_of_all_workers(model),
            _maybe_symbolic_build=_built_by_own_batch(model),
            compute_loss=_summed_over_workers(model),
        )


def _optimizers(model: Any) -> list[Any]:
    """Return the compiled optimizer, and those that the model keeps for parts of itself, as a GAN does."""
    values = (value if isinstance(value, list | tuple) else [value] for value in vars(model).values())
    own = [one for some in values for one in some if isinstance(one, keras.optimizers.Optimizer)]
    return list({id(one): one for one in (model.optimizer, *own)}.values())


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
        for name, value in numbers.items():  # in the same order on all ranks
            flat[name] = strategy.reduce(tf.distribute.ReduceOp.MEAN, tf.cast(value, tf.float32), axis=None)
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


def _summed_over_workers(model: Any) -> Callable[..., Any]:
    """Return the model's ``compute_loss``, in which a loss of each row has the gradient of the sum over all workers."""
    plain, workers = model.compute_loss, model.distribute_strategy.num_replicas_in_sync

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = plain(*args, **kwargs)
        if not len(getattr(loss, "shape", ())):
            return loss
        return loss + (workers - 1) * (loss - tf.stop_gradient(loss))  # Gradients are averaged, and values not summed.

    return compute_loss


def _shared(model: Any, step: Any) -> Callable[[Any], Any]:
    """Return a step that takes a ``PaddedBatch`` or any other batch, and counts one replica."""
    # A function of its own would keep the scale of the batch in which it is traced first.
    plain = getattr(step, "python_function", step)
    strategy = model.distribute_strategy
    workers, finds_candidates = strategy.num_replicas_in_sync, retrieval_layer(model)[0] is not None
    as_one_replica = getattr(strategy, "as_one_replica", contextlib.nullcontext)

    def shared(batch: Any) -> Any:
        with as_one_replica():
            if not isinstance(batch, PaddedBatch):
                if finds_candidates:
                    _replace(model, _inputs_of_steps=_any_rows(keras.utils.unpack_x_y_sample_weight(batch)[0]))
                with _losses_of_all_workers(workers, 1.0):
                    return plain(batch)
            scale, rows = batch.scale, tf.cast(tf.shape(batch.weight)[0], tf.float32) / batch.scale
            if hasattr(model, "own_rows"):  # which sees no padding
                scale *= tf.reduce_mean(tf.cast(batch.weight > 0, tf.float32))
            with _losses_of_all_workers(workers, scale), _counted(model._loss_tracker, scale, rows):
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


@contextlib.contextmanager
def _losses_of_all_workers(workers: int, scale: Any) -> Iterator[None]:
    """Let losses in the block be such that their means over the workers are the losses of all rows.

    Args:
        workers: Number of workers.
        scale: By which a mean over this worker's rows, with their padding, is to be multiplied.
    """
    plain = keras.losses.Loss.__call__
    outer: list[Any] = []

    def call(loss: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if outer:  # a part of another loss
            return plain(loss, y_true, y_pred, sample_weight)
        outer.append(loss)
        try:
            value = plain(loss, y_true, y_pred, sample_weight)
        finally:
            outer.pop()
        if loss.reduction == "sum":  # Gradients are averaged, and this one is to be summed.
            return value * tf.cast(workers, value.dtype)
        if loss.reduction == "mean_with_sample_weight":
            weight = tf.shape(y_true)[0] if sample_weight is None else tf.reduce_sum(sample_weight)
            return value * tf.cast(_share(tf.cast(weight, tf.float32)), value.dtype)
        return value * tf.cast(scale, value.dtype) if loss.reduction in _MEANS else value

    keras.losses.Loss.__call__ = call
    try:
        yield
    finally:
        keras.losses.Loss.__call__ = plain


def _share(weight: Any) -> Any:
    """Return this worker's ``weight`` divided by the mean of all workers'."""
    replica = tf.distribute.get_replica_context()
    mean = weight if replica is None else replica.all_reduce(tf.distribute.ReduceOp.MEAN, tf.stop_gradient(weight))
    return tf.math.divide_no_nan(weight, mean)


@contextlib.contextmanager
def _counted(tracker: Any, scale: Any, rows: Any) -> Iterator[None]:
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


def _average_gradients(optimizer: Any) -> None:
    """Make ``optimizer`` apply the means of all replicas' gradients, before it clips or inspects them."""
    plain = optimizer.apply
    if getattr(plain, "averages", False):
        return

    def apply(grads: Sequence[Any], trainable_variables: Any = None) -> Any:
        replica = tf.distribute.get_replica_context()
        if replica is not None:
            given = [gradient for gradient in grads if gradient is not None]
            means = iter(replica.all_reduce(tf.distribute.ReduceOp.MEAN, given) if given else ())
            grads = [None if gradient is None else next(means) for gradient in grads]
        return plain(grads, trainable_variables)

    apply.averages = True  # type: ignore[attr-defined]
    optimizer.apply = apply
    # The one that Keras' loss scaling wraps is the one that would sum them once more.
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner._all_reduce_sum_gradients = lambda pairs: pairs
