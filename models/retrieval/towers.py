"""The towers of a retrieval model that the architectures share: the top of the query tower, and the candidate tower."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models.layers.input import dense_stack, dense_when_small
from mirrorspark.models.recommenders import tfrs

_IDS_AT_ONCE = 1 << 16


def crossed(joined: tf.Tensor, layers: int, rank: int) -> tf.Tensor:
    """Return ``joined``, ``[batch, width]``, after cross layers, each of which multiplies it by itself once more.

    They are TensorFlow Recommenders' (Wang et al. 2021, "DCN V2").

    Args:
        joined: The features side by side.
        layers: Number of layers; 0 returns ``joined``.
        rank: Width inside of a layer.
    """
    last = joined
    for number in range(layers):
        cross = tfrs.layers.dcn.Cross(rank, kernel_initializer="glorot_uniform", name=f"cross_{number}")
        last = cross(joined, last)
    return last


def query_tower(
    inputs: Mapping[str, Any],
    joined: tf.Tensor | None,
    hidden_units: Sequence[int],
    embedding_dim: int,
    dropout: float,
    seed: int,
    *,
    cosine: bool = False,
    user: tf.Tensor | None = None,
) -> tf_keras.Model:
    """Return the model from the query's features to its embedding, float32 ``[batch, embedding_dim]``.

    Args:
        inputs: Keras inputs by the names of their features.
        joined: float32 ``[batch, width]``: the architecture's representation of the inputs; None if there are none but
            the user.
        hidden_units: Width of each hidden layer.
        embedding_dim: Width of the query embedding.
        dropout: Share of hidden units dropped while training.
        seed: Seed of the dropout.
        cosine: Whether the query has length 1.
        user: float32 ``[batch, embedding_dim]``, which is added to what the layers make of ``joined``.
    """
    query = user
    if joined is not None:
        hidden = dense_stack(joined, hidden_units, dropout, seed)
        query = tf_keras.layers.Dense(embedding_dim, name="query", dtype="float32")(hidden)
        if user is not None:
            query = tf_keras.layers.Add(name="query_of_user", dtype="float32")([query, user])
    return tf_keras.Model(inputs, of_length_1(query, cosine), name="query_tower")


class CandidateEmbedding(tf_keras.layers.Embedding):
    """Embeddings of the candidates by id, float32 ``[ids, embedding_dim]``; with ``cosine`` each of length 1."""

    def __init__(self, ids: int, embedding_dim: int, *, cosine: bool = False) -> None:
        super().__init__(ids, embedding_dim, name="candidate_tower", dtype="float32")
        self._cosine = cosine
        self.build((None,))

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of int64 ids; they are the same in training."""
        embedded = super().call(inputs)
        return tf.math.l2_normalize(embedded, axis=-1) if self._cosine else embedded

    def all_embeddings(self, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of all ids; they are the same in training."""
        return tf.math.l2_normalize(self.embeddings, axis=-1) if self._cosine else self.embeddings

    def of_history(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of int64 ids ``[batch, any]`` as they are learnt, of any length."""
        table = self.embeddings if training is False else dense_when_small(self.embeddings, self.input_dim)
        return tf.nn.embedding_lookup(table, ids)


def ids_in_pieces(
    count: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tf.Tensor]:
    """Yield the ids up to ``count`` in pieces: a tower on item features holds those of all ids that it gets."""
    for start in range(0, count, _IDS_AT_ONCE):
        on_progress(start, count)
        yield tf.range(start, min(start + _IDS_AT_ONCE, count), dtype=tf.int64)


def candidate_tower(fitted: FittedFeatures, embedding_dim: int, *, cosine: bool = False) -> CandidateEmbedding:
    """Return the table of the candidates' embeddings by id, float32 ``[ids, embedding_dim]``."""
    return CandidateEmbedding(fitted.id_count(fitted.spec.candidate), embedding_dim, cosine=cosine)


def of_length_1(query: tf.Tensor, cosine: bool) -> tf.Tensor:
    """Return ``query``, ``[..., embedding_dim]``, divided by its length if ``cosine``."""
    if not cosine:
        return query
    return tf_keras.layers.UnitNormalization(axis=-1, dtype="float32")(query)
