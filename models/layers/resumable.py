"""Layers that draw random numbers, whose sequence continues after a checkpoint: their base, and dropout."""

from typing import Any

import tensorflow as tf
import tf_keras


class CountedCalls(tf_keras.layers.Layer):
    """Draws random numbers as a function of (seed, replica, call), and counts the calls in a variable.

    Keras draws from a hidden state that checkpoints do not contain, so a resumed run would draw different numbers.
    """

    def __init__(self, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._seed = seed

    def build(self, input_shape: Any) -> None:
        """Create the counter; each replica has its own, and that of the first is saved."""
        self._calls = self.add_weight(
            name="calls",
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        super().build(input_shape)

    def _next_seed(self) -> tf.Tensor:
        """Return int64 ``[2]``, another one at each call."""
        call = self._calls.assign_add(1)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        return tf.stack([tf.constant(self._seed, tf.int64) + tf.cast(replica, tf.int64) * 1_000_003, call])


class ResumableDropout(CountedCalls):
    """Dropout whose sequence of masks continues after a checkpoint is restored."""

    def __init__(self, rate: float, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._rate = rate

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return ``inputs`` with a share ``rate`` set to zero and the rest scaled up; unchanged unless training."""
        if not training:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, self._rate, seed=self._next_seed())
