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

from mirrorspark.data_pipelines.features import FittedFeatures, ItemTable, item_rows, kinds
from mirrorspark.models.layers import ResumableDropout
from mirrorspark.models.layers.input import concatenated_inputs, symbolic_inputs
from mirrorspark.models.retrieval import towers
from mirrorspark.models.settings import ItemSettings


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
        self.input_dim = fitted.id_count(candidate)
        # Not a dict, which Keras would track, and save in every checkpoint.
        self._items = MappingProxyType(
            {name: tf.constant(rows) for name, rows in item_rows.encoded_items(items).items()}
        )
        self.features = _features_net(items, dim, hidden_units)
        self._cosine = cosine
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
        return self.embedded(ids, {name: tf.gather(values, ids) for name, values in self._items.items()}, training)

    def all_embeddings(self, training: bool | None = None) -> tf.Tensor:
        """Return the embeddings of all ids."""
        return self(tf.range(self.input_dim, dtype=tf.int64), training=training)

    def embedded(self, ids: tf.Tensor, rows: Mapping[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Return float32 ``[ids, dim]`` of candidates whose items have the features ``rows``, each ``[ids, ...]``."""
        content = self.features(rows, training=training)
        if self.id_embedding is not None:
            # Dropout scales up what it keeps; an id embedding is either there as it is, or not.
            kept = self._dropout(tf.gather(self._is_trained, ids), training=training)
            content += self.id_embedding(ids) * (kept * self._kept_share if training else kept)
        return tf.math.l2_normalize(content, axis=-1) if self._cosine else content


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
