"""Layers for tables: embedded numbers, low-rank crosses, factors, and an ensemble whose members share their weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.models.settings import ModelSettingsError


def bin_edges(fitted: FittedFeatures, feature: kinds.Numeric) -> npt.NDArray[np.float64]:
    """Return the rising edges of the bins of ``feature``, in units of the model's input.

    Raises:
        ModelSettingsError: The dataset has no quantiles of the feature, because an earlier version converted it.
    """
    if feature.name not in fitted.quantiles:
        raise ModelSettingsError(
            f"model setting numeric_embedding piecewise needs the quantiles of feature '{feature.name}', which this "
            f"dataset does not have; convert the data again, or use periodic"
        )
    statistics = fitted.statistics[feature.name]
    edges = np.unique([statistics.minimum, *fitted.quantiles[feature.name], statistics.maximum])
    offset, divisor = fitted.scaling(feature)
    return np.asarray((edges - offset) / divisor, np.float64)


class PiecewiseLinear(tf_keras.layers.Layer):
    """Embeds each number by how far it has come through each of its bins: ``[batch, numbers * dim]``.

    A bin that lies below the number counts 1, one above it 0, and its own bin the share that is covered; a linear layer
    per number and a ReLU follow. Source: Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep
    Learning", section 3.2 with quantiles as edges.
    """

    def __init__(self, edges: Sequence[npt.NDArray[np.float64]], dim: int, **kwargs: Any) -> None:
        """Store the rising edges of every number's bins, and the width of a number's embedding."""
        # float32 in any precision: neighbouring edges may be closer than float16 tells apart.
        super().__init__(dtype="float32", **kwargs)
        bins = max([1, *(len(of) - 1 for of in edges)])
        # A bin of no width, which pads a number with fewer bins, or belongs to a constant, is always 0.
        self._low = np.zeros((len(edges), bins), np.float32)
        self._inverse = np.zeros((len(edges), bins), np.float32)
        for number, of in enumerate(edges):
            self._low[number, : len(of) - 1] = of[:-1]
            self._inverse[number, : len(of) - 1] = 1.0 / np.diff(of)
        self._dim = dim

    def build(self, input_shape: Any) -> None:
        """Create a kernel ``[bins, dim]`` and a bias for every number."""
        numbers, bins = self._low.shape
        self._kernel = self.add_weight("kernel", (numbers, bins, self._dim), initializer=_uniform(bins))
        self._bias = self.add_weight("bias", (numbers, self._dim), initializer=_uniform(bins))
        super().build(input_shape)

    def encode(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the covered share of every bin, ``[batch, numbers, bins]``, for ``[batch, numbers]``."""
        return tf.clip_by_value((inputs[:, :, tf.newaxis] - self._low) * self._inverse, 0.0, 1.0)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the embeddings of ``[batch, numbers]``."""
        return _embedded(self.encode(inputs), self._kernel, self._bias)


class Periodic(tf_keras.layers.Layer):
    """Embeds each number by sines and cosines of learnt frequencies: ``[batch, numbers * dim]``.

    A linear layer per number and a ReLU follow. Source: Gorishniy et al. 2022, "On Embeddings for Numerical Features in
    Tabular Deep Learning", section 3.3.
    """

    def __init__(self, dim: int, frequencies: int, scale: float, **kwargs: Any) -> None:
        """Store the width of an embedding, the frequencies per number, and the deviation of their first values."""
        super().__init__(dtype="float32", **kwargs)
        self._dim, self._frequencies, self._scale = dim, frequencies, scale

    def build(self, input_shape: Any) -> None:
        """Create the frequencies, and a kernel and a bias for every number."""
        numbers, waves = input_shape[-1], 2 * self._frequencies
        initializer = tf_keras.initializers.TruncatedNormal(stddev=self._scale)
        self._frequency = self.add_weight("frequency", (numbers, self._frequencies), initializer=initializer)
        self._kernel = self.add_weight("kernel", (numbers, waves, self._dim), initializer=_uniform(waves))
        self._bias = self.add_weight("bias", (numbers, self._dim), initializer=_uniform(waves))
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the embeddings of ``[batch, numbers]``."""
        angles = 2.0 * np.pi * inputs[:, :, tf.newaxis] * self._frequency
        return _embedded(tf.concat([tf.cos(angles), tf.sin(angles)], axis=2), self._kernel, self._bias)


def _embedded(encoded: tf.Tensor, kernel: Any, bias: Any) -> tf.Tensor:
    numbers, _, dim = kernel.shape
    embedded = tf.matmul(tf.transpose(encoded, [1, 0, 2]), kernel) + bias[:, tf.newaxis]
    return tf.reshape(tf.transpose(tf.nn.relu(embedded), [1, 0, 2]), [-1, numbers * dim])


def _uniform(inputs: int) -> Any:
    bound = inputs**-0.5
    return tf_keras.initializers.RandomUniform(-bound, bound)


