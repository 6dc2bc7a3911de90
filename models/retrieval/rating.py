"""The second task of a retrieval model: the rating that a query gives a candidate, from the vectors of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import NumericStatistics
from mirrorspark.models.serving import concrete, save_functions, signatures, state


class RatingTask(tf_keras.layers.Layer):
    """A net on both vectors and their product, which predicts a rating in its own unit: ``[rows]``.

    Its loss is the squared error of the standardised rating, added to that of the retrieval: both teach the towers.
    Source: TensorFlow Recommenders' tutorial "Multi-task recommenders", whose net has the vectors alone.

    Attributes:
        errors: The metrics ``rmse`` and ``mae``, in the rating's unit.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_units: Sequence[int],
        statistics: NumericStatistics,
        retrieval_weight: float,
        rating_weight: float,
    ) -> None:
        """Create the net.

        Args:
            embedding_dim: Width of both vectors.
            hidden_units: Width of each hidden layer.
            statistics: Mean and deviation of the ratings in the training rows.
            retrieval_weight: Factor of the retrieval's loss.
            rating_weight: Factor of the rating's loss.
        """
        # float32 in any precision: it is a small part of the model.
        super().__init__(name="rating", dtype="float32")
        self._hidden = [
            tf_keras.layers.Dense(units, activation="relu", name=f"hidden_{number}", dtype="float32")
            for number, units in enumerate(hidden_units)
        ]
        self._output = tf_keras.layers.Dense(1, name="standardised", dtype="float32")
        self._mean, self._scale = statistics.mean, statistics.standard_deviation or 1.0
        self._weights_of_losses = retrieval_weight, rating_weight
        self.errors = [
            tf_keras.metrics.RootMeanSquaredError(name="rmse"),
            tf_keras.metrics.MeanAbsoluteError(name="mae"),
        ]
        # A checkpoint is restored before the first step, into variables that exist.
        self(*(tf.zeros([1, embedding_dim]),) * 2)

    def call(self, queries: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        """Return the ratings, float32 ``[rows]``, for float32 ``[rows, embedding_dim]`` each."""
        hidden = tf.concat([queries, candidates, queries * candidates], axis=1)
        for layer in self._hidden:
            hidden = layer(hidden)
        return self._output(hidden)[:, 0] * self._scale + self._mean

    def joint_losses(
        self, losses: tf.Tensor, queries: tf.Tensor, candidates: tf.Tensor, ratings: tf.Tensor, weight: tf.Tensor
    ) -> tf.Tensor:
        """Return the weighted sum of the rows' losses of both tasks, float32 ``[rows]``, and add to :attr:`errors`."""
        predicted = self(queries, candidates)
        for error in self.errors:
            # As Keras's absolute error needs them: it takes the mean over the last axis.
            error.update_state(ratings[:, tf.newaxis], predicted[:, tf.newaxis], weight)
        of_retrieval, of_rating = self._weights_of_losses
        return of_retrieval * losses + of_rating * tf.square((predicted - ratings) / self._scale)


class SavedRating(tf.Module):
    """A net from :func:`save_rating`."""

    def __init__(self, folder: Path) -> None:
        """Load the net."""
        super().__init__(name="rating")
        self._loaded = tf.saved_model.load(str(folder))

    def __call__(self, queries: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        """Return the ratings, as :meth:`RatingTask.call`."""
        return self._loaded.signatures[signatures.RATING](queries=queries, candidates=candidates)[signatures.RATING]


def save_rating(task: RatingTask, embedding_dim: int, folder: Path) -> None:
    """Write the net as a SavedModel, for a model whose candidates come after the training."""
    module = tf.Module(name=folder.name)
    module.state = state(task)
    specs = {name: tf.TensorSpec([None, embedding_dim], tf.float32, name) for name in ("queries", "candidates")}
    function = concrete(lambda vectors: {signatures.RATING: task(vectors["queries"], vectors["candidates"])}, specs)
    save_functions(module, {signatures.RATING: function}, folder)


def rating_task(model: Any) -> Any:
    """Return the part of ``model`` that predicts ratings, a :class:`RatingTask` or :class:`SavedRating`, or None."""
    task = getattr(model, "rating", None)
    return task if isinstance(task, RatingTask | SavedRating) else None
