"""Exact search by the scores of classical recommenders, which come from the items of a row's history.

The vectors of their queries are these items' ids, int64 ``[batch, any]``, each once, with 0 for nothing.
"""

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.index.exact import ExactTopK
from mirrorspark.models.index.search import TILE_SCORES, Best, Queries, best_columns, in_tiles, without


class HistoryTopK(ExactTopK):
    """Scores every candidate from the items of the history; among equal scores the lower id is better."""

    scores_are_products = False

    def __init__(self, items: int, numbers_per_row: int = 1, numbers_per_item: int = 0) -> None:
        """Prepare a search among this number of items.

        Args:
            items: Number of candidates; item i has the id i + 2.
            numbers_per_row: Numbers that a row takes in memory in addition to its scores.
            numbers_per_item: Numbers that each place of a row's history takes in addition.
        """
        super().__init__(np.zeros((items + kinds.FIRST_VOCABULARY_ID, 0), np.float32))
        self._row_numbers, self._numbers_per_item = max(self._rows, numbers_per_row), numbers_per_item

    @property
    def numbers(self) -> tuple[int, int]:
        """The numbers in memory per row and, in addition, per place of its history."""
        return self._row_numbers, self._numbers_per_item

    def search(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        """Return the exact best ``k`` of all candidates, in tiles that are smaller the longer the histories are."""
        row = self._row_numbers + self._numbers_per_item * tf.shape(queries.vectors)[1]
        rows = tf.maximum(1, TILE_SCORES // row)
        return in_tiles(queries, rows, lambda tile: self._search_tile(tile, k, offsets))

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the scores of all ids, float32 ``[batch, ids]``, padded to whole groups."""
        raise NotImplementedError

    def _search_tile(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        scores = self.scores(queries.vectors) + offsets
        return best_columns(without(scores, queries.excluded), k)

    def _padded(self, by_item: np.ndarray, *axes: int) -> tf.Variable:
        """Return an array by item as a variable by id, with zeros for ids that are not items, along these axes."""
        widths = [(0, 0)] * by_item.ndim
        for axis in axes:
            widths[axis] = (kinds.FIRST_VOCABULARY_ID, self._rows - kinds.FIRST_VOCABULARY_ID - by_item.shape[axis])
        return tf.Variable(np.pad(by_item, widths), trainable=False)


class PopularTopK(HistoryTopK):
    """Scores a candidate by its number of training rows."""

    def __init__(self, counts: np.ndarray) -> None:
        """Store float32 ``[items]``."""
        super().__init__(len(counts))
        self._counts = self._padded(counts, 0)

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the counts, the same for every row."""
        return tf.tile(self._counts[tf.newaxis], [tf.shape(ids)[0], 1])


class NeighboursTopK(HistoryTopK):
    """Scores a candidate by the sum of its weights in the sparse rows of the history's items."""

    def __init__(self, neighbours: np.ndarray, weights: np.ndarray) -> None:
        """Store the rows.

        Args:
            neighbours: int32 ``[items, k]``, items.
            weights: float32 ``[items, k]``, their weights; 0 where an item has fewer neighbours.
        """
        # A weight twice, as float32 and float64, its item and its place.
        super().__init__(len(neighbours), numbers_per_item=5 * neighbours.shape[1])
        self._neighbours = self._padded(neighbours + kinds.FIRST_VOCABULARY_ID, 0)
        self._weights = self._padded(weights, 0)

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the sums, which do not depend on the order of the history: float64 holds them exactly enough."""
        rows = tf.shape(ids)[0]
        places = tf.gather(self._neighbours, ids) + self._rows * tf.range(rows)[:, tf.newaxis, tf.newaxis]
        weights = tf.cast(tf.gather(self._weights, ids), tf.float64)
        sums = tf.math.unsorted_segment_sum(weights, places, rows * self._rows)
        return tf.cast(tf.reshape(sums, [rows, self._rows]), tf.float32)


class WeightsTopK(HistoryTopK):
    """Scores a candidate by the sum of its weights in the dense rows of the history's items."""

    def __init__(self, weights: np.ndarray) -> None:
        """Store float32 ``[items, items]``."""
        super().__init__(len(weights))
        self._weights = self._padded(weights, 0, 1)

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the sums."""
        places = tf.where(ids > 0)
        had = tf.SparseTensor(
            tf.stack([places[:, 0], tf.gather_nd(ids, places)], axis=1),
            tf.ones([tf.shape(places)[0]]),
            tf.cast([tf.shape(ids)[0], self._rows], tf.int64),
        )
        return tf.sparse.sparse_dense_matmul(tf.sparse.reorder(had), self._weights)


class FactorsTopK(HistoryTopK):
    """Scores a candidate by its factors and those of the user, who is folded in from the history's items.

    :func:`training.programs.recommenders.als.fold_in` has the equation.
    """

    scores_are_products = True

    def __init__(self, factors: np.ndarray, l2: float, alpha: float) -> None:
        """Store float32 ``[items, rank]`` and the settings that they were computed with."""
        rank = factors.shape[1]
        super().__init__(len(factors), 4 * rank**2, 3 * rank)
        self._factors = self._padded(factors, 0)
        self._common = tf.Variable(factors.astype(np.float64).T @ factors.astype(np.float64), trainable=False)
        self._l2, self._alpha = l2, alpha

    def scores(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the products; 0 for a row without a history."""
        return tf.matmul(self.query_vectors(ids), self._factors, transpose_b=True)

    @property
    def candidate_vectors(self) -> tf.Tensor:
        """float32 ``[ids, rank]``."""
        return self._factors[: self.id_count]

    def query_vectors(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the factors of the users, float32 ``[batch, rank]``; 0 for a row without a history."""
        # The factors of id 0 are 0.
        own = tf.cast(tf.gather(self._factors, ids), tf.float64)
        count = tf.cast(tf.math.count_nonzero(ids, axis=1), tf.float64)[:, tf.newaxis, tf.newaxis]
        identity = tf.eye(self._factors.shape[1], dtype=tf.float64)
        matrix = self._common + self._alpha * tf.matmul(own, own, transpose_a=True)
        # Any matrix that can be inverted does for a row without a history.
        matrix += tf.where(count > 0, self._l2 * count, 1.0) * identity
        wanted = (1 + self._alpha) * tf.reduce_sum(own, axis=1)
        return tf.cast(tf.linalg.solve(matrix, wanted[:, :, tf.newaxis])[:, :, 0], tf.float32)
