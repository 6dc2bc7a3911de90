"""Top-k layers: the best candidates of a query, exactly in stock TensorFlow ops or approximately by ScaNN."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from data_pipelines.feature_kinds import FIRST_VOCABULARY_ID

# ScaNN cannot leave candidates out of its search, so more are fetched and the excluded ones dropped.
SCANN_OVERFETCH = 8
# Share of the leaves that a query searches. On random vectors, which no tree can sort, recall@20 is 0.94 of 1,000
# candidates, 0.97 of 9,000 and 0.93 of 50,000; with a quarter of the leaves it is 0.65, 0.76 and 0.83.
SCANN_SEARCHED_SHARE = 2 / 3
# Its quantiser clusters the candidates into so many groups per block of dimensions.
SCANN_LEAST_CANDIDATES = 16


class ExactTopK(tf.Module):
    """Scores every candidate with one matrix product; loads anywhere, no custom op."""

    def __init__(self, candidate_embeddings: np.ndarray, tokens: Sequence[str], k: int) -> None:
        """Take float32 ``[ids, dim]`` embeddings by id, and the tokens of the ids from 2 on.

        Raises:
            ValueError: There are fewer than ``k`` candidates.
        """
        super().__init__(name="exact_top_k")
        _check_k(k, tokens)
        self._embeddings = tf.Variable(candidate_embeddings, trainable=False, name="candidate_embeddings")
        self._tokens = tf.constant(["", "", *tokens])
        self._k = k

    def __call__(self, queries: tf.Tensor, excluded: tf.Tensor | None) -> dict[str, tf.Tensor]:
        """Return ``candidates``, string ``[batch, k]``, and ``scores``, float32 ``[batch, k]``, best first.

        Where exclusions leave fewer than ``k`` candidates, the rest is ``""`` with the lowest float32 as score.

        Args:
            queries: float32 ``[batch, dim]``.
            excluded: int64 ``[batch, any]``, ids that must not come back, padded with 0; None excludes nothing.
        """
        scores = tf.matmul(queries, self._embeddings, transpose_b=True)
        rows = tf.shape(queries, tf.int64)[0]
        reserved = tf.tile(tf.range(FIRST_VOCABULARY_ID, dtype=tf.int64)[tf.newaxis], [rows, 1])
        forbidden = reserved if excluded is None else tf.concat([reserved, excluded], axis=1)
        row_numbers = tf.broadcast_to(tf.range(rows)[:, tf.newaxis], tf.shape(forbidden, tf.int64))
        places = tf.reshape(tf.stack([row_numbers, forbidden], axis=2), [-1, 2])
        lowest = tf.fill([tf.shape(places)[0]], scores.dtype.min)
        best = tf.math.top_k(tf.tensor_scatter_nd_update(scores, places, lowest), self._k)
        return _answer(self._tokens, tf.cast(best.indices, tf.int64), best.values)


class ScannTopK(tf.Module):
    """Approximate search by ScaNN (Guo et al. 2020); needs the ``scann`` package to load."""

    def __init__(self, candidate_embeddings: np.ndarray, tokens: Sequence[str], k: int) -> None:
        """Take the same as :class:`ExactTopK`.

        Raises:
            ValueError: There are fewer than ``k`` candidates, or fewer than ScaNN can be trained on.
        """
        import tensorflow_recommenders as tfrs

        super().__init__(name="scann_top_k")
        _check_k(k, tokens)
        if len(tokens) < SCANN_LEAST_CANDIDATES:
            raise ValueError(
                f"ScaNN cannot index {len(tokens)} candidates, it needs {SCANN_LEAST_CANDIDATES}; use the exact index"
            )
        self._k = k
        self._tokens = tf.constant(["", "", *tokens])
        fetched = min(k * SCANN_OVERFETCH, len(tokens))
        leaves = max(1, int(np.sqrt(len(tokens))))
        self._index = tfrs.layers.factorized_top_k.ScaNN(
            k=fetched,
            num_leaves=leaves,
            num_leaves_to_search=max(1, round(leaves * SCANN_SEARCHED_SHARE)),
            num_reordering_candidates=fetched,
        )
        ids = tf.range(FIRST_VOCABULARY_ID, FIRST_VOCABULARY_ID + len(tokens), dtype=tf.int64)
        self._index.index(tf.constant(candidate_embeddings[FIRST_VOCABULARY_ID:]), ids)

    def __call__(self, queries: tf.Tensor, excluded: tf.Tensor | None) -> dict[str, tf.Tensor]:
        """Return what :meth:`ExactTopK.__call__` does, as far as ScaNN finds it."""
        scores, ids = self._index(queries)
        # Where the searched leaves hold fewer than were asked for, ScaNN answers NaN, or fewer columns.
        missing = [[0, 0], [0, self._k]]
        scores, ids = tf.pad(scores, missing, constant_values=np.nan), tf.pad(ids, missing)
        is_void = tf.math.is_nan(scores)
        if excluded is not None:
            is_void |= tf.reduce_any(tf.equal(ids[:, :, tf.newaxis], excluded[:, tf.newaxis, :]), axis=2)
        best = tf.math.top_k(tf.where(is_void, scores.dtype.min, scores), self._k)
        return _answer(self._tokens, tf.gather(ids, best.indices, batch_dims=1), best.values)


def _check_k(k: int, tokens: Sequence[str]) -> None:
    if not 1 <= k <= len(tokens):
        raise ValueError(f"k {k} cannot be met by {len(tokens)} candidates; use 1 to {len(tokens)}")


def _answer(tokens: tf.Tensor, ids: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
    found = tf.where(scores > scores.dtype.min, tf.gather(tokens, ids), "")
    return {"candidates": found, "scores": scores}
