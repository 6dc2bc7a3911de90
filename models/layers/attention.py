"""Causal self-attention over lists of ids, independent of padding."""

import math
from typing import Any, Protocol

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.layers import ResumableDropout

# The part of the longest history that a short one has at most.
_NARROWER = 4


class HistoryItems(Protocol):
    """The vectors of the items of histories."""

    output_dim: int

    def of_history(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return float32 ``[batch, any, output_dim]`` for int64 ids ``[batch, any]``."""


class CausalStates(tf_keras.layers.Layer):
    """The state before a list's first id and after each of its ids: ``[batch, 1 + any, dim]``.

    A state depends on the ids up to its own and on nothing else, so padding on the right and later ids do not change
    it. The first state belongs to the empty list. Source: Kang and McAuley 2018, "Self-Attentive Sequential
    Recommendation", section III; here layers are normalised before each part and once at the end, and the ids are
    numbered from the oldest.
    """

    def __init__(
        self,
        items: HistoryItems,
        max_length: int,
        blocks: int,
        heads: int,
        dropout: float,
        seed: int,
        **kwargs: Any,
    ) -> None:
        """Create the parts.

        Args:
            items: The candidates' tower, which the model's output uses too.
            max_length: The longest list.
            blocks: Number of attention layers, each followed by two dense layers.
            heads: Number of attention heads; they divide the width of the embeddings.
            dropout: Share of the embeddings, attention weights and outputs of each part dropped while training.
            seed: Seed of the dropout.
            **kwargs: Arguments of a Keras layer.
        """
        super().__init__(**kwargs)
        self.is_for_xla = False  # XLA needs shapes that are known, so it divides no batch
        self._items, self._dim, self._longest = items, items.output_dim, max_length
        self._dropout = ResumableDropout(dropout, seed, name="embedding_dropout") if dropout else None
        self._blocks = [
            _Block(self._dim, heads, dropout, seed + 10 * (number + 1), name=f"block_{number}")
            for number in range(blocks)
        ]
        self._norm = tf_keras.layers.LayerNormalization(epsilon=1e-6, name="norm")

    def build(self, input_shape: Any) -> None:
        """Create the positions ``[1 + max_length, dim]``; the first is that of the empty list."""
        self._positions = self.add_weight(
            name="positions",
            shape=(1 + self._longest, self._dim),
            initializer=tf_keras.initializers.RandomUniform(-0.05, 0.05),
        )
        super().build(input_shape)

    def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the states for int64 ``[batch, any]`` ids, padded with 0 on the right; padding may have any state."""
        ids = tf.pad(ids, [[0, 0], [1, 0]], constant_values=kinds.MISSING_ID)
        is_id = tf.not_equal(ids, kinds.MISSING_ID)
        embedded = tf.cast(self._items.of_history(ids, training), self.compute_dtype)
        # Scaled as in the paper's code: the table is drawn as an output layer needs it.
        embedded *= tf.cast(is_id, self.compute_dtype)[:, :, tf.newaxis] * math.sqrt(self._dim)
        place = tf.minimum(tf.cumsum(tf.cast(is_id, tf.int32), axis=1), self._longest)
        states = embedded + tf.gather(tf.cast(self._positions, self.compute_dtype), place)
        if self._dropout:
            states = self._dropout(states, training=training)
        if training and not self.is_for_xla:
            return self._read_by_length(states, is_id)
        return self._read(states, is_id, training)

    def _read_by_length(self, states: tf.Tensor, is_id: tf.Tensor) -> tf.Tensor:
        """Return the states of :meth:`_read` in training, in which rows that are mostly padding are read apart.

        Padding takes as long as ids do, and most histories of a batch are far shorter than its longest one.
        """
        width = tf.shape(is_id)[1]
        narrow = 1 + (width - 1) // _NARROWER
        is_short = tf.math.count_nonzero(is_id, axis=1, dtype=tf.int32) < narrow
        short, long = (tf.where(rows)[:, 0] for rows in (is_short, ~is_short))
        of_short = self._read(tf.gather(states, short)[:, :narrow], tf.gather(is_id, short)[:, :narrow], True)
        of_short = tf.pad(of_short, [[0, 0], [0, width - narrow], [0, 0]])
        of_long = self._read(tf.gather(states, long), tf.gather(is_id, long), True)
        shorts = tf.cumsum(tf.cast(is_short, tf.int32))
        longs = tf.shape(short)[0] + tf.range(1, tf.shape(is_id)[0] + 1) - shorts
        return tf.gather(tf.concat([of_short, of_long], axis=0), tf.where(is_short, shorts, longs) - 1)

    def _read(self, states: tf.Tensor, is_id: tf.Tensor, training: bool | None) -> tf.Tensor:
        steps = tf.range(tf.shape(states)[1])
        is_past = steps[:, tf.newaxis] >= steps[tf.newaxis, :]
        is_read = tf.logical_and(is_past, tf.logical_or(is_id, steps == 0)[:, tf.newaxis, :])
        for block in self._blocks:
            states = block(states, is_read, training=training)
        return self._norm(states)


class _Block(tf_keras.layers.Layer):
    """Self-attention and two dense layers, each with a residual connection."""

    def __init__(self, dim: int, heads: int, dropout: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dim, self._heads = dim, heads
        self._norms = [tf_keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm_{number}") for number in range(2)]
        self._projections = tf_keras.layers.Dense(3 * dim, name="projections")
        self._output = tf_keras.layers.Dense(dim, name="output")
        self._wide = tf_keras.layers.Dense(4 * dim, activation="relu", name="wide")
        self._narrow = tf_keras.layers.Dense(dim, name="narrow")
        self._dropouts = [
            ResumableDropout(dropout, seed + number, name=f"dropout_{number}") if dropout else None
            for number in range(3)
        ]

    def call(self, states: tf.Tensor, is_read: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the next states, ``[batch, any, dim]``; ``is_read`` is ``[batch, reader, read]``."""

        def dropped(number: int, tensor: tf.Tensor) -> tf.Tensor:
            dropout = self._dropouts[number]
            return dropout(tensor, training=training) if dropout else tensor

        batch, steps = tf.shape(states)[0], tf.shape(states)[1]
        split = [batch, steps, 3, self._heads, self._dim // self._heads]
        queries, keys, values = tf.unstack(
            tf.transpose(tf.reshape(self._projections(self._norms[0](states)), split), [2, 0, 3, 1, 4])
        )
        logits = tf.matmul(queries * (self._dim // self._heads) ** -0.5, keys, transpose_b=True)
        weights = tf.nn.softmax(tf.where(is_read[:, tf.newaxis], logits, logits.dtype.min))
        read = tf.transpose(tf.matmul(dropped(0, weights), values), [0, 2, 1, 3])
        states += dropped(1, self._output(tf.reshape(read, [batch, steps, self._dim])))
        return states + dropped(2, self._narrow(self._wide(self._norms[1](states))))


class StateAtEnd(tf_keras.layers.Layer):
    """The state after a list's last id: ``[batch, dim]``."""

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Return it for states ``[batch, 1 + any, dim]`` and their int64 ids ``[batch, any]``."""
        states, ids = inputs
        places = tf.range(1, tf.shape(ids)[1] + 1)
        last = tf.reduce_max(tf.where(tf.not_equal(ids, kinds.MISSING_ID), places, 0), axis=1)
        return tf.gather(states, tf.maximum(last, 0), axis=1, batch_dims=1)
