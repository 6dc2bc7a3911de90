"""Retrieval that can learn from every position of a history at once."""

from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.data_pipelines.reading import padding_scale
from mirrorspark.models.retrieval.item_tower import ItemTower
from mirrorspark.models.retrieval.model import RetrievalModel
from mirrorspark.models.retrieval.towers import CandidateEmbedding
from mirrorspark.models.settings import LossSettings


class SequenceRetrieval(RetrievalModel):
    """A retrieval model whose training rows may stand for all positions of their history.

    A position's query is the state before an item, and its candidate is that item. A row's loss is the sum of those of
    its positions, so that each position counts as a row of its own would, and the gradient does not depend on
    how rows are distributed over workers.
    """

    def __init__(
        self,
        query_tower: tf_keras.Model,
        state_tower: tf_keras.Model | None,
        history: str,
        candidates: CandidateEmbedding | ItemTower,
        fitted: FittedFeatures,
        settings: LossSettings,
        seed: int,
    ) -> None:
        """Add a tower of states.

        Args:
            query_tower: Maps the query's features by name to float32 ``[batch, embedding_dim]``.
            state_tower: Maps them to the states before the history, and after each of its items, float32
                ``[batch, 1 + any, embedding_dim]``; None learns from the row's candidate alone.
            history: Name of the list that the states belong to.
            candidates: The candidates' embeddings by id, or of item features.
            fitted: The features.
            settings: As in :class:`RetrievalModel`.
            seed: As in :class:`RetrievalModel`.
        """
        super().__init__(query_tower, fitted, settings, seed, candidates)
        self._history = history
        # Features that are not in the common table of the others, which a warm start must know.
        self.embedded_apart = (history,)
        self.state_tower = state_tower

    def hold_histories(self) -> None:
        """Keep the vectors of the histories' items for an export, in place of the items' features."""
        if isinstance(self.candidate_tower, ItemTower):
            self.candidate_tower.hold_histories()

    def compute_loss(self, inputs: Any, training: bool = False) -> tf.Tensor:
        """Return the weighted mean loss of a batch of ``load_batches``; the label is ignored."""
        if self.state_tower is None or not training:
            return super().compute_loss(inputs, training)
        features, _, weight = inputs[:3]
        states = self.state_tower(self._known(features), training=training)
        following = following_ids(features[self._history], features[self._candidate])
        weights = tf.where(following >= kinds.FIRST_VOCABULARY_ID, weight[:, tf.newaxis], 0.0)
        # Most positions of most histories are padding, and the loss is the costliest part.
        used = tf.where(weights > 0)
        weights = tf.gather_nd(weights, used)
        losses = self.query_losses(tf.gather_nd(states, used), tf.gather_nd(following, used), weights > 0, training)
        return self._mean(losses, weights, tf.shape(weight)[0], padding_scale(inputs))


def following_ids(ids: tf.Tensor, candidate: tf.Tensor) -> tf.Tensor:
    """Return int64 ``[batch, 1 + any]``: the id after each position of a history, and 0 where there is none.

    Position 0 is before the first id; the candidate follows the last one.

    Args:
        ids: int64 ``[batch, any]``, padded with 0 on the right.
        candidate: int64 ``[batch]``.
    """
    is_id = tf.pad(tf.not_equal(ids, kinds.MISSING_ID), [[0, 0], [1, 0]], constant_values=True)
    # Reversed, the number of ids after a position.
    after = tf.cumsum(tf.cast(is_id, tf.int32), axis=1, reverse=True, exclusive=True)
    following = tf.where(after == 0, candidate[:, tf.newaxis], tf.pad(ids, [[0, 0], [0, 1]]))
    return tf.where(is_id, following, tf.cast(kinds.MISSING_ID, ids.dtype))
