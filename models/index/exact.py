"""Exact search for the best candidates of every query, in stock TensorFlow ops, and the common parts of all indexes."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds

# Number of scores in memory at a time, and number of candidates per block of a larger catalogue. On one core the best
# 20 of 100,000 take 146 microseconds per query, the best 100 take 193; with a quarter of both sizes 177 and 329. A
# matrix product is efficient with many queries, and the search for the best restarts in each block.
TILE_SCORES = 1 << 24
BLOCK_CANDIDATES = 1 << 17
# Scores of a row that are represented by their maximum in the first pass of a search for the best.
GROUP = 32


class Queries(NamedTuple):
    """A batch of queries.

    Attributes:
        vectors: float32 ``[batch, dim]``.
        excluded: int64 ``[batch, any]``, ids that must not be returned for the row, padded with 0.
    """

    vectors: tf.Tensor
    excluded: tf.Tensor

    def between(self, start: tf.Tensor, stop: tf.Tensor) -> "Queries":
        """Return the rows from ``start`` to before ``stop``."""
        return Queries(self.vectors[start:stop], self.excluded[start:stop])

    def at(self, rows: tf.Tensor) -> "Queries":
        """Return the rows with these numbers."""
        return Queries(tf.gather(self.vectors, rows), tf.gather(self.excluded, rows))


class Best(NamedTuple):
    """The best candidates of each row, best first. An unfilled place has the lowest float32 as score, and any id.

    Attributes:
        ids: int64 ``[batch, k]``.
        scores: float32 ``[batch, k]``.
    """

    ids: tf.Tensor
    scores: tf.Tensor


class Index(Protocol):
    """A search structure for the best candidates of queries."""

    @property
    def exact(self) -> "ExactTopK":
        """The exact index of the same candidates."""

    def search(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        """Return the best ``k`` candidates of each row, exactly or approximately.

        Args:
            queries: The queries.
            k: Number of candidates, which may exceed the catalogue.
            offsets: Result of :meth:`ExactTopK.offsets` for the unavailable candidates.
        """


class ExactTopK(tf.Module):
    """Scores every candidate by its dot product with the query; among equal scores the lower id is better.

    It works in tiles of queries and candidates whose scores take 64 MB, so memory grows neither with the catalogue nor
    with the batch.
    """

    scores_are_products = True
    """Whether there are vectors of queries and candidates whose products are the scores."""

    def __init__(
        self, candidate_embeddings: np.ndarray, removed: np.ndarray | None = None, *, is_saved: bool = True
    ) -> None:
        """Store the embeddings.

        Args:
            candidate_embeddings: float32 ``[ids, dim]``.
            removed: int64 ``[any]``, ids that are not candidates any more and are never found.
            is_saved: Whether the index becomes part of a SavedModel; false for one within a training, where the
                creation of a variable is a collective of all workers.
        """
        super().__init__(name="exact_top_k")
        self.id_count = len(candidate_embeddings)
        self._removed = np.zeros(0, np.int64) if removed is None else removed
        # Padded to whole groups; :meth:`offsets` excludes the padding from results.
        added = -self.id_count % GROUP
        padded = np.pad(candidate_embeddings, [(0, added), (0, 0)])
        self.embeddings = (
            tf.Variable(padded, trainable=False, name="candidate_embeddings") if is_saved else tf.constant(padded)
        )
        self._rows = self.id_count + added
        self._tile_queries = max(1, TILE_SCORES // min(self._rows, BLOCK_CANDIDATES))

    @property
    def exact(self) -> "ExactTopK":
        """This index itself, for the protocol of all indexes."""
        return self

    def query_vectors(self, vectors: tf.Tensor) -> tf.Tensor:
        """Return float32 ``[batch, dim]``, whose products with :attr:`candidate_vectors` are the scores."""
        return vectors

    @property
    def candidate_vectors(self) -> tf.Tensor:
        """float32 ``[ids, dim]``."""
        return self.embeddings[: self.id_count]

    @property
    def candidate_ids(self) -> np.ndarray:
        """int64 ``[candidates]``: the ids that may be found, ascending."""
        return np.setdiff1d(np.arange(kinds.FIRST_VOCABULARY_ID, self.id_count), self._removed)

    def offsets(self, unavailable: tf.Tensor | None = None) -> tf.Tensor:
        """Return offsets for the scores: 0, or the lowest float32 for ids that must not be returned for any row.

        Args:
            unavailable: int64 ``[any]``, ids of candidates.
        """
        offsets = np.zeros(self._rows, np.float32)
        offsets[: kinds.FIRST_VOCABULARY_ID] = offsets[self.id_count :] = offsets[self._removed] = tf.float32.min
        if unavailable is None:
            return tf.constant(offsets)
        return tf.tensor_scatter_nd_update(
            tf.constant(offsets), unavailable[:, tf.newaxis], tf.fill(tf.shape(unavailable), tf.float32.min)
        )

    def search(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        """Return the exact best ``k`` of all candidates; see :meth:`Index.search`."""
        return in_tiles(queries, self._tile_queries, lambda tile: self._search_tile(tile, k, offsets))

    def _search_tile(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        best = self._search_block(queries, k, offsets, 0)
        if self._rows <= BLOCK_CANDIDATES:
            return best

        def search_next(start: tf.Tensor, ids: tf.Tensor, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            found = self._search_block(queries, k, offsets, start)
            # Earlier candidates have lower ids and come first, because top_k takes the first among equals.
            merged = tf.math.top_k(tf.concat([scores, found.scores], axis=1), k)
            all_ids = tf.concat([ids, found.ids], axis=1)
            return start + BLOCK_CANDIDATES, tf.gather(all_ids, merged.indices, batch_dims=1), merged.values

        _, ids, scores = tf.while_loop(
            lambda start, *_: start < self._rows, search_next, (BLOCK_CANDIDATES, *best), parallel_iterations=1
        )
        return Best(ids, scores)

    def _search_block(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor, start: int | tf.Tensor) -> Best:
        stop = tf.minimum(start + BLOCK_CANDIDATES, self._rows)
        scores = tf.matmul(queries.vectors, self.embeddings[start:stop], transpose_b=True) + offsets[start:stop]
        best = best_columns(without(scores, queries.excluded - tf.cast(start, tf.int64)), k)
        return Best(best.ids + tf.cast(start, tf.int64), best.scores)


def best_columns(scores: tf.Tensor, k: int | tf.Tensor) -> Best:
    """Return the best ``k`` columns of each row, the first among equals; padded if there are fewer columns.

    The search first finds the groups of columns with the largest maxima, then the best columns in those. The best k
    columns are in the best k groups: for a column in any other group, each of these k groups has a column that is
    better, or equal and before it. For the best 20 of 100,000 this takes a fifth of the time of one pass, for the best
    100 a third.

    Args:
        scores: float32 ``[batch, columns]``; a multiple of ``GROUP`` columns.
        k: Number of columns to return.
    """
    groups = tf.shape(scores)[1] // GROUP
    grouped = tf.reshape(scores, [-1, groups, GROUP])
    # Sorted, so that among equal columns the first remains the first.
    chosen = tf.sort(tf.math.top_k(tf.reduce_max(grouped, axis=2), tf.minimum(k, groups), sorted=False).indices)
    width = tf.shape(chosen)[1] * GROUP
    within = tf.math.top_k(tf.reshape(tf.gather(grouped, chosen, batch_dims=1), [-1, width]), tf.minimum(k, width))
    group = tf.gather(chosen, within.indices // GROUP, batch_dims=1)
    columns = tf.cast(group * GROUP + within.indices % GROUP, tf.int64)
    missing = [[0, 0], [0, tf.maximum(k - width, 0)]]
    return Best(tf.pad(columns, missing), tf.pad(within.values, missing, constant_values=scores.dtype.min))


def without(scores: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Return ``scores`` with the lowest number in the given columns of each row; columns out of range are ignored.

    Args:
        scores: float32 ``[batch, columns]``.
        columns: int64 ``[batch, any]``.
    """
    places = tf.where((columns >= 0) & (columns < tf.shape(scores, tf.int64)[1]))
    at = tf.stack([places[:, 0], tf.gather_nd(columns, places)], axis=1)
    return tf.tensor_scatter_nd_update(scores, at, tf.fill(tf.shape(places)[:1], scores.dtype.min))


