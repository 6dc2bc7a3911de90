"""Exact search for the best candidates of every query."""

from typing import Any

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.index.search import (
    CANDIDATE_EMBEDDINGS,
    GROUP,
    TILE_SCORES,
    Best,
    Queries,
    best_columns,
    in_tiles,
    without,
)
from mirrorspark.models.index.top_k import SearchTopK

# Number of candidates per block of a larger catalogue. With it, and the scores of a tile, the best 20 of 100,000 take
# 146 microseconds per query on one core, the best 100 take 193; with a quarter of both sizes 177 and 329. A matrix
# product is efficient with many queries, and the search for the best restarts in each block.
BLOCK_CANDIDATES = 1 << 17


class ExactTopK(SearchTopK):
    """Scores every candidate by its dot product with the query; among equal scores the lower id is better.

    It works in tiles of queries and candidates whose scores take 64 MB, so memory grows neither with the catalogue nor
    with the batch.
    """

    finds_best = True

    scores_are_products = True
    """Whether there are vectors of queries and candidates whose products are the scores."""

    def __init__(
        self,
        candidate_embeddings: np.ndarray | None = None,
        removed: np.ndarray | None = None,
        *,
        is_saved: bool = True,
        query_model: Any = None,
        k: int = 10,
    ) -> None:
        """Store the embeddings.

        Args:
            candidate_embeddings: float32 ``[ids, dim]``; None for those of a later :meth:`index`.
            removed: int64 ``[any]``, ids that are not candidates any more and are never found.
            is_saved: Whether the index becomes part of a SavedModel; false for one within a training, where the
                creation of a variable is a collective of all workers.
            query_model: As in :class:`SearchTopK`.
            k: As in :class:`SearchTopK`.
        """
        super().__init__("exact_top_k", query_model, k)
        self._identifiers: Any = None
        self.id_count = 0
        if candidate_embeddings is not None:
            self._store(candidate_embeddings, removed, is_saved=is_saved)

    def _store(self, candidate_embeddings: np.ndarray, removed: np.ndarray | None, *, is_saved: bool) -> None:
        self.id_count = len(candidate_embeddings)
        self._removed = np.zeros(0, np.int64) if removed is None else removed
        # Padded to whole groups; :meth:`offsets` excludes the padding from results.
        added = -self.id_count % GROUP
        padded = np.pad(candidate_embeddings, [(0, added), (0, 0)])
        self.embeddings = (
            tf.Variable(padded, trainable=False, name=CANDIDATE_EMBEDDINGS) if is_saved else tf.constant(padded)
        )
        self._rows = self.id_count + added
        self._tile_queries = max(1, TILE_SCORES // min(self._rows, BLOCK_CANDIDATES))

    def index(self, candidates: tf.Tensor, identifiers: tf.Tensor | None = None) -> "ExactTopK":
        """Replace the candidates, as TensorFlow Recommenders' indexes do; return this index.

        Args:
            candidates: float32 ``[candidates, dim]``.
            identifiers: ``[candidates]``, which a call returns for them; by default their places.
        """
        reserved = kinds.FIRST_VOCABULARY_ID
        self._store(np.pad(np.asarray(candidates), [(reserved, 0), (0, 0)]), None, is_saved=True)
        named = tf.range(self.id_count - reserved) if identifiers is None else tf.convert_to_tensor(identifiers)
        self._identifiers = tf.concat([tf.repeat(named[:1], reserved), named], axis=0)
        self._reset_tf_function_cache()
        return self

    def identified(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the identifiers of ids."""
        return ids if self._identifiers is None else tf.gather(self._identifiers, ids)

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
        """Return the exact best ``k`` of all candidates; see :meth:`models.index.search.Index.search`.

        Raises:
            ValueError: There are no candidates yet.
        """
        if not self.id_count:
            raise ValueError("the index has no candidates; call index, or index_from_dataset, before it is asked")
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


def completed(found: Best, exact: ExactTopK, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
    """Return ``found`` with the exact best for the rows for which an index found fewer than ``k``.

    If users have seen most of the candidates near them, or few are available, the remaining candidates are outside the
    parts that an index searches.
    """
    short = tf.where(found.scores[:, -1] == found.scores.dtype.min)
    best = exact.search(queries.at(short[:, 0]), k, offsets)
    return Best(*(tf.tensor_scatter_nd_update(old, short, new) for old, new in zip(found, best, strict=True)))
