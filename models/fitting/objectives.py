"""The loss and the metrics of each task."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.models import keras3
from mirrorspark.models.fitting.real_rows import count_real_rows
from mirrorspark.models.layers import MemberLoss, is_ensemble, mean_class_logits, mean_log_odds, mean_numbers, of_all

# 200 thresholds (Keras's default) miss the AUC by up to 0.005 when most scores are close to the base rate.
AUC_THRESHOLDS = 2000


def compile_model(model: tf_keras.Model, task: str, optimizer: Any, steps_per_execution: int = 1) -> None:
    """Compile ``model`` for ``task``.

    Args:
        model: A model built by one of the catalog's architectures.
        task: The ``TASK`` of that architecture.
        optimizer: A Keras optimizer, such as that of :func:`models.fitting.build_optimizer`.
        steps_per_execution: Steps that TensorFlow runs before it returns to Python.

    Raises:
        ValueError: The task is unknown.
    """
    if task == "retrieval" or hasattr(model, "own_tasks") or hasattr(model, "own_output"):
        # Models for retrieval, with several outputs, and all of TensorFlow Recommenders compute their own loss.
        model.compile(optimizer, weighted_metrics=[], steps_per_execution=steps_per_execution)
        if keras3.is_keras3(model):
            keras3.count_real_rows(model, None)
        return
    if task not in _OBJECTIVES:
        raise ValueError(f"task '{task}' is unknown; use one of {sorted([*_OBJECTIVES, 'retrieval'])}")
    if keras3.is_keras3(model):
        import keras

        loss, metrics = _OBJECTIVES[task](model, lambda kind: kind, keras)
        keras.Model.compile(model, optimizer, loss=loss, steps_per_execution=steps_per_execution)
        keras3.count_real_rows(model, metrics)
        return
    if is_ensemble(model):
        combine = _OF_MEMBERS[task]
        loss, metrics = _OBJECTIVES[task](model, lambda kind: of_all(kind, combine), tf_keras)
        loss = MemberLoss(loss.call if isinstance(loss, tf_keras.losses.Loss) else loss)
    else:
        loss, metrics = _OBJECTIVES[task](model, lambda kind: kind, tf_keras)
    model.compile(optimizer, loss=loss, weighted_metrics=metrics, steps_per_execution=steps_per_execution)
    count_real_rows(model)


# Loss and metrics of each task. The compiled loss divides by the rows; the metric divides by their weights.


# ``of`` turns the class of a metric into one that looks at the prediction of an ensemble. The last argument is the
# module of either Keras.
_Of = Callable[[type], type]


def _binary(_: Any, of: _Of, keras: Any) -> tuple[Any, list[Any]]:
    return keras.losses.BinaryCrossentropy(from_logits=True), [
        of(keras.metrics.BinaryCrossentropy)(name="log_loss", from_logits=True),
        of(keras.metrics.AUC)(name="auc", num_thresholds=AUC_THRESHOLDS, from_logits=True),
    ]


def _multi_label(_: Any, of: _Of, keras: Any) -> tuple[Any, list[Any]]:
    return multi_label_log_loss, [
        of(keras.metrics.MeanMetricWrapper)(multi_label_log_loss, name="log_loss"),
        # One AUC over all pairs of a row and a label; an AUC per label would need thousands of counters for each.
        of(keras.metrics.AUC)(name="auc", num_thresholds=AUC_THRESHOLDS, from_logits=True),
    ]


def _multi_class(_: Any, of: _Of, keras: Any) -> tuple[Any, list[Any]]:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True), [
        of(keras.metrics.SparseCategoricalCrossentropy)(name="log_loss", from_logits=True),
        of(keras.metrics.SparseCategoricalAccuracy)(name="accuracy"),
    ]


def _regression(model: Any, of: _Of, keras: Any) -> tuple[Any, list[Any]]:
    rmse, mae = keras.metrics.RootMeanSquaredError, keras.metrics.MeanAbsoluteError
    if keras3.is_keras3(model):  # whose own models have one prediction per row
        return model.regression_loss.call, [rmse(name="rmse"), mae(name="mae")]
    return model.regression_loss, [of(_of_middle(rmse))(name="rmse"), of(_of_middle(mae))(name="mae")]


def _of_middle(kind: type) -> type:
    """Return a subclass of a metric that looks at the middle one of a row's predictions."""

    class OfMiddle(kind):
        def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: Any = None) -> Any:
            if y_pred.shape.rank == 2 and (y_pred.shape[1] or 1) > 1:
                middle = y_pred.shape[1] // 2
                y_pred = y_pred[:, middle : middle + 1]
            return super().update_state(y_true, y_pred, sample_weight)

    OfMiddle.__name__ = f"{kind.__name__}OfMiddle"
    return OfMiddle


class ScaledLoss(tf_keras.losses.Loss):
    """The loss of a regression, of label and prediction divided by the label's scale.

    Args:
        kind: ``squared``; ``absolute``; ``poisson`` and ``tweedie``: the deviance of that distribution up to a
            constant; ``quantile``: the pinball loss, doubled so that of the median it is the absolute error.
        scale: Size of one unit of the network's output in the label's unit.
        power: Power of Tweedie's distribution, between 1 and 2.
        quantiles: The shares of the predictions' columns, for ``quantile``.
    """

    def __init__(self, kind: str, scale: float, power: float = 1.5, quantiles: Sequence[float] = ()) -> None:
        super().__init__(name=f"{kind}_loss")
        self._kind, self._scale, self._power, self._quantiles = kind, scale, power, tuple(quantiles)

    def call(self, labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
        """Return the loss of every row, float32 ``[batch]``."""
        actual = tf.reshape(tf.cast(labels, predictions.dtype), [-1]) / self._scale
        if self._kind == "quantile":
            above = actual[:, None] - predictions / self._scale
            shares = tf.constant(self._quantiles, predictions.dtype)
            return 2.0 * tf.reduce_mean(tf.maximum(shares * above, (shares - 1.0) * above), axis=1)
        predicted = tf.reshape(predictions, [-1]) / self._scale
        if self._kind == "poisson":
            return predicted - actual * tf.math.log(tf.maximum(predicted, 1e-9))
        if self._kind == "tweedie":
            mean, power = tf.maximum(predicted, 1e-9), self._power
            return mean ** (2.0 - power) / (2.0 - power) - actual * mean ** (1.0 - power) / (1.0 - power)
        return tf.abs(predicted - actual) if self._kind == "absolute" else tf.square(predicted - actual)


_OBJECTIVES: Mapping[str, Callable[[Any, _Of, Any], tuple[Any, list[Any]]]] = {
    "binary": _binary,
    "multi_label": _multi_label,
    "multi_class": _multi_class,
    "regression": _regression,
}

# The prediction of all members in the form of that of one.
_OF_MEMBERS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "binary": mean_log_odds,
    "multi_label": mean_log_odds,
    "multi_class": mean_class_logits,
    "regression": mean_numbers,
}


def multi_label_log_loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return the mean over labels of the log loss, float32 ``[batch]``, for ``[batch, labels]`` inputs.

    Source: the multi-label log loss of scikit-learn's ``log_loss`` applied per label, from logits for stability.
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(labels, logits.dtype), logits=logits)
    return tf.reduce_mean(losses, axis=-1)
