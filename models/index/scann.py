"""Approximate search by ScaNN, whose op must be registered (``import scann``) before a model with it is loaded."""

import numpy as np
import tensorflow as tf

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.index.exact import ExactTopK, completed
from mirrorspark.models.index.search import Best, Queries
from mirrorspark.models.index.top_k import SearchTopK

# ScaNN cannot exclude candidates from its search, so more are fetched and the excluded ones dropped.
OVERFETCH = 8
# Share of the leaves that a query searches. On random vectors, for which a tree does not help, recall@20 is 0.94 with
# 1,000 candidates, 0.97 with 9,000 and 0.93 with 50,000; with a quarter of the leaves it is 0.65, 0.76 and 0.83.
SEARCHED_SHARE = 2 / 3
# ScaNN's quantiser forms this many clusters per block of dimensions.
LEAST_CANDIDATES = 16
_DIMENSIONS_PER_BLOCK = 2


class ScannTopK(SearchTopK):
    """ScaNN (Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector Quantization")."""

    def __init__(self, exact: ExactTopK, k: int) -> None:
        """Index the candidates of ``exact``.

        Args:
            exact: Provides the embeddings, and completes rows for which ScaNN finds too few candidates.
            k: Usual number of candidates per query.

        Raises:
            ValueError: There are too few candidates to train ScaNN.
        """
        from scann.scann_ops.py import scann_ops

        super().__init__("scann_top_k", k=k)
        self._exact = exact
        ids = exact.candidate_ids
        self._candidates = len(ids)
        if self._candidates < LEAST_CANDIDATES:
            raise ValueError(
                f"ScaNN cannot index {self._candidates} candidates, it needs {LEAST_CANDIDATES}; use the exact index"
            )
        leaves = max(1, int(np.sqrt(self._candidates)))
        fetched = min(k * OVERFETCH, self._candidates)
        # Without removed ids, those of the found rows follow from their numbers alone.
        self._ids: tf.Variable | None = None
        candidates = exact.embeddings[kinds.FIRST_VOCABULARY_ID : exact.id_count]
        if self._candidates < exact.id_count - kinds.FIRST_VOCABULARY_ID:
            self._ids = tf.Variable(ids, trainable=False, name="scann_ids")
            candidates = tf.gather(exact.embeddings, ids)
        builder = scann_ops.builder(candidates, fetched, "dot_product")
        builder = builder.tree(leaves, max(1, round(leaves * SEARCHED_SHARE)))
        builder = builder.score_ah(_DIMENSIONS_PER_BLOCK).reorder(fetched)
        self._searcher = builder.build().serialize_to_module()

    @property
    def exact(self) -> ExactTopK:
        """The exact index of the same candidates."""
        return self._exact

    def search(self, queries: Queries, k: int | tf.Tensor, offsets: tf.Tensor) -> Best:
        """Return approximately the best ``k``; a row for which ScaNN finds fewer gets the exact best."""
        from scann.scann_ops.py import scann_ops

        fetched = tf.minimum(k * OVERFETCH, self._candidates)
        searcher = scann_ops.searcher_from_module(self._searcher)
        # With one extra row, because ScaNN fails on an empty batch.
        found = searcher.search_batched(tf.pad(queries.vectors, [[0, 1], [0, 0]]), fetched, fetched)
        # If the searched leaves have too few candidates, ScaNN returns NaN or fewer columns.
        missing = [[0, 0], [0, k]]
        ids = tf.pad(self._ids_of(tf.cast(found.indices[:-1], tf.int64)), missing)
        scores = tf.pad(found.distances[:-1], missing, constant_values=np.nan)
        is_void = tf.math.is_nan(scores) | _is_among(ids, queries.excluded)
        best = tf.math.top_k(tf.where(is_void, scores.dtype.min, scores + tf.gather(offsets, ids)), k)
        nearly = Best(tf.gather(ids, best.indices, batch_dims=1), best.values)
        return completed(nearly, self.exact, queries, k, offsets)

    def _ids_of(self, rows: tf.Tensor) -> tf.Tensor:
        if self._ids is None:
            return rows + kinds.FIRST_VOCABULARY_ID
        # The rows of places without a candidate are arbitrary.
        return tf.gather(self._ids, tf.clip_by_value(rows, 0, self._candidates - 1))


def _is_among(ids: tf.Tensor, excluded: tf.Tensor) -> tf.Tensor:
    """Return bool in the shape of ``ids``: whether each id is among the excluded ids of its row.

    Sorting is used because comparing all pairs takes gigabytes if users have seen thousands of candidates.
    """
    in_order = tf.sort(tf.pad(excluded, [[0, 0], [0, 1]], constant_values=tf.int64.max), axis=1)
    return tf.equal(tf.gather(in_order, tf.searchsorted(in_order, ids), batch_dims=1), ids)
