"""Heads of models with several labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras


class SoftmaxHeads(tf_keras.layers.Layer):
    """Many softmax heads on the same hidden units, as one matrix product: a layer for each would take longer to build.

    The heads' classes are concatenated, those of the first head first: ``[batch, sum of classes]``.
    """

    def __init__(self, classes: Sequence[int], **kwargs: Any) -> None:
        """Check and store the arguments.

        Args:
            classes: Number of classes of each head.
            **kwargs: Arguments of a Keras layer.

        Raises:
            ValueError: There is no head, or one has fewer than two classes.
        """
        super().__init__(**kwargs)
        if not classes or min(classes) < 2:
            raise ValueError(f"softmax heads of {list(classes)} classes; give one head or more, each of 2 or more")
        self._classes = tuple(classes)

    def build(self, input_shape: Any) -> None:
        """Create the kernel ``[units, sum of classes]`` and the bias."""
        units, width = input_shape[-1], sum(self._classes)
        initializer = _glorot(units, width / len(self._classes))
        self._kernel = self.add_weight(name="kernel", shape=(units, width), initializer=initializer)
        self._bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the logarithm of each class's probability within its head, ``[batch, sum of classes]``."""
        head_of = np.repeat(np.arange(len(self._classes)), self._classes)
        # Transposed, because segment operations work on rows.
        logits = tf.transpose(tf.nn.bias_add(tf.matmul(inputs, self._kernel), self._bias))
        logits -= tf.gather(tf.math.segment_max(logits, head_of), head_of)
        totals = tf.math.segment_sum(tf.exp(logits), head_of)
        return tf.transpose(logits - tf.gather(tf.math.log(totals), head_of))


class TwoWayHeads(tf_keras.layers.Layer):
    """Softmax heads of two classes each, as the log-odds of their second class: ``[batch, heads]``.

    The sigmoid of the log-odds is the softmax probability. The log-odds are the difference of two logits, so they need
    one product with the difference of two kernels: half the arithmetic of both logits, and no exponentials.
    """

    def __init__(self, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._heads = heads

    def build(self, input_shape: Any) -> None:
        """Create a kernel ``[units, heads]`` and a bias for each class, stacked as ``[2, units, heads]``."""
        shape = (2, input_shape[-1], self._heads)
        self._kernel = self.add_weight(name="kernel", shape=shape, initializer=_glorot(input_shape[-1], 2))
        self._bias = self.add_weight(name="bias", shape=(2, self._heads), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return ``[batch, heads]``."""
        kernel, bias = self._kernel[1] - self._kernel[0], self._bias[1] - self._bias[0]
        return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)


def _glorot(units: int, classes: float) -> Any:
    """Return the initializer for one head's kernel; the default for the whole width would draw much smaller numbers."""
    bound = (6 / (units + classes)) ** 0.5
    return tf_keras.initializers.RandomUniform(-bound, bound)
