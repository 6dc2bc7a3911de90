"""Many small models as one Keras model: their weights are stacked, so that a layer of all of them is one product."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.reading import padding_scale
from mirrorspark.fleet.training.plan import StackMember, StackSettings

# Bins of linear predictors, from this far below that of the mean label to as far above. They are narrow in the middle,
# where all predictors are after a large penalty; further out their width is a 25th of the distance.
_BINS, _REACH, _NARROWNESS = 512, 16.0, 1000.0

Batch = tuple[tf.Tensor, ...]
"""Inputs ``[batch, inputs]``, labels in the units of the targets ``[batch, targets]``, and weights of the labels
``[batch, targets]`` or, where none is missing, of the rows ``[batch, 1]``; all float32. Missing labels and rows of
padding have weight 0. One with padding is a :class:`data_pipelines.reading.PaddedBatch`."""


class StackedModels(tf_keras.Model):
    """Linear models, or networks of one shape, that read the same inputs and learn side by side.

    The models are independent: each has the weights that it would have on its own with the same batches.

    Attributes:
        kernels: Per layer; ``[inputs, models, units]`` for the first, ``[models, inputs, units]`` for others.
        biases: Per layer, ``[models, units]``.
        best: The best values of ``kernels`` and ``biases`` so far.
        active: float32 ``[models]``: 1 for models that learn, 0 for those that have stopped.
        mean_losses: Mean loss of the rows with a label, float64 ``[models]``.
        scores: Counts of the linear predictors in a validation.
    """

    def __init__(
        self, members: Sequence[StackMember], inputs: int, settings: StackSettings, global_batch_size: int
    ) -> None:
        """Begin with zeros for linear models, else with random weights that depend on the model's name and the seed."""
        super().__init__()
        self.built = True
        self._activation = tf_keras.activations.get(settings.activation)
        # An object of our own class, because Keras searches lists and dictionaries for variables.
        self._given = _Given.of(members, global_batch_size)
        reads = _reads(members, inputs)
        # A tensor, because an array would become a constant in every graph.
        self._reads = None if reads.all() else tf.constant(reads[:, :, None], tf.float32)
        kernels, biases = _initial_weights(members, reads, settings)
        self.kernels = [tf.Variable(values, name=f"kernel_{layer}") for layer, values in enumerate(kernels)]
        self.biases = [tf.Variable(values, name=f"bias_{layer}") for layer, values in enumerate(biases)]
        self.best = [tf.Variable(values, trainable=False, name="best") for values in (*kernels, *biases)]
        self.active = tf.Variable(tf.ones(len(members)), trainable=False, name="active")
        self.mean_losses = tf_keras.metrics.MeanTensor("loss", dtype="float64", shape=(len(members),))
        self.scores = PredictionHistograms(
            _of_members(members, "start"), [member.link == "logit" for member in members]
        )

    def predictors(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the linear predictors, float32 ``[batch, models]``, of inputs ``[batch, inputs]``."""
        first = self.kernels[0] if self._reads is None else self.kernels[0] * self._reads
        width, models, units = first.shape
        values = tf.matmul(inputs, tf.reshape(first, [width, models * units]))
        values = tf.reshape(values, [-1, models, units]) + self.biases[0]
        for kernel, bias in zip(self.kernels[1:], self.biases[1:], strict=True):
            values = tf.einsum("bmi,mio->bmo", self._activation(values), kernel) + bias
        return values[:, :, 0]

    @property
    def metrics(self) -> list[Any]:
        """The metrics that Keras resets at each epoch."""
        return [self.mean_losses]

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Make one update of the models that learn; return the mean losses so far."""
        weights = self.trainable_variables
        with tf.GradientTape() as tape:
            _, _, losses, rows = self._evaluated(batch)
            loss = padding_scale(batch) * tf.reduce_sum(tf.reduce_sum(losses, axis=0) * self._given.gains)
            # Gradients are summed over the replicas, each of which has the whole penalty.
            loss += self._penalty() / tf.distribute.get_strategy().num_replicas_in_sync
        gradients = tape.gradient(loss, weights)
        is_active = self.active > 0
        # No product with 0 or 1, because the gradient of a model that has stopped may be NaN.
        gradients = [
            tf.where(self._by_model(weight, is_active), gradient, 0.0)
            for weight, gradient in zip(weights, gradients, strict=True)
        ]
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        self._count(losses, rows)
        return {"loss": self.mean_losses.result()}

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Count the linear predictors; return the mean losses so far."""
        predictors, labels, losses, rows = self._evaluated(batch)
        self._count(losses, rows)
        self.scores.add(predictors, labels, rows)
        return {"loss": self.mean_losses.result()}

    def keep_best(self, is_better: np.ndarray, is_active: np.ndarray) -> None:
        """Store the weights of some models as their best, and restore the best weights of models that have stopped.

        Every rank calls this with the same arguments.

        Args:
            is_better: bool ``[models]``: True to store the model's weights.
            is_active: bool ``[models]``: False for a model that has stopped.
        """
        self.active.assign(is_active.astype(np.float32))
        for weight, best in zip([*self.kernels, *self.biases], self.best, strict=True):
            best.assign(tf.where(self._by_model(weight, tf.constant(is_better)), weight, best))
            weight.assign(tf.where(self._by_model(weight, tf.constant(is_active)), weight, best))

    def _evaluated(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return linear predictors, labels and weighted losses ``[batch, models]``, and weights as in ``batch``."""
        inputs, labels, rows = batch[:3]
        given = self._given
        # Operations without effect are left out: for linear models, passes over the labels take most of a step.
        if not np.array_equal(given.targets, np.arange(labels.shape[1])):
            labels = tf.gather(labels, given.targets, axis=1)
            rows = rows if rows.shape[1] == 1 else tf.gather(rows, given.targets, axis=1)
        if given.means.any() or (given.scales != 1).any():
            labels = (labels - given.means) / given.scales
        predictors = self.predictors(inputs)
        return predictors, labels, self._losses_of(predictors, labels) * rows, rows

    def _losses_of(self, predictors: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row and model by the model's link, ``[batch, models]``."""
        given = self._given
        functions: Mapping[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
            "identity": lambda z, y: 0.5 * tf.square(z - y),
            # Of labels 0 and 1; two kernels, where sigmoid_cross_entropy_with_logits has a dozen with its gradient.
            "logit": lambda z, y: tf.nn.softplus((1 - 2 * y) * z),
            "log": lambda z, y: tf.exp(z) - y * z,
        }
        if len(given.is_link) == 1:
            (link,) = given.is_link
            return functions[link](predictors, labels)
        total = tf.zeros_like(predictors)
        for link, is_link in given.is_link.items():
            # 0 for other models, because an infinite loss would make the gradient NaN in spite of the mask.
            own = functions[link](tf.where(is_link, predictors, 0.0), tf.where(is_link, labels, 0.0))
            total += tf.where(is_link, own, 0.0)
        return total

    def _penalty(self) -> tf.Tensor:
        if not self._given.penalties.any():
            return tf.zeros(())
        squares = tf.reduce_sum(tf.square(self.kernels[0]), axis=[0, 2])
        for kernel in self.kernels[1:]:
            squares += tf.reduce_sum(tf.square(kernel), axis=[1, 2])
        return 0.5 * tf.reduce_sum(self._given.penalties * squares)

    def _count(self, losses: tf.Tensor, rows: tf.Tensor) -> None:
        total = tf.broadcast_to(tf.reduce_sum(rows, axis=0), [losses.shape[1]])
        self.mean_losses.update_state(tf.math.divide_no_nan(tf.reduce_sum(losses, axis=0), total), total)

    def _by_model(self, weight: tf.Variable, values: tf.Tensor) -> tf.Tensor:
        """Return values ``[models]`` in a shape that broadcasts with a weight."""
        is_later = any(weight is kernel for kernel in self.kernels[1:])
        return values[:, None, None] if is_later else values[:, None]


class PredictionHistograms:
    """Histograms of the linear predictors of each class, over all ranks, for the areas under the curve.

    Checkpoints do not hold them, because this is not a Keras layer.
    """

    def __init__(self, centres: np.ndarray, has_classes: Sequence[bool]) -> None:
        """Begin with no row.

        Args:
            centres: float32 ``[models]``: the middle of the bins.
            has_classes: By model, whether its labels are classes.
        """
        self._centres, self._has_classes = centres, has_classes
        self._counts = tf.Variable(
            tf.zeros((2, len(centres), _BINS), tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
            name="scores",
        )

    def reset(self) -> None:
        """Forget all rows."""
        self._counts.assign(tf.zeros(self._counts.shape, tf.float64))

    def add(self, predictors: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor) -> None:
        """Add rows with their labels, ``[batch, models]``, and weights, ``[batch, models]`` or ``[batch, 1]``."""
        models = len(self._centres)
        distances = predictors - self._centres
        bends = tf.sign(distances) * tf.math.log1p(_NARROWNESS * tf.abs(distances)) / math.log1p(_NARROWNESS * _REACH)
        places = tf.floor((bends + 1) * (_BINS / 2))
        # NaN goes to the first bin; the loss of such a model is NaN, too.
        bins = tf.cast(tf.clip_by_value(tf.where(tf.math.is_nan(places), 0.0, places), 0, _BINS - 1), tf.int32)
        groups = (tf.cast(labels > 0.5, tf.int32) * models + tf.range(models)) * _BINS + bins
        weights = tf.reshape(tf.broadcast_to(rows, tf.shape(groups)), [-1])
        counts = tf.math.unsorted_segment_sum(weights, tf.reshape(groups, [-1]), num_segments=2 * models * _BINS)
        self._counts.assign_add(tf.cast(tf.reshape(counts, [2, models, _BINS]), tf.float64))

    def areas(self) -> np.ndarray:
        """Return the area under the curve, float64 ``[models]``; every rank has to call this.

        It is NaN for models without classes, or without rows of both.
        """
        areas = areas_under_curve(np.asarray(tf.convert_to_tensor(self._counts)))
        return np.where(self._has_classes, areas, np.nan)


def areas_under_curve(counts: np.ndarray) -> np.ndarray:
    """Return the area under the curve, float64 ``[models]``; rows of one bin count as equal.

    Args:
        counts: ``[2, models, bins]``: of the negative and the positive rows, by rising score.
    """
    negatives, positives = counts
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = negatives.sum(axis=1) * positives.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray((positives * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))


@dataclass(frozen=True)
class _Given:
    """The constants of the models, ``[models]`` each, as in :class:`fleet.training.plan.StackMember`.

    Attributes:
        gains: Factors of the sums of a full batch's losses: 1 / (rows of a batch * share of rows with a label). The
            loss is so, on average over batches, the mean over all labels. A mean over the labels of each batch would
            give more weight to rows of batches with fewer labels.
        is_link: bool ``[models]`` for each link that a model has.
    """

    targets: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    penalties: np.ndarray
    gains: np.ndarray
    is_link: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, members: Sequence[StackMember], global_batch_size: int) -> "_Given":
        links = [member.link for member in members]
        return cls(
            targets=_of_members(members, "target", np.int32),
            means=_of_members(members, "mean"),
            scales=_of_members(members, "scale"),
            penalties=_of_members(members, "penalty"),
            gains=(1 / (global_batch_size * _of_members(members, "share"))).astype(np.float32),
            is_link={link: np.array([own == link for own in links]) for link in dict.fromkeys(links)},
        )


def _of_members(members: Sequence[StackMember], name: str, dtype: Any = np.float32) -> np.ndarray:
    return np.array([getattr(member, name) for member in members], dtype)


def _reads(members: Sequence[StackMember], inputs: int) -> np.ndarray:
    """Return bool ``[inputs, models]``, true where the model reads the input."""
    reads = np.ones((inputs, len(members)), bool)
    for place, member in enumerate(members):
        if member.inputs is not None:
            reads[:, place] = False
            reads[list(member.inputs), place] = True
    return reads


def _initial_weights(
    members: Sequence[StackMember], reads: np.ndarray, settings: StackSettings
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the initial kernels and biases, float32.

    Source: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
    equation 16, for networks. A model's inputs are those that it reads.
    """
    sizes = [*settings.hidden, 1]
    kernels = [np.zeros((*reads.shape, sizes[0]), np.float32)]
    kernels += [np.zeros((len(members), *pair), np.float32) for pair in pairwise(sizes)]
    biases = [np.zeros((len(members), units), np.float32) for units in sizes]
    biases[-1][:, 0] = _of_members(members, "start")
    for place, member in enumerate(members if settings.hidden else ()):
        random = np.random.default_rng([settings.seed, zlib.crc32(member.name.encode())])
        own = np.flatnonzero(reads[:, place])
        kernels[0][own, place] = _glorot(random, (len(own), sizes[0]))
        for kernel in kernels[1:]:
            kernel[place] = _glorot(random, kernel.shape[1:])
    return kernels, biases


def _glorot(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    limit = np.sqrt(6 / sum(shape))
    return random.uniform(-limit, limit, shape).astype(np.float32)