def in_tiles(queries: Queries, rows: int | tf.Tensor, search: Callable[[Queries], Best]) -> Best:
    """Return the results of ``search`` for all queries, computed in consecutive tiles of ``rows`` rows.

    Args:
        queries: All queries, possibly none.
        rows: Rows per tile.
        search: Called once, to be traced.
    """
    tiles = tf.maximum(1, -(-tf.shape(queries.vectors)[0] // rows))

    def search_next(
        number: tf.Tensor, ids: tf.TensorArray, scores: tf.TensorArray
    ) -> tuple[tf.Tensor, tf.TensorArray, tf.TensorArray]:
        found = search(queries.between(number * rows, (number + 1) * rows))
        return number + 1, ids.write(number, found.ids), scores.write(number, found.scores)

    found = [
        tf.TensorArray(dtype, tiles, infer_shape=False, element_shape=[None, None]) for dtype in (tf.int64, tf.float32)
    ]
    _, ids, scores = tf.while_loop(lambda number, *_: number < tiles, search_next, (0, *found), parallel_iterations=1)
    return Best(ids.concat(), scores.concat())


def completed(found: Best, exact: ExactTopK, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
    """Return ``found`` with the exact best for the rows for which an index found fewer than ``k``.

    If users have seen most of the candidates near them, or few are available, the remaining candidates are outside the
    parts that an index searches.
    """
    short = tf.where(found.scores[:, -1] == found.scores.dtype.min)
    best = exact.search(queries.at(short[:, 0]), k, offsets)
    return Best(*(tf.tensor_scatter_nd_update(old, short, new) for old, new in zip(found, best, strict=True)))


def recall(found: np.ndarray, best: np.ndarray) -> float:
    """Return the share of the exact best that was found.

    Args:
        found: int64 ``[queries, any]``, ids from an index.
        best: int64 ``[queries, k]``, ids from the exact index.
    """
    return float((found[:, :, np.newaxis] == best[:, np.newaxis, :]).any(axis=1).mean())
