"""Layers that draw random numbers, whose sequence continues after a checkpoint: dropout and samples of classes."""

from typing import Any

import tensorflow as tf
import tf_keras


class _CountedCalls(tf_keras.layers.Layer):
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
        call = self._calls.assign_add(1)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        return tf.stack([tf.constant(self._seed, tf.int64) + tf.cast(replica, tf.int64) * 1_000_003, call])


class ResumableDropout(_CountedCalls):
    """Dropout whose sequence of masks continues after a checkpoint is restored."""

    def __init__(self, rate: float, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._rate = rate

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return ``inputs`` with a share ``rate`` set to zero and the rest scaled up; unchanged unless training."""
        if not training:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, self._rate, seed=self._next_seed())


class LogUniformSample(_CountedCalls):
    """Draws classes numbered by falling frequency, frequent ones more often; the sequence continues after a checkpoint.

    Class ``c`` of ``classes`` is drawn with probability ``log((c + 2) / (c + 1)) / log(classes + 1)``, as
    ``tf.random.log_uniform_candidate_sampler`` does, but with replacement and without hidden state.
    """

    def __init__(self, count: int, classes: int, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._count = count
        self._classes = classes

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        uniform = tf.random.stateless_uniform([self._count], self._next_seed(), dtype=tf.float64)
        drawn = tf.exp(uniform * tf.math.log(tf.constant(self._classes + 1.0, tf.float64))) - 1.0
        return tf.minimum(tf.cast(drawn, tf.int64), self._classes - 1)

    def log_expected_count(self, classes: tf.Tensor) -> tf.Tensor:
        """Return the logarithm of the expected number of draws of each of ``classes`` per call, as float32."""
        numbers = tf.cast(classes, tf.float64)
        probability = tf.math.log1p(1.0 / (numbers + 1.0)) / tf.math.log(tf.constant(self._classes + 1.0, tf.float64))
        return tf.cast(tf.math.log(probability * self._count), tf.float32)


class UniformSample(_CountedCalls):
    """Draws classes with equal probability and with replacement; the sequence continues after a checkpoint."""

    def __init__(self, count: int, classes: int, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._count = count
        self._classes = classes

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        return tf.random.stateless_uniform([self._count], self._next_seed(), 0, self._classes, tf.int64)
