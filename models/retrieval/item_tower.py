"""The candidate tower of items with features: a candidate's id embedding plus a net on the item's features.

Source: Covington et al. 2016 and Yi et al. 2019 for towers on item features; dropping the id in training, so that the
features alone must do for items without one, is Volkovs et al. 2017, "DropoutNet: Addressing Cold Start in Recommender
Systems".
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import EncodedRows, FittedFeatures, ItemTable, SparseRows, item_rows, kinds
from mirrorspark.models.layers import ResumableDropout
from mirrorspark.models.layers.input import concatenated_inputs, symbolic_inputs
from mirrorspark.models.retrieval import towers
from mirrorspark.models.serving import sparse_tensor
from mirrorspark.models.settings import ItemSettings


class _SparseItems:
    """A sparse feature of all items as constants of the process, compressed."""

    def __init__(self, rows: SparseRows, size: int) -> None:
        self._indices, self._values = tf.constant(rows.indices), tf.constant(rows.values)
        self._row_starts, self._size = tf.constant(rows.row_starts), size

    def at(self, ids: tf.Tensor) -> tf.SparseTensor:
        """Return the rows of int64 ``[ids]``, float32 ``[ids, size]``."""
        starts, ends = tf.gather(self._row_starts, ids), tf.gather(self._row_starts, ids + 1)
        entries = tf.ragged.range(starts, ends).values
        indices, values = tf.gather(self._indices, entries), tf.gather(self._values, entries)
        return sparse_tensor(self._size, indices, values, ends - starts)


class _DenseItems:
    """A feature of all items as a constant of the process."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = tf.constant(rows)

    def at(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the rows of int64 ``[ids]``."""
        return tf.gather(self._rows, ids)


class ItemTower(tf_keras.layers.Layer):
    """Embeds candidates by id: float32 ``[ids, dim]`` for int64 ``[ids]``.

    The features of all items are constants of the process, not weights: checkpoints do not contain them, and batches
    have ids only. A candidate without a training row has no id embedding to speak of, so its features alone count.
    """

    def __init__(
        self,
        fitted: FittedFeatures,
        items: ItemTable,
        dim: int,
        *,
        hidden_units: Sequence[int],
        with_ids: bool,
        id_dropout: float,
        cosine: bool,
        seed: int,
        id_embedding: Any = None,
    ) -> None:
        """Create the weights.

        Args:
            fitted: The features, with the candidates' counts.
            items: Its table of items.
            dim: Width of the result, and of the embeddings of the items' tokens.
            hidden_units: Width of each hidden layer on the features.
            with_ids: Whether candidates have an id embedding too.
            id_dropout: Share of the rows of a training batch whose id embedding is left out.
            cosine: Whether the result has length 1.
            seed: Seed of that dropout.
            id_embedding: The layer that embeds the ids; by default the tower has a table of its own.
        """
        super().__init__(name="candidate_tower", dtype="float32")
        candidate = fitted.spec.candidate
        self.input_dim, self.output_dim = fitted.id_count(candidate), dim
        # Not a dict, which Keras would track, and save in every checkpoint.
        self._items = MappingProxyType(
            {name: _constants(items.features.spec[name], rows) for name, rows in item_rows.encoded_items(items).items()}
        )
        self.features = _features_net(items, dim, hidden_units)
        self._cosine = cosine
        self._held: Any = None
        self.id_embedding: Any = None
        if with_ids:
            self.id_embedding = id_embedding
            if id_embedding is None:
                self.id_embedding = tf_keras.layers.Embedding(
                    self.input_dim, dim, name="candidate_ids", dtype="float32"
                )
                self.id_embedding.build((None,))
            counts = fitted.vocabulary(candidate).counts.to_numpy()
            is_trained = np.concatenate([np.zeros(kinds.FIRST_VOCABULARY_ID), counts > 0]).astype(np.float32)
            self._is_trained = tf.constant(is_trained[:, np.newaxis])
            self._kept_share = 1.0 - id_dropout
            self._dropout = ResumableDropout(id_dropout, seed, name="id_dropout", dtype="float32")
            self._dropout.build((None, 1))
        self.built = True

    def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return float32 ``[ids, dim]``."""
        return self._of_length_1(self._summed(ids, training))

    def all_embeddings(self, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of all ids."""
        return self(tf.range(self.input_dim, dtype=tf.int64), training=training)

    def of_history(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return float32 ``[batch, any, dim]`` of int64 ids ``[batch, any]``, of any length.

        Equal ids of a batch have equal vectors in training, too: their id embeddings are left out together.
        """
        if self._held is not None and not training:
            return tf.gather(self._held, ids)
        # Histories have many items in common, and all have padding.
        different, places = tf.unique(tf.reshape(ids, [-1]))
        return tf.gather(self._summed(different, training), tf.reshape(places, tf.shape(ids)))

    def hold_histories(self) -> None:
        """Read histories from a table of all items' vectors as they are now, except in training."""
        vectors = tf.concat([self._summed(ids, training=False) for ids in towers.ids_in_pieces(self.input_dim)], axis=0)
        if self._held is None:
            self._held = tf.Variable(vectors, trainable=False, name="history_vectors")
        else:
            self._held.assign(vectors)

    def embedded(
        self, ids: tf.Tensor, rows: Mapping[str, tf.Tensor | tf.SparseTensor], training: bool | None = None
    ) -> tf.Tensor:
        """Return float32 ``[ids, dim]`` of candidates whose items have the features ``rows``, each ``[ids, ...]``."""
        return self._of_length_1(self._with_ids(self.features(rows, training=training), ids, training))

    def _summed(self, ids: tf.Tensor, training: bool | None) -> tf.Tensor:
        rows = {name: items.at(ids) for name, items in self._items.items()}
        return self._with_ids(self.features(rows, training=training), ids, training)

    def _with_ids(self, content: tf.Tensor, ids: tf.Tensor, training: bool | None) -> tf.Tensor:
        if self.id_embedding is None:
            return content
        # Dropout scales up what it keeps; an id embedding is either there as it is, or not.
        kept = self._dropout(tf.gather(self._is_trained, ids), training=training)
        return content + self.id_embedding(ids) * (kept * self._kept_share if training else kept)

    def _of_length_1(self, embedded: tf.Tensor) -> tf.Tensor:
        return tf.math.l2_normalize(embedded, axis=-1) if self._cosine else embedded


def configured_candidate_tower(
    settings: ItemSettings, fitted: FittedFeatures, dim: int, seed: int, by_id: Any = None
) -> towers.CandidateEmbedding | ItemTower:
    """Return the candidate tower: on the features of items if there are any, else the table of embeddings by id.

    Args:
        settings: Whether candidates have ids, and the layers on their features.
        fitted: The features.
        dim: Width of the result.
        seed: Seed of the model; the tower draws another sequence than its other layers.
        by_id: The layer that embeds the ids in addition to features; by default a table of the tower's own.
    """
    if fitted.items is None:
        return towers.candidate_tower(fitted, dim, cosine=settings.cosine)
    return ItemTower(
        fitted,
        fitted.items,
        dim,
        hidden_units=settings.item_hidden_units,
        with_ids=settings.candidate_id,
        id_dropout=settings.id_dropout,
        cosine=settings.cosine,
        seed=seed + 1_000,
        id_embedding=by_id,
    )


def _constants(feature: kinds.Feature, rows: EncodedRows) -> _DenseItems | _SparseItems:
    if isinstance(rows, SparseRows):
        assert isinstance(feature, kinds.Sparse)  # noqa: S101 - nothing else is encoded so
        return _SparseItems(rows, feature.size)
    return _DenseItems(rows)


def _features_net(items: ItemTable, dim: int, hidden_units: Sequence[int]) -> tf_keras.Model:
    """Return the model from the items' features to float32 ``[items, dim]``."""
    features = items.features.spec.query_features
    inputs: Mapping[str, Any] = symbolic_inputs(features)
    hidden = concatenated_inputs(items.features, features, inputs, dim, prefix="item_")
    for number, units in enumerate(hidden_units):
        hidden = tf_keras.layers.Dense(units, activation="relu", name=f"item_hidden_{number}")(hidden)
    return tf_keras.Model(
        inputs, tf_keras.layers.Dense(dim, name="item", dtype="float32")(hidden), name="item_features"
    )
