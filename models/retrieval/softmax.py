"""Retrieval as a softmax over all candidates, for any query tower; training uses a sample of the candidates.

Other losses of :mod:`models.retrieval.losses` take its place by name.

Source: Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations", section 3.1: candidates are the
classes of an extreme multi-class problem, and serving searches the classes' weights. The softmax is computed over a
sample of the classes, corrected by importance weights.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID
from mirrorspark.models.layers import LogUniformSample, UniformSample
from mirrorspark.models.retrieval.losses import named_loss
from mirrorspark.models.retrieval.towers import CandidateEmbedding, candidate_tower
from mirrorspark.models.settings import LossSettings


class SoftmaxRetrieval(tf_keras.Model):
    """Softmax over the candidates of the vocabulary, all of them or a sample.

    ``query_tower`` computes the queries, ``candidate_tower`` contains the softmax's weights by id.
    """

    def __init__(
        self,
        query_tower: tf_keras.Model,
        fitted: FittedFeatures,
        settings: LossSettings,
        seed: int,
        candidates: CandidateEmbedding | None = None,
    ) -> None:
        """Add the candidates to a query tower.

        Args:
            query_tower: Maps the query's features by name to float32 ``[batch, embedding_dim]``.
            fitted: The features.
            settings: The loss. All are compared with candidates drawn in proportion to their frequency for the softmax,
                which is corrected for it, and with equal probability for the others, as their papers have them.
            seed: Seed of the draws.
            candidates: The candidates' embeddings by id, if the query tower uses them too; None creates them.
        """
        super().__init__()
        candidate = fitted.spec.candidate
        self._classes = classes = len(fitted.vocabulary(candidate))
        self._settings, negatives = settings, settings.negatives
        self._candidate = candidate.name
        self.query_tower = query_tower
        self.candidate_tower = candidates or candidate_tower(
            fitted, query_tower.output_shape[-1], cosine=settings.cosine
        )
        kind = LogUniformSample if settings.loss == "softmax" else UniformSample
        self.sample = kind(negatives, classes, seed) if negatives < classes else None
        if self.sample is not None:
            # A checkpoint is restored before the first step, into variables that exist.
            self.sample.build(None)
        self.mean_loss = tf_keras.metrics.Mean(name="loss")

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the score of each row's own candidate: float32 ``[batch]``."""
        candidates = self.candidate_tower(inputs[self._candidate])
        return tf.reduce_sum(self.query_tower(self._known(inputs)) * candidates, axis=1)

    @property
    def metrics(self) -> list[Any]:
        """The metric that Keras resets at each epoch."""
        return [self.mean_loss]

    def row_losses(self, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Return the loss of each row, float32 ``[batch]``; sampled while training, else exact."""
        queries = self.query_tower(self._known(inputs), training=training)
        # A row without a candidate of the vocabulary gets an arbitrary class here, and weight 0 in compute_loss.
        own = tf.maximum(inputs[self._candidate] - FIRST_VOCABULARY_ID, 0)
        return self.query_losses(queries, own, training)

    def query_losses(self, queries: tf.Tensor, own: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the loss of each query, float32 ``[queries]``.

        Args:
            queries: float32 ``[queries, embedding_dim]``.
            own: int64 ``[queries]``, the class of each query's own candidate.
            training: Whether to sample.
        """
        settings = self._settings
        if self.sample is None or not training:
            ids = tf.range(self._classes, dtype=tf.int64)
            candidates = self.candidate_tower.all_embeddings()[FIRST_VOCABULARY_ID:]
            logits = tf.matmul(queries, candidates, transpose_b=True) / settings.temperature
            if settings.loss == "softmax":
                return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=own, logits=logits)
            mine, others, rate = tf.gather(logits, own, axis=1, batch_dims=1), logits, 1.0
        else:
            ids = self.sample(own)
            mine = tf.reduce_sum(queries * self.candidate_tower(own + FIRST_VOCABULARY_ID), axis=1)
            mine /= settings.temperature
            others = tf.matmul(queries, self.candidate_tower(ids + FIRST_VOCABULARY_ID), transpose_b=True)
            others /= settings.temperature
            if settings.loss == "softmax":
                # Divided by the expected number of draws, their sum estimates that of all candidates but the row's own.
                others -= self.sample.log_expected_count(ids)
            rate = settings.negatives / (self._classes - 1)
        is_mine = tf.equal(own[:, tf.newaxis], ids[tf.newaxis, :])
        return named_loss(settings, mine, tf.where(is_mine, others.dtype.min, others), rate)

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Return the weighted mean loss of a batch ``(features, label, weight)``; the label is ignored."""
        features, _, weight = inputs
        weight = tf.where(features[self._candidate] >= FIRST_VOCABULARY_ID, weight, 0.0)
        return self._mean(self.row_losses(features, training), weight, tf.shape(weight)[0])

    def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Make one update; return the epoch's mean loss so far, over all replicas."""
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": self.mean_loss.result()}

    def test_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Return the mean loss so far, over all replicas."""
        self.compute_loss(inputs)
        return {"loss": self.mean_loss.result()}

    def _mean(self, losses: tf.Tensor, weights: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Return the sum of weighted losses divided by the rows of the batch, and add them to the metric."""
        loss, total = tf.reduce_sum(losses * weights), tf.reduce_sum(weights)
        self.mean_loss.update_state(tf.math.divide_no_nan(loss, total), sample_weight=total)
        # Dividing by the rows of all replicas makes the all-reduced gradient their mean.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return loss / (tf.cast(rows, tf.float32) * replicas)

    def _known(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the features that are inputs of the query tower."""
        return {name: features[name] for name in self.query_tower.input}
