"""A linear model of encoded features as a TensorFlow graph, so that it is exported and scored like any other model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds

Link = Literal["logit", "softmax", "sigmoid", "identity"]
"""Form of the scores: ``logit`` is the probability of a binary label, ``sigmoid`` that of each of several labels."""


@dataclass(frozen=True)
class LinearInput:
    """The weights of one feature.

    Attributes:
        feature: Its name.
        form: Its form.
        centre: Means of numbers, ``[size]``; empty for ids and sparse features.
        scale: Divisors of numbers and of sparse columns, ``[size]``.
        has_missing: True if each number has a second weight, for rows without it.
        weights: float32 ``[size, outputs]``, or ``[2 * size, outputs]`` with those of missing numbers behind.
    """

    feature: str
    form: kinds.Form
    centre: np.ndarray
    scale: np.ndarray
    has_missing: bool
    weights: np.ndarray


@dataclass(frozen=True)
class Linear:
    """A linear model.

    Attributes:
        inputs: The features.
        bias: ``[outputs]``.
        link: How sums become scores.
        class_numbers: The class of each output, of several classes.
        classes: Number of classes; 0 for one score per row.
    """

    inputs: tuple[LinearInput, ...]
    bias: np.ndarray
    link: Link
    class_numbers: tuple[int, ...] = ()
    classes: int = 0


class LinearModel(tf.Module):
    """A linear model with its arrays as variables, which the signatures of a SavedModel share."""

    def __init__(self, linear: Linear) -> None:
        super().__init__(name="linear_model")
        self.linear = linear
        # A sparse column is divided by its scale once, here, and not in every row.
        self._weights = [
            _variable(of.weights / of.scale[:, None] if of.form == "sparse" else of.weights) for of in linear.inputs
        ]
        self._bias = _variable(linear.bias)

    def __call__(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the sums, float32 ``[batch, outputs]``, for encoded features."""
        parts = [
            _product(of, weights, inputs[of.feature])
            for of, weights in zip(self.linear.inputs, self._weights, strict=True)
        ]
        return tf.add_n(parts) + self._bias


def predict(model: LinearModel, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return ``score``, float32 ``[batch]``; of several classes or labels ``scores``, ``[batch, classes]``."""
    linear, sums = model.linear, model(inputs)
    if linear.link == "sigmoid":
        return {"scores": tf.sigmoid(sums)}
    if not linear.classes:
        return {"score": tf.sigmoid(sums[:, 0]) if linear.link == "logit" else sums[:, 0]}
    shares = tf.nn.softmax(sums)
    if linear.link == "logit":  # of two classes that have one sum
        shares = tf.concat([tf.sigmoid(-sums), tf.sigmoid(sums)], axis=1)
    known = linear.class_numbers
    # A class that no training row has is the column behind the others.
    places = [known.index(number) if number in known else len(known) for number in range(linear.classes)]
    return {"scores": tf.gather(tf.pad(shares, [[0, 0], [0, 1]]), places, axis=1)}


def _product(of: LinearInput, weights: tf.Variable, values: Any) -> tf.Tensor:
    """Return the feature's part of the sums, ``[batch, outputs]``."""
    from mirrorspark.models.layers.input import sparse_product

    if of.form == "sparse":
        return sparse_product(values, weights)
    size = len(of.scale)
    if of.form == "id":
        return tf.gather(weights, tf.minimum(values, size - 1)) * _where(values < size)[:, None]
    if of.form == "ids":
        # Padding is nothing; an id beyond those of the training rows has no weight.
        is_known = _where((values > 0) & (values < size))
        found = tf.gather(weights, tf.clip_by_value(values, 0, size - 1))
        return tf.reduce_sum(found * is_known[:, :, None], axis=1)
    numbers = tf.cast(values if values.shape.rank == 2 else values[:, None], tf.float64)
    is_missing = tf.math.is_nan(numbers)
    scaled = tf.where(is_missing, tf.zeros_like(numbers), (numbers - of.centre) / of.scale)
    columns = tf.concat([scaled, tf.cast(is_missing, tf.float64)], axis=1) if of.has_missing else scaled
    return tf.matmul(tf.cast(columns, tf.float32), weights)


def _where(condition: tf.Tensor) -> tf.Tensor:
    return tf.cast(condition, tf.float32)


def _variable(values: np.ndarray) -> tf.Variable:
    return tf.Variable(np.asarray(values, np.float32), trainable=False)
