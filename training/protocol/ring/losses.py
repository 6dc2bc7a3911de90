"""Keras's losses that are means of a batch, in training steps that users write, such as those of TFRS's tasks.

Under a strategy Keras refuses to call a loss whose ``reduction`` is the default: it cannot know by which batch to
divide. A rank of the ring has one replica, and its mean is a share of that over all rows of the step: the sums over the
ranks, of the loss and of its gradient, are those of one process with all rows.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.models.fitting import share_in_hand
from mirrorspark.training.protocol.ring.strategy import RingStrategy

_MEANS = (tf_keras.losses.Reduction.AUTO, tf_keras.losses.Reduction.SUM_OVER_BATCH_SIZE)


@contextlib.contextmanager
def mean_losses(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Let losses that are means be called anywhere under ``strategy`` while the block runs, if it is a ring.

    Losses of ``Model.compile`` are scaled by Keras as before.
    """
    if not isinstance(strategy, RingStrategy):
        yield
        return
    plain = tf_keras.losses.Loss.__call__

    def call(loss: tf_keras.losses.Loss, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        is_mean = loss.reduction in _MEANS and not loss._allow_sum_over_batch_size
        if not is_mean or tf.distribute.get_strategy() is not strategy:
            return plain(loss, y_true, y_pred, sample_weight)
        loss._allow_sum_over_batch_size = True
        try:
            value = plain(loss, y_true, y_pred, sample_weight)
        finally:
            loss._allow_sum_over_batch_size = False
        if tf.distribute.in_cross_replica_context():  # not in a step of all ranks
            return value
        return value * tf.cast(share_in_hand(), value.dtype)

    tf_keras.losses.Loss.__call__ = call
    try:
        yield
    finally:
        tf_keras.losses.Loss.__call__ = plain
