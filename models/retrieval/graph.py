"""Embeddings of users and candidates that are propagated over the graph of the training's interactions.

Source: He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation", equations 3,
4 and 8: a layer is the product of the one before with the symmetrically normalised adjacency matrix of users and
candidates, and an embedding is the mean of all layers, that of the ids themselves included.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras
from tensorflow.python.ops.linalg.sparse.sparse_csr_matrix_ops import CSRSparseMatrix, matmul

from mirrorspark.data_pipelines.features import kinds

Ids = npt.NDArray[np.integer[Any]]


class GraphEmbeddings(tf_keras.layers.Layer):
    """The table of users and candidates by id, and its rows after the propagation, which towers read.

    ``table`` learns. ``propagated`` follows from it after every update, so that validation, checkpoints and exported
    models have plain lookups, and only training needs the graph. An id without an interaction, such as the one that is
    out of vocabulary, keeps its embedding as it is.
    """

    def __init__(self, users: int, candidates: int, dim: int, layers: int) -> None:
        """Create both tables, float32 ``[users + candidates, dim]``; :meth:`connect` fills the second one.

        Args:
            users: Number of ids of users.
            candidates: Number of ids of candidates, whose rows follow those of the users.
            dim: Width of an embedding.
            layers: Number of propagations.
        """
        super().__init__(name="graph", dtype="float32")
        self.users, self.candidates, self._layers = users, candidates, layers
        shape = (users + candidates, dim)
        self.table = self.add_weight("graph_table", shape, initializer=tf_keras.initializers.RandomUniform(-0.05, 0.05))
        self.propagated = self.add_weight("graph_propagated", shape, initializer="zeros", trainable=False)
        self._adjacency: Any = None
        self.built = True

    def call(self, users: tf.Tensor) -> tf.Tensor:
        """Return the propagated embeddings of users, float32 ``[batch, dim]``; zeros where the user is missing."""
        is_there = tf.cast(tf.not_equal(users, kinds.MISSING_ID), tf.float32)
        return tf.gather(self.propagated, users) * is_there[:, tf.newaxis]

    def of_candidates(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the propagated embeddings of candidates, float32 ``[ids, dim]``."""
        return tf.gather(self.propagated, ids + self.users)

    def connect(self, users: Ids, candidates: Ids) -> None:
        """Set the graph, and propagate the table over it.

        Args:
            users: ``[pairs]``, ids of users.
            candidates: ``[pairs]``, ids of the candidates that they have had, each pair once.
        """
        rows = self.users + self.candidates
        one, other = users.astype(np.int64), candidates.astype(np.int64) + self.users
        degree = np.bincount(np.concatenate([one, other]), minlength=rows)
        weights = (1.0 / np.sqrt(degree[one] * degree[other])).astype(np.float32)
        places = np.concatenate([np.stack([one, other], axis=1), np.stack([other, one], axis=1)])
        order = np.lexsort((places[:, 1], places[:, 0]))
        # Compressed rows: their product takes a fraction of the time of `tf.sparse.sparse_dense_matmul`.
        self._adjacency = CSRSparseMatrix(tf.SparseTensor(places[order], np.tile(weights, 2)[order], [rows, rows]))
        share = np.where(degree > 0, 1.0 / (1 + self._layers), 1.0).astype(np.float32)
        self._share = tf.constant(share[:, np.newaxis])
        self.refresh()

    def refresh(self) -> None:
        """Propagate the table as it is now."""
        self.propagated.assign(self.propagate(self.table.value()))

    def propagate(self, rows: tf.Tensor) -> tf.Tensor:
        """Return the mean of the layers that begin with ``rows``, float32 ``[users + candidates, dim]``.

        The adjacency matrix is symmetric, and so is the matrix of this map: of a gradient by propagated embeddings it
        returns the one by the table.

        Raises:
            ValueError: There is no graph.
        """
        if self._adjacency is None:
            raise ValueError("graph_layers need the graph of the interactions to train; call connect before fit")
        total = rows
        for _ in range(self._layers):
            total = rows + matmul(self._adjacency, total)
        return total * self._share


class GraphCandidates(tf_keras.layers.Layer):
    """The candidates of :class:`GraphEmbeddings` by id, float32 ``[ids, dim]``; with ``cosine`` each of length 1."""

    def __init__(self, graph: GraphEmbeddings, *, cosine: bool = False) -> None:
        super().__init__(name="candidate_tower", dtype="float32")
        self.graph, self.input_dim, self._cosine = graph, graph.candidates, cosine
        self.built = True

    def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of int64 ids; they are the same in training."""
        return self._of_length_1(self.graph.of_candidates(ids))

    def all_embeddings(self, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of all ids; they are the same in training."""
        return self._of_length_1(self.graph.propagated[self.graph.users :])

    def _of_length_1(self, embedded: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(embedded, axis=-1) if self._cosine else embedded
