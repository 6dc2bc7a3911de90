"""Layers that read lists of ids in order, independent of padding."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import kinds
from mirrorspark.models.layers.input import Field, FieldEmbeddings
from mirrorspark.models.settings import Cell

_LAYERS: Mapping[Cell, type[tf_keras.layers.Layer]] = {"lstm": tf_keras.layers.LSTM, "gru": tf_keras.layers.GRU}


class OrderedEmbeddings(FieldEmbeddings):
    """Embeds every field in one table like its base class, but keeps the order of some fields instead of averaging."""

    def __init__(self, fields: Sequence[Field], ordered: Collection[str], rows: int, dim: int, **kwargs: Any) -> None:
        """Split the fields into averaged and ordered ones.

        Args:
            fields: All fields of the table.
            ordered: Names of the fields that keep their order.
            rows: Number of rows of the table.
            dim: Width of an embedding.
            **kwargs: Arguments of a Keras layer.
        """
        super().__init__([field for field in fields if field.name not in ordered], rows, dim, **kwargs)
        self._ordered = tuple(field for field in fields if field.name in ordered)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields in the table."""
        return (*self._fields, *self._ordered)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool | None = None) -> list[tf.Tensor]:
        """Return ``[batch, any, dim]`` for each ordered field, then the averages of the other fields, if any.

        Args:
            inputs: int64 ids by field name, ``[batch]`` or ``[batch, width]``; for ordered fields ``[batch, any]``.
            training: False looks up only the rows that are named.
        """
        table = self._lookup_table(training)
        embedded = [self._in_order(table, inputs[field.name], field.offset) for field in self._ordered]
        return [*embedded, self._averaged(table, inputs)] if self._fields else embedded

    def _in_order(self, table: Any, ids: tf.Tensor, offset: int) -> tf.Tensor:
        """Return each id's embedding, and zeros for padding, so that it gets no gradient."""
        weights = tf.cast(tf.not_equal(ids, kinds.MISSING_ID), self.compute_dtype)[:, :, tf.newaxis]
        return tf.nn.embedding_lookup(table, ids + offset) * weights


class LastState(tf_keras.layers.Layer):
    """The state of an LSTM or GRU at the end of a list: ``[batch, units]``, zeros for an empty list.

    Padding on the right is masked, so the state does not depend on its length. Sources: Hochreiter and Schmidhuber
    1997, "Long Short-Term Memory"; Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for
    Statistical Machine Translation". The layers are Keras's, which on GPUs call cuDNN's kernels.

    Attributes:
        is_for_xla: Whether XLA compiles the layer; then a loop of its own replaces Keras's, with the same weights.
    """

    def __init__(self, units: int, cell: Cell = "lstm", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_for_xla = False
        self._layer = _LAYERS[cell](units, name=cell)

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the state after the last id of each list.

        Args:
            inputs: Embeddings ``[batch, any, dim]``, and their int64 ids ``[batch, any]``, padded with 0 on the right.
        """
        embedded, ids = inputs
        is_id = tf.not_equal(ids, kinds.MISSING_ID)
        # cuDNN requires masks that are true from the left, and at least one step per list: for a batch with an empty
        # list, such as that of a padding row, Keras would use its own loop. So an empty list makes one step, and its
        # state is not used.
        steps = tf.concat([tf.ones_like(is_id[:, :1]), is_id[:, 1:]], axis=1)
        state = self._compiled_state(embedded, steps) if self.is_for_xla else self._layer(embedded, mask=steps)
        return tf.where(tf.reduce_any(is_id, axis=1, keepdims=True), state, tf.zeros_like(state))

    def _compiled_state(self, embedded: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        """Return the state from a loop that XLA can compile forward and backward, each pass separately.

        Keras's loop passes lists of tensors to its backward pass, which cannot leave code compiled by XLA: "Support for
        TensorList crossing the XLA/TF boundary is not implemented". So the backward pass repeats the steps, and each
        loop has an explicit maximum length, which Keras sets only in the forward pass.
        """

        @tf.recompute_grad
        def last(given: tf.Tensor) -> tf.Tensor:
            length = tf.shape(given)[1]
            places = tf.range(length)

            def step(place: tf.Tensor, *states: tf.Tensor) -> tuple[tf.Tensor, ...]:
                # A product, because XLA cannot infer the shapes of tf.gather's gradient when batches differ in width.
                read = tf.einsum("btd,t->bd", given, tf.cast(tf.equal(places, place), given.dtype))
                _, following = self._layer.cell(read, list(states))
                is_step = tf.gather(steps, place, axis=1)[:, tf.newaxis]
                kept = (tf.where(is_step, after, before) for after, before in zip(following, states, strict=True))
                return place + 1, *kept

            zeros = tf.zeros((tf.shape(given)[0], self._layer.units), given.dtype)
            # Of an LSTM the state and the memory.
            start = (tf.constant(0), *([zeros] * len(tf.nest.flatten(self._layer.cell.state_size))))
            return tf.while_loop(lambda place, *_: place < length, step, start, maximum_iterations=length)[1]

        return last(embedded)


def without_common_padding(inputs: Mapping[str, Any], lists: Iterable[str]) -> dict[str, Any]:
    """Return ``inputs`` with the named lists truncated to the longest one of the batch, to save steps.

    Args:
        inputs: Tensors by name.
        lists: Names of int64 ``[batch, any]`` tensors, padded with 0 on the right. At least one column stays.
    """
    return {**inputs, **{name: _cut(inputs[name]) for name in lists}}


def _cut(ids: tf.Tensor) -> tf.Tensor:
    is_used = tf.reduce_any(tf.not_equal(ids, kinds.MISSING_ID), axis=0)
    ends = tf.where(is_used, tf.range(1, tf.shape(ids)[1] + 1), 1)
    return ids[:, : tf.reduce_max(ends)]
