"""The model of all trained retrieval architectures: two towers, and a loss that compares candidates.

Each row's own candidate is compared with others: those of the batch, a sample, both, or all of them
(:mod:`models.retrieval.sampling`), by the loss of :mod:`models.retrieval.task`.

Source: Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations", section 3.1: candidates are the
classes of an extreme multi-class problem, and serving searches the classes' weights. The in-batch softmax is that of
TensorFlow Recommenders' ``Retrieval`` task.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.data_pipelines.reading import padding_scale
from mirrorspark.models.index import GROUP, TILE_SCORES, Best, Queries, best_columns, in_tiles, without
from mirrorspark.models.recommenders import tfrs
from mirrorspark.models.retrieval.item_tower import ItemTower
from mirrorspark.models.retrieval.rating import RatingTask
from mirrorspark.models.retrieval.sampling import CandidateSampling, Columns
from mirrorspark.models.retrieval.task import RetrievalTask
from mirrorspark.models.retrieval.towers import CandidateEmbedding, candidate_tower
from mirrorspark.models.settings import LossSettings

if TYPE_CHECKING:  # they are models of this kind
    from mirrorspark.models.retrieval.graph import GraphCandidates


class RetrievalModel(tfrs.Model):
    """Two towers whose dot product ranks the candidates: ``query_tower``, and ``candidate_tower`` by id.

    Validation compares each row with all candidates, or with those of the batch if training does.
    """

    def __init__(
        self,
        query_tower: tf_keras.Model,
        fitted: FittedFeatures,
        settings: LossSettings,
        seed: int,
        candidates: "CandidateEmbedding | GraphCandidates | ItemTower | None" = None,
        rating: RatingTask | None = None,
    ) -> None:
        """Add the candidates to a query tower.

        Args:
            query_tower: Maps the query's features by name to float32 ``[batch, embedding_dim]``.
            fitted: The features.
            settings: The loss, and the candidates that it compares with.
            seed: Seed of the draws.
            candidates: The candidates' tower, if the query tower uses it too, or it reads features; None creates a
                table of embeddings.
            rating: The second task, which learns the ratings in the labels; None learns to retrieve alone.
        """
        super().__init__()
        self._settings = settings
        self._candidate = fitted.spec.candidate.name
        self.query_tower = query_tower
        self.candidate_tower = candidates or candidate_tower(
            fitted, query_tower.output_shape[-1], cosine=settings.cosine
        )
        self._sampling = CandidateSampling(settings, fitted, seed)
        # Keras saves what is an attribute of the model itself.
        self.sample = self._sampling.sample
        self.task = RetrievalTask(settings, sampling_rate=self._sampling.rate)
        self.mean_loss = tf_keras.metrics.Mean(name="loss")
        self.rating = rating

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the score of each row's own candidate: float32 ``[batch]``."""
        candidates = self.candidate_tower(inputs[self._candidate])
        return tf.reduce_sum(self.query_tower(self._known(inputs)) * candidates, axis=1)

    @property
    def metrics(self) -> list[Any]:
        """The metrics that Keras resets at each epoch."""
        return [self.mean_loss, *(self.rating.errors if self.rating else ())]

    def row_losses(
        self,
        inputs: Mapping[str, tf.Tensor],
        weight: tf.Tensor,
        training: bool,
        ratings: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Return the loss of each row, float32 ``[batch]``; rows of weight 0 are nobody's other candidates."""
        queries, own = self.query_tower(self._known(inputs), training=training), inputs[self._candidate]
        losses = self.query_losses(queries, own, weight > 0, training)
        if self.rating is None or ratings is None:
            return losses
        candidates = self.candidate_tower(own, training=training)
        return self.rating.joint_losses(losses, queries, candidates, ratings, weight)

    def query_losses(self, queries: tf.Tensor, own: tf.Tensor, is_row: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the loss of each query, float32 ``[queries]``.

        Args:
            queries: float32 ``[queries, embedding_dim]``.
            own: int64 ``[queries]``, the id of each query's own candidate.
            is_row: bool ``[queries]``, false for padding.
            training: Whether to sample.
        """
        if self._sampling.compares_with_all(training):
            return self._losses_among_all(queries, own, training)
        drawn = self._sampling.drawn_ids(own)
        mine = self.candidate_tower(own, training=training)
        candidates = [mine] if self._sampling.reads_batch else []
        if drawn is not None:
            candidates.append(self.candidate_tower(drawn, training=training))
        # Concatenating one tensor would change the order in which gradients are summed, and so their last bits.
        scores = self.task.scores(queries, candidates[0] if len(candidates) == 1 else tf.concat(candidates, axis=0))
        own_scores = tf.reduce_sum(queries * mine, axis=1) / self._settings.temperature
        columns = self._sampling.columns(own, is_row, drawn)
        nearest = self._nearest(queries, own) if training and self._settings.index_negatives else None
        return self.task.losses_of_rows(own, own_scores, columns, scores, training, nearest)

    def _nearest(self, queries: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
        """Return the scores of the candidates but the own one that are nearest to each query: ``[queries, count]``.

        The search has no gradient, and looks at vectors of this moment; so no index can be out of date, and the
        gradient of the candidates stays sparse.
        """
        table = tf.stop_gradient(self.candidate_tower.all_embeddings()[kinds.FIRST_VOCABULARY_ID :])
        candidates = tf.shape(table)[0]
        count, missing = tf.minimum(self._settings.index_negatives, candidates - 1), -candidates % GROUP

        def search(tile: Queries) -> Best:
            scores = without(tf.matmul(tile.vectors, table, transpose_b=True), tile.excluded)
            scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=scores.dtype.min)
            return best_columns(scores, count)

        # In tiles, since all scores of a step with a query for each place of a history would take gigabytes.
        rows = tf.maximum(1, TILE_SCORES // candidates)
        asked = Queries(tf.stop_gradient(queries), own[:, tf.newaxis] - kinds.FIRST_VOCABULARY_ID)
        found = in_tiles(asked, rows, search).ids + kinds.FIRST_VOCABULARY_ID
        vectors = self.candidate_tower(tf.reshape(found, [-1]), training=True)
        vectors = tf.reshape(vectors, [tf.shape(found)[0], -1, queries.shape[1]])
        return tf.einsum("qd,qcd->qc", queries, vectors) / self._settings.temperature

    def _losses_among_all(self, queries: tf.Tensor, own: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the loss of each query among all candidates of the vocabulary, float32 ``[queries]``."""
        scores = self.task.scores(queries, self.candidate_tower.all_embeddings(training)[kinds.FIRST_VOCABULARY_ID :])
        number = own - kinds.FIRST_VOCABULARY_ID
        if self._settings.loss == "softmax" and not (training and self._settings.hard_negatives):
            return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=number, logits=scores)
        own_scores = tf.gather(scores, number, axis=1, batch_dims=1)
        columns = Columns(tf.range(tf.shape(scores)[1], dtype=tf.int64) + kinds.FIRST_VOCABULARY_ID)
        return self.task.losses_of_rows(own, own_scores, columns, scores, training)

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Return the weighted mean loss of a batch of ``load_batches``; the label is a rating or ignored."""
        features, label, weight = inputs[:3]
        if self._settings.sampling != "in_batch":
            # The others are candidates of the vocabulary, so a row of another one has no loss, and any as its own.
            own = features[self._candidate]
            weight = tf.where(own >= kinds.FIRST_VOCABULARY_ID, weight, 0.0)
            features = {**features, self._candidate: tf.maximum(own, kinds.FIRST_VOCABULARY_ID)}
        losses = self.row_losses(features, weight, training, label)
        return self._mean(losses, weight, tf.shape(weight)[0], padding_scale(inputs))

    def train_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Make one update; return the epoch's metrics so far, over all replicas."""
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, inputs: Any) -> dict[str, tf.Tensor]:
        """Return the metrics so far, over all replicas."""
        self.compute_loss(inputs)
        return {metric.name: metric.result() for metric in self.metrics}

    def _mean(self, losses: tf.Tensor, weights: tf.Tensor, rows: tf.Tensor, scale: Any) -> tf.Tensor:
        """Return the sum of weighted losses divided by the rows that are not padding, and add them to the metric.

        Args:
            losses: float32 ``[losses]``.
            weights: float32 ``[losses]``.
            rows: The rows of the batch, padding included.
            scale: :attr:`data_pipelines.reading.padding.PaddedBatch.scale`.
        """
        loss, total = tf.reduce_sum(losses * weights), tf.reduce_sum(weights)
        self.mean_loss.update_state(tf.math.divide_no_nan(loss, total), sample_weight=total)
        # Dividing by the rows of all replicas makes the all-reduced gradient their mean.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return scale * loss / (tf.cast(rows, tf.float32) * replicas)

    def _known(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the features that are inputs of the query tower."""
        return {name: features[name] for name in self.query_tower.input}
