"""Layers that two or more models share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras

from data_pipelines.features import MISSING_ID, Categorical, Feature, MultiValued, Numeric
from data_pipelines.fitted import FittedFeatures

# Up to this many rows the table's gradient is summed densely: one all-reduce of the table is then smaller, and on CPU
# far quicker, than gathering the touched rows of every worker. Larger tables keep sparse gradients.
DENSE_GRADIENT_ROWS = 1 << 17


@dataclass(frozen=True)
class Field:
    """One group of ids that shares an embedding.

    Attributes:
        name: The model's input.
        offset: Row of the table where the field's ids begin.
        width: Ids per example: 1, or the length of a multi-valued field.
    """

    name: str
    offset: int
    width: int


def lay_out_fields(fitted: FittedFeatures, features: Sequence[Feature]) -> tuple[tuple[Field, ...], int]:
    """Return the fields of all categorical and multi-valued ``features``, and the rows of their common table.

    Fields that share a vocabulary share its rows.
    """
    offsets: dict[str, int] = {}
    rows = 0
    fields = []
    for feature in features:
        if not isinstance(feature, Categorical | MultiValued):
            continue
        vocabulary = fitted.spec.vocabulary_name(feature)
        if vocabulary not in offsets:
            offsets[vocabulary] = rows
            rows += fitted.id_count(feature)
        width = feature.max_length if isinstance(feature, MultiValued) else 1
        fields.append(Field(feature.name, offsets[vocabulary], width))
    return tuple(fields), rows


class FieldEmbeddings(tf_keras.layers.Layer):
    """Embeds every field, averages inside a field, and concatenates: ``[batch, fields * dim]``.

    All fields live in one table and are looked up by one gather, because a lookup, a gradient and a collective per
    field cost more than the arithmetic. Ids 0 (missing, padding) count neither in the sum nor in the mean; a field
    without any id becomes zeros. Source: multi-field averaging as in Covington et al. 2016, "Deep Neural Networks for
    YouTube Recommendations", section 3.2.
    """

    def __init__(self, fields: Sequence[Field], rows: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fields = tuple(fields)
        self._rows = rows
        self._dim = dim

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Create the table ``[rows, dim]``."""
        self._table = self.add_weight(
            name="table", shape=(self._rows, self._dim), initializer=tf_keras.initializers.RandomUniform(-0.05, 0.05)
        )
        super().build(input_shape)

    def call(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return float32 ``[batch, fields * dim]`` for int64 ``[batch]`` or ``[batch, width]`` ids by field name."""
        ids = [tf.reshape(inputs[field.name], [-1, field.width]) for field in self._fields]
        present = tf.concat([tf.not_equal(column, MISSING_ID) for column in ids], axis=1)
        rows = tf.concat([column + field.offset for column, field in zip(ids, self._fields, strict=True)], axis=1)
        # A product with one turns the sparse gradient of the lookup into a dense one.
        table = self._table * 1.0 if self._rows <= DENSE_GRADIENT_ROWS else self._table
        weights = tf.cast(present, tf.float32)[:, :, tf.newaxis]
        embedded = tf.nn.embedding_lookup(table, rows) * weights
        widths = [field.width for field in self._fields]
        return tf.concat(
            [
                part[:, 0] if width == 1 else tf.math.divide_no_nan(tf.reduce_sum(part, 1), tf.reduce_sum(weight, 1))
                for part, weight, width in zip(
                    tf.split(embedded, widths, axis=1), tf.split(weights, widths, axis=1), widths, strict=True
                )
            ],
            axis=1,
        )


class ResumableDropout(tf_keras.layers.Layer):
    """Dropout whose masks go on where a checkpoint left them.

    Keras's dropout draws from a hidden state that no checkpoint holds, so a resumed run sees other masks than an
    unbroken one. Here a mask is a function of (seed, replica, training call), and the calls are counted in a variable.
    """

    def __init__(self, rate: float, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rate = rate
        self._seed = seed

    def build(self, input_shape: Any) -> None:
        """Create the counter: every replica counts for itself, the first one's count is saved."""
        self._calls = self.add_weight(
            name="calls",
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return ``inputs`` with a share ``rate`` set to zero and the rest scaled up, or as they are."""
        if not training:
            return inputs
        call = self._calls.assign_add(1)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        seed = tf.stack([tf.constant(self._seed, tf.int64) + tf.cast(replica, tf.int64) * 1_000_003, call])
        return tf.nn.experimental.stateless_dropout(inputs, self._rate, seed=seed)


def symbolic_inputs(features: Sequence[Feature]) -> dict[str, tf.Tensor]:
    """Return one Keras input per feature, in the types that :mod:`data_pipelines.transform` gives."""
    inputs = {}
    for feature in features:
        if isinstance(feature, MultiValued):
            inputs[feature.name] = tf_keras.Input((feature.max_length,), dtype=tf.int64, name=feature.name)
        elif isinstance(feature, Categorical):
            inputs[feature.name] = tf_keras.Input((), dtype=tf.int64, name=feature.name)
        else:
            inputs[feature.name] = tf_keras.Input((), dtype=tf.float32, name=feature.name)
    return inputs


def dense_stack(tensor: tf.Tensor, hidden_units: Sequence[int], dropout: float, seed: int) -> tf.Tensor:
    """Return ``tensor`` after a ReLU layer per entry of ``hidden_units``, each followed by dropout."""
    for number, units in enumerate(hidden_units):
        tensor = tf_keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(tensor)
        if dropout:
            tensor = ResumableDropout(dropout, seed + number, name=f"dropout_{number}")(tensor)
    return tensor


def concatenated_inputs(
    fitted: FittedFeatures, features: Sequence[Feature], inputs: Mapping[str, tf.Tensor], embedding_dim: int
) -> tf.Tensor:
    """Return float32 ``[batch, width]``: the averaged field embeddings beside the numeric features."""
    fields, rows = lay_out_fields(fitted, features)
    parts = [inputs[feature.name][:, tf.newaxis] for feature in features if isinstance(feature, Numeric)]
    if fields:
        embeddings = FieldEmbeddings(fields, rows, embedding_dim, name="fields")
        parts.insert(0, embeddings({field.name: inputs[field.name] for field in fields}))
    return tf_keras.layers.Concatenate(name="features")(parts) if len(parts) > 1 else parts[0]
