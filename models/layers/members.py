"""An ensemble in one network: the loss of each member, and the prediction of all.

The network's outputs have the members as their second dimension. In training each member has its own loss; predictions
and metrics are those of the mean of their probabilities, or of their numbers.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras


def is_ensemble(model: Any) -> bool:
    """Return whether the outputs of ``model`` have members."""
    return int(getattr(model, "members", 1)) > 1


def mean_log_odds(logits: tf.Tensor) -> tf.Tensor:
    """Return the log-odds of the members' mean probability, without the dimension of the members."""
    return tf.reduce_logsumexp(tf.math.log_sigmoid(logits), axis=1) - tf.reduce_logsumexp(
        tf.math.log_sigmoid(-logits), axis=1
    )


def mean_class_logits(logits: tf.Tensor) -> tf.Tensor:
    """Return the logarithms of the members' mean probabilities: ``[batch, classes]``."""
    return tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=1) - math.log(logits.shape[1])


def mean_numbers(numbers: tf.Tensor) -> tf.Tensor:
    """Return the mean of the members' numbers, ``[batch, outputs]``."""
    return tf.reduce_mean(numbers, axis=1)


class MemberLoss(tf_keras.losses.Loss):
    """The mean over the members of the loss of each: ``[batch]``."""

    def __init__(self, of_rows: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> None:
        """Store the function that returns the loss of every row."""
        super().__init__(name="member_loss")
        self._of_rows = of_rows

    def call(self, labels: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
        """Return the loss of every row, for ``[batch, members, outputs]``."""
        members = predictions.shape[1]
        labels = _with_columns(labels)
        losses = self._of_rows(tf.repeat(labels, members, axis=0), tf.reshape(predictions, [-1, predictions.shape[2]]))
        return tf.reduce_mean(tf.reshape(losses, [-1, members]), axis=1)


def of_all(kind: type, combine: Callable[[tf.Tensor], tf.Tensor]) -> type:
    """Return a subclass of the metric class ``kind`` that looks at the prediction of all members."""

    class OfAll(kind):
        def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: Any = None) -> Any:
            weight = None if sample_weight is None else _with_columns(sample_weight)
            return super().update_state(_with_columns(y_true), combine(y_pred), weight)

    OfAll.__name__ = f"{kind.__name__}OfAll"
    return OfAll


def _with_columns(numbers: tf.Tensor) -> tf.Tensor:
    """Return ``[batch]`` as ``[batch, 1]``, as Keras does if the predictions are of two dimensions."""
    return numbers[:, tf.newaxis] if numbers.shape.rank == 1 else numbers
