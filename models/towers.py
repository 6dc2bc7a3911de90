"""The towers of a retrieval model that the architectures share: the top of the query tower, and the candidate tower."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models.layers import dense_stack


def query_tower(
    inputs: Mapping[str, Any],
    joined: tf.Tensor,
    hidden_units: Sequence[int],
    embedding_dim: int,
    dropout: float,
    seed: int,
) -> tf_keras.Model:
    """Return the model from the query's features to its embedding, float32 ``[batch, embedding_dim]``.

    Args:
        inputs: Keras inputs by the names of their features.
        joined: float32 ``[batch, width]``: the architecture's representation of the inputs.
        hidden_units: Width of each hidden layer.
        embedding_dim: Width of the query embedding.
        dropout: Share of hidden units dropped while training.
        seed: Seed of the dropout.
    """
    hidden = dense_stack(joined, hidden_units, dropout, seed)
    query = tf_keras.layers.Dense(embedding_dim, name="query", dtype="float32")(hidden)
    return tf_keras.Model(inputs, query, name="query_tower")


def candidate_tower(fitted: FittedFeatures, embedding_dim: int) -> tf_keras.layers.Embedding:
    """Return the table of the candidates' embeddings by id, float32 ``[ids, embedding_dim]``."""
    ids = fitted.id_count(fitted.spec.candidate)
    tower = tf_keras.layers.Embedding(ids, embedding_dim, name="candidate_tower", dtype="float32")
    tower.build((None,))
    return tower
