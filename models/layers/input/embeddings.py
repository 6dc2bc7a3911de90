"""Embeddings of fields in one table, of sparse features, and of crossed ids."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures, kinds

# Up to this many rows the table's gradient is summed as a dense tensor: one all-reduce of the table is then smaller,
# and on CPU much faster, than gathering the touched rows of every worker. Larger tables keep sparse gradients.
DENSE_GRADIENT_ROWS = 1 << 17

# The initial values of a table: from -0.05 to 0.05, in both Keras.
_UNIFORM = "random_uniform"


@dataclass(frozen=True)
class Field:
    """The ids of one input, which are embedded in a common table.

    Attributes:
        name: The model's input.
        offset: Row of the table where the field's ids begin.
        width: Ids per example: 1, or the length of a list.
    """

    name: str
    offset: int
    width: int


def lay_out_fields(fitted: FittedFeatures, features: Sequence[kinds.Feature]) -> tuple[tuple[Field, ...], int]:
    """Return the fields of all ``features`` that are ids, and the number of rows of their common table.

    Fields that share a vocabulary, or hash buckets, share its rows.
    """
    offsets: dict[str, int] = {}
    rows = 0
    fields = []
    for feature in features:
        if not isinstance(feature, kinds.TokenFeature | kinds.Bucketed):
            continue
        owner = feature.name if isinstance(feature, kinds.Bucketed) else fitted.spec.vocabulary_name(feature)
        if owner not in offsets:
            offsets[owner] = rows
            rows += fitted.id_count(feature)
        width = feature.max_length if isinstance(feature, kinds.ListFeature) else 1
        fields.append(Field(feature.name, offsets[owner], width))
    return tuple(fields), rows


class FieldLookup:
    """A layer, of either Keras: embeds every field, averages inside it, and concatenates: ``[batch, fields * dim]``.

    All fields share one table and are looked up by one gather, because a lookup, a gradient and a collective per field
    cost more than the arithmetic. Id 0 (missing, padding) is excluded from the mean; a field without any other id
    becomes zeros. Source: multi-field averaging as in Covington et al. 2016, "Deep Neural Networks for YouTube
    Recommendations", section 3.2.
    """

    def __init__(self, fields: Sequence[Field], rows: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fields = tuple(fields)
        self._rows = rows
        self._dim = dim

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields in the table."""
        return self._fields

    def build(self: Any, input_shape: Mapping[str, Any]) -> None:
        """Create the table ``[rows, dim]``."""
        self._table = self.add_weight(name="table", shape=(self._rows, self._dim), initializer=_UNIFORM)
        super().build(input_shape)  # type: ignore[misc]

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Return ``[batch, fields * dim]`` for int64 ``[batch]`` or ``[batch, any]`` ids by field name."""
        return self._averaged(self._lookup_table(training), inputs)

    # Autograph skips this method: nothing in it depends on a tensor's value, and converting it with everything it calls
    # takes half of the time of building a model.
    call.autograph_info__ = None  # type: ignore[attr-defined]

    def _lookup_table(self, training: bool | None) -> Any:
        """Return the table for a lookup."""
        # A prediction has no gradient, so its lookup may read only the rows that it names.
        return self._table if training is False else dense_when_small(self._table, self._rows)

    def _averaged(self: Any, table: Any, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        given = {field.name: inputs[field.name] for field in self._fields}
        widths = {name: _ids_per_row(ids) for name, ids in given.items()}
        ids = tf.concat([tf.reshape(given[name], [-1, width]) for name, width in widths.items()], axis=1)
        weights = tf.cast(tf.not_equal(ids, kinds.MISSING_ID), self.compute_dtype)[:, :, tf.newaxis]
        embedded = tf.nn.embedding_lookup(table, ids + self._offsets([*widths.values()])) * weights
        # Adjacent fields of one id each are already in place: splitting and joining them would cost as the next
        # layer.
        runs = [[*run] for _, run in itertools.groupby(self._fields, lambda field: field.width == 1 or field.name)]
        sizes = [sum(widths[field.name] for field in run) for run in runs]
        parts = zip(runs, tf.split(embedded, sizes, axis=1), tf.split(weights, sizes, axis=1), strict=True)
        return tf.concat(
            [
                tf.reshape(part, [-1, len(run) * self._dim])
                if run[0].width == 1
                else tf.math.divide_no_nan(tf.reduce_sum(part, 1), tf.reduce_sum(weight, 1))
                for run, part, weight in parts
            ],
            axis=1,
        )

    def _offsets(self, widths: Sequence[Any]) -> Any:
        """Return int64 ``[sum of widths]``: for each id the first row of its field in the table."""
        # A constant of the graph if all widths are known, as in all batches of a training.
        repeat = np.repeat if all(isinstance(width, int) for width in widths) else tf.repeat
        return repeat(np.array([field.offset for field in self._fields], np.int64), widths)


def _ids_per_row(ids: tf.Tensor) -> Any:
    """Return the number of ids per row: a Python number if the static shape has it, else a tensor."""
    if ids.shape.rank == 1:
        return 1
    return tf.shape(ids)[1] if ids.shape[1] is None else ids.shape[1]


def dense_when_small(table: Any, rows: int) -> Any:
    """Return ``table`` for a lookup whose gradient is dense if that is cheaper to sum over the workers."""
    # Multiplication by one turns the sparse gradient of the lookup into a dense one.
    return table * 1.0 if rows <= DENSE_GRADIENT_ROWS and not _is_served() else table


def _is_served() -> bool:
    """Return whether parameter servers hold the tables; using a whole table would then transfer it for every batch."""
    return bool(tf.distribute.get_strategy()._should_use_with_coordinator)


class FieldEmbeddings(FieldLookup, tf_keras.layers.Layer):
    """The layer of tf-keras."""


class SparseLookup:
    """A layer, of either Keras: the sum of a row's embeddings times its values, ``[batch, dim]``.

    It is the product with a table ``[size, dim]``.
    Forward and backward pass touch only the table's rows that a batch names: neither the inputs nor the gradient are
    ever ``size`` wide, unless the table is so small that a dense gradient is cheaper to reduce.
    """

    def __init__(self, size: int, dim: int, *, from_zero: bool = False, **kwargs: Any) -> None:
        """Store the arguments; a table that begins ``from_zero`` is the weights of a linear model."""
        super().__init__(**kwargs)
        self._size = size
        self._dim = dim
        self._initializer = "zeros" if from_zero else _UNIFORM

    def build(self: Any, input_shape: Any) -> None:
        """Create the table ``[size, dim]``."""
        self._table = self.add_weight(name="table", shape=(self._size, self._dim), initializer=self._initializer)
        super().build(input_shape)  # type: ignore[misc]

    def call(self, inputs: tf.SparseTensor, training: bool | None = None) -> tf.Tensor:
        """Return float32 ``[batch, dim]`` for a sparse float32 ``[batch, size]``; a row without entries is zeros."""
        if not training and not _is_served():
            return sparse_product(inputs, self._table)
        table = dense_when_small(self._table, self._size)
        embedded = tf.nn.embedding_lookup(table, inputs.indices[:, 1]) * inputs.values[:, tf.newaxis]
        return tf.math.unsorted_segment_sum(embedded, inputs.indices[:, 0], inputs.dense_shape[0])


class SparseEmbedding(SparseLookup, tf_keras.layers.Layer):
    """The layer of tf-keras."""


def sparse_product(rows: tf.SparseTensor, table: Any) -> tf.Tensor:
    """Return the product of sparse rows ``[batch, size]`` with a table ``[size, dim]``: ``[batch, dim]``.

    It takes one pass and stores no entry's embedding; its gradient would be as the table. 8,192 rows of 100
    entries and 128 numbers take one core 64 ms. The lookup takes 142 ms and 840 MB, and
    ``tf.sparse.sparse_dense_matmul``, which does not compress the rows, 316 ms.
    """
    # SparseMatrixMatMul divides by the number of rows: an empty batch would end the process by SIGFPE.
    compressed = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=rows.indices, values=rows.values, dense_shape=tf.maximum(rows.dense_shape, 1)
    )
    product = tf.raw_ops.SparseMatrixMatMul(a=compressed, b=table)[: rows.dense_shape[0]]
    return tf.ensure_shape(product, [None, table.shape[1]])


class CrossedIds(tf_keras.layers.Layer):
    """Hashes pairs of ids into buckets: int64 ``[batch]`` from 0."""

    def __init__(self, buckets: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buckets = buckets

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the bucket of each pair of ids ``[batch]`` and ``[batch]``."""
        one, other = inputs
        # Knuth's multiplicative hash; folding in the high bits makes them affect the bucket too.
        mixed = one * 2_654_435_761 + other
        return tf.math.floormod(tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, 15)), self._buckets)