class LowRankCross(tf_keras.layers.Layer):
    """A cross ``first * (last V U + b) + last``: each layer multiplies by the features once more.

    Source: Wang et al. 2021, "DCN V2", equation 2, section 3.4.
    """

    def __init__(self, rank: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rank = rank

    def build(self, input_shape: Any) -> None:
        """Create ``V [width, rank]``, ``U [rank, width]`` and the bias."""
        width = input_shape[0][-1]
        self._down = self.add_weight("down", (width, self._rank), initializer="glorot_uniform")
        self._up = self.add_weight("up", (self._rank, width), initializer="glorot_uniform")
        self._bias = self.add_weight("bias", (width,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return ``[batch, width]`` for the first and the last crossing's ``[batch, width]``."""
        first, last = inputs
        return first * tf.nn.bias_add(tf.matmul(tf.matmul(last, self._down), self._up), self._bias) + last


class NumberFactors(tf_keras.layers.Layer):
    """A vector of factors for every number, multiplied by it: ``[batch, numbers * width]``."""

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._width = width

    def build(self, input_shape: Any) -> None:
        """Create the vectors, ``[numbers, width]``."""
        initializer = tf_keras.initializers.RandomUniform(-0.05, 0.05)
        self._factors = self.add_weight("factors", (input_shape[-1], self._width), initializer=initializer)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the scaled vectors of ``[batch, numbers]``."""
        return tf.reshape(inputs[:, :, tf.newaxis] * self._factors, [-1, inputs.shape[-1] * self._width])


class FactorProducts(tf_keras.layers.Layer):
    """The sum of the products of all pairs of a row's factors: ``[batch, dim]``, or ``[batch, members, dim]``.

    Of a user and an item it is a matrix factorisation; summed with equal weights it is a factorization machine. Source:
    He and Chua 2017, "Neural Factorization Machines for Sparse Predictive Analytics", equations 4 and 5.
    """

    def __init__(self, dim: int, members: int, **kwargs: Any) -> None:
        """Store the width of a vector, and the number of vectors that each feature has, one per member."""
        super().__init__(**kwargs)
        self._dim, self._members = dim, members

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the products for ``[batch, features * members * dim]``."""
        width = self._members * self._dim
        factors = tf.reshape(inputs, [-1, inputs.shape[-1] // width, width])
        products = 0.5 * (tf.reduce_sum(factors, axis=1) ** 2 - tf.reduce_sum(factors**2, axis=1))
        return tf.reshape(products, [-1, self._members, self._dim]) if self._members > 1 else products


class MemberDense(tf_keras.layers.Layer):
    """A ReLU layer of all members of an ensemble: they share its kernel, and each scales its inputs and outputs.

    From ``[batch, width]`` or ``[batch, members, width]`` to ``[batch, members, units]``. Source: Gorishniy et al.
    2024, "TabM", section 3.3: only the first layer's input scales begin at random, 1 or -1; all others begin at 1.
    """

    def __init__(self, members: int, units: int, seed: int, **kwargs: Any) -> None:
        """Store the arguments; ``seed`` draws the signs of the first layer."""
        super().__init__(**kwargs)
        self._members, self._units, self._seed = members, units, seed

    def build(self, input_shape: Any) -> None:
        """Create the shared kernel, and per member both scales and a bias."""
        width = input_shape[-1]
        self._is_first = len(input_shape) == 2
        signs = np.random.default_rng(self._seed).choice([-1.0, 1.0], (self._members, width))
        initial = tf.constant_initializer(signs) if self._is_first else "ones"
        self._kernel = self.add_weight("kernel", (width, self._units), initializer="glorot_uniform")
        self._scale_in = self.add_weight("scale_in", (self._members, width), initializer=initial)
        self._scale_out = self.add_weight("scale_out", (self._members, self._units), initializer="ones")
        self._bias = self.add_weight("bias", (self._members, self._units), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return ``[batch, members, units]``."""
        if self._is_first:
            # Scaling the small kernel instead of the rows: the rows of all members are never stored.
            kernels = tf.transpose(self._scale_in)[:, :, tf.newaxis] * self._kernel[:, tf.newaxis]
            product = tf.matmul(inputs, tf.reshape(kernels, [-1, self._members * self._units]))
        else:
            product = tf.matmul(tf.reshape(inputs * self._scale_in, [-1, inputs.shape[-1]]), self._kernel)
        product = tf.reshape(product, [-1, self._members, self._units])
        return tf.nn.relu(product * self._scale_out + self._bias)


class JoinedMembers(tf_keras.layers.Layer):
    """The members of several ensembles as those of one: ``[batch, members, units]``, with zeros in units they lack."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the last hidden layers side by side, given ``[batch, its members, its units]`` of each ensemble."""
        units = max(part.shape[-1] for part in inputs)
        return tf.concat([tf.pad(part, [[0, 0], [0, 0], [0, units - part.shape[-1]]]) for part in inputs], axis=1)


class MemberHeads(tf_keras.layers.Layer):
    """A linear head of its own for every member of an ensemble: ``[batch, members, outputs]``."""

    def __init__(self, outputs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._outputs = outputs

    def build(self, input_shape: Any) -> None:
        """Create a kernel ``[units, outputs]`` and a bias for every member."""
        _, members, units = input_shape
        bound = (6 / (units + self._outputs)) ** 0.5
        initializer = tf_keras.initializers.RandomUniform(-bound, bound)
        self._kernel = self.add_weight("kernel", (members, units, self._outputs), initializer=initializer)
        self._bias = self.add_weight("bias", (members, self._outputs), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the outputs of ``[batch, members, units]``."""
        product = tf.matmul(tf.transpose(inputs, [1, 0, 2]), self._kernel)
        return tf.transpose(product, [1, 0, 2]) + self._bias
