"""Exact search by the scores of a network and of classical recommenders together.

The vectors of its queries are float64 ``[batch, any]``, which holds numbers and ids exactly: first the network's
vector, then the history's ids for each recommender, in equal parts.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.index.exact import ExactTopK
from mirrorspark.models.index.row_sums import HistoryTopK


class BlendTopK(HistoryTopK):
    """Scores a candidate by the weighted sum of scaled scores, as :mod:`training.programs.recommenders.blending`."""

    def __init__(self, embeddings: np.ndarray, others: Sequence[HistoryTopK], share: float) -> None:
        """Combine the network's candidates with the indexes of classical recommenders.

        Args:
            embeddings: float32 ``[ids, dim]``, the network's vectors of the candidates.
            others: An index for each recommender, at least one.
            share: The network's share of the sum; the others have equal parts of the rest.
        """
        most = [max(numbers) for numbers in zip(*(one.numbers for one in others), strict=True)]
        super().__init__(len(embeddings) - kinds.FIRST_VOCABULARY_ID, 3 * len(embeddings) + most[0], most[1])
        self._dim, self._share = embeddings.shape[1], share
        self._network, self._others = ExactTopK(embeddings), list(others)

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the sums; ``ids`` are the vectors of the queries."""
        batch, places = tf.shape(ids)[0], tf.shape(ids)[1] - self._dim
        lists = tf.reshape(ids[:, self._dim :], [batch, len(self._others), places // len(self._others)])
        vectors = tf.cast(ids[:, : self._dim], tf.float32)
        total = self._share * self._scaled(tf.matmul(vectors, self._network.embeddings, transpose_b=True))
        for place, one in enumerate(self._others):
            own = one.scores(tf.cast(lists[:, place], tf.int64))
            total += (1 - self._share) / len(self._others) * self._scaled(own)
        return total

    def _scaled(self, scores: tf.Tensor) -> tf.Tensor:
        of_items = scores[:, kinds.FIRST_VOCABULARY_ID : self.id_count]
        mean = tf.reduce_mean(of_items, axis=1, keepdims=True)
        highest = tf.reduce_max(of_items, axis=1, keepdims=True) - mean
        return tf.math.divide_no_nan(scores - mean, highest)
