"""Heads of models with several labels, and of classes that have an order."""

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


# Neighbouring thresholds are at least so far apart: the logarithm of no class's probability is infinite.
_LEAST_GAP = 1e-4
# Thresholds of classes that are easy to tell are tens apart, and a step of Adam moves a weight by its learning rate:
# with 1 the log loss of such a table was 0.54 after 40 epochs of 50 steps, with 10 it is 0.31 (a softmax: 0.30).
_THRESHOLDS_PER_WEIGHT = 10.0


class OrdinalHead(tf_keras.layers.Layer):
    """Divides the line of a score into classes by rising thresholds, whose place is learnt.

    The probability of a class up to the k-th one is ``sigmoid(threshold_k - score)``: the higher the score, the higher
    the class. Source: McCullagh 1980, "Regression Models for Ordinal Data", section 2 (proportional odds).
    """

    def __init__(self, classes: int, **kwargs: Any) -> None:
        """Check and store the number of classes.

        Raises:
            ValueError: There are fewer than two.
        """
        # float32 in any precision: probabilities of neighbouring classes are differences.
        super().__init__(dtype="float32", **kwargs)
        if classes < 2:
            raise ValueError(f"an ordinal head of {classes} classes; give 2 or more")
        self._classes = classes

    def build(self, input_shape: Any) -> None:
        """Create the lowest threshold and the gaps between neighbours; a score of 0 begins with equal probabilities."""
        shares = np.arange(1, self._classes) / self._classes
        start = np.log(shares) - np.log1p(-shares)
        constant = tf_keras.initializers.Constant
        self._lowest = self.add_weight("lowest", (1,), initializer=constant(start[:1] / _THRESHOLDS_PER_WEIGHT))
        self._gaps = None
        if self._classes > 2:
            # The inverse of softplus, so that the gaps stay above 0 whatever is learnt.
            gaps = np.log(np.expm1(np.diff(start) - _LEAST_GAP))
            self._gaps = self.add_weight(
                "gaps", (self._classes - 2,), initializer=constant(gaps / _THRESHOLDS_PER_WEIGHT)
            )
        super().build(input_shape)

    def gaps(self) -> tf.Tensor:
        """Return the distances between neighbouring thresholds, ``[classes - 2]``."""
        if self._gaps is None:
            return tf.zeros([0])
        return tf.nn.softplus(self._gaps * _THRESHOLDS_PER_WEIGHT) + _LEAST_GAP

    def thresholds(self) -> tf.Tensor:
        """Return the rising thresholds, ``[classes - 1]``."""
        lowest = self._lowest * _THRESHOLDS_PER_WEIGHT
        return tf.concat([lowest, lowest + tf.cumsum(self.gaps())], axis=0)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the logarithm of each class's probability, ``[…, classes]``, for scores ``[…, 1]``.

        The difference of two sigmoids is a product: ``sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 -
        exp(b - a))``. So nothing cancels, and the gradient is finite for any score.
        """
        distances = self.thresholds() - inputs
        # Of the lowest class there is no threshold below, and of the highest one none above.
        up_to = tf.math.log_sigmoid(distances)
        above = tf.math.log_sigmoid(-distances)
        between = tf.math.log(-tf.math.expm1(-self.gaps()))
        inner = up_to[..., 1:] + above[..., :-1] + between
        return tf.concat([up_to[..., :1], inner, above[..., -1:]], axis=-1)


def _glorot(units: int, classes: float) -> Any:
    """Return the initializer for one head's kernel; the default for the whole width would draw much smaller numbers."""
    bound = (6 / (units + classes)) ** 0.5
    return tf_keras.initializers.RandomUniform(-bound, bound)
