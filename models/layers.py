"""The layers shared by the architectures: embeddings, heads, dropout and inputs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.data_pipelines.features.kinds import (
    MISSING_ID,
    Bucketed,
    Feature,
    ListFeature,
    Sparse,
    TokenFeature,
    Vector,
)
from mirrorspark.models.tabular_layers import MemberDense

# Up to this many rows the table's gradient is summed as a dense tensor: one all-reduce of the table is then smaller,
# and on CPU much faster, than gathering the touched rows of every worker. Larger tables keep sparse gradients.
DENSE_GRADIENT_ROWS = 1 << 17


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


def lay_out_fields(fitted: FittedFeatures, features: Sequence[Feature]) -> tuple[tuple[Field, ...], int]:
    """Return the fields of all ``features`` that are ids, and the number of rows of their common table.

    Fields that share a vocabulary, or hash buckets, share its rows.
    """
    offsets: dict[str, int] = {}
    rows = 0
    fields = []
    for feature in features:
        if not isinstance(feature, TokenFeature | Bucketed):
            continue
        owner = feature.name if isinstance(feature, Bucketed) else fitted.spec.vocabulary_name(feature)
        if owner not in offsets:
            offsets[owner] = rows
            rows += fitted.id_count(feature)
        width = feature.max_length if isinstance(feature, ListFeature) else 1
        fields.append(Field(feature.name, offsets[owner], width))
    return tuple(fields), rows


class FieldEmbeddings(tf_keras.layers.Layer):
    """Embeds every field, averages inside a field, and concatenates: ``[batch, fields * dim]``.

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

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Create the table ``[rows, dim]``."""
        self._table = self.add_weight(
            name="table", shape=(self._rows, self._dim), initializer=tf_keras.initializers.RandomUniform(-0.05, 0.05)
        )
        super().build(input_shape)

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

    def _averaged(self, table: Any, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        given = {field.name: inputs[field.name] for field in self._fields}
        widths = {name: _ids_per_row(ids) for name, ids in given.items()}
        ids = tf.concat([tf.reshape(given[name], [-1, width]) for name, width in widths.items()], axis=1)
        weights = tf.cast(tf.not_equal(ids, MISSING_ID), self.compute_dtype)[:, :, tf.newaxis]
        embedded = tf.nn.embedding_lookup(table, ids + self._offsets([*widths.values()])) * weights
        # Adjacent fields of one id each are already in place: splitting and joining them would cost as much as the next
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


class SparseEmbedding(tf_keras.layers.Layer):
    """The sum of a row's embeddings times its values: ``[batch, dim]``, the product with a table ``[size, dim]``.

    Forward and backward pass touch only the table's rows that a batch names: neither the inputs nor the gradient are
    ever ``size`` wide, unless the table is so small that a dense gradient is cheaper to reduce.
    """

    def __init__(self, size: int, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._size = size
        self._dim = dim

    def build(self, input_shape: Any) -> None:
        """Create the table ``[size, dim]``."""
        self._table = self.add_weight(
            name="table", shape=(self._size, self._dim), initializer=tf_keras.initializers.RandomUniform(-0.05, 0.05)
        )
        super().build(input_shape)

    def call(self, inputs: tf.SparseTensor, training: bool | None = None) -> tf.Tensor:
        """Return float32 ``[batch, dim]`` for a sparse float32 ``[batch, size]``; a row without entries is zeros."""
        if not training and not _is_served():
            return self._product(inputs)
        table = dense_when_small(self._table, self._size)
        embedded = tf.nn.embedding_lookup(table, inputs.indices[:, 1]) * inputs.values[:, tf.newaxis]
        return tf.math.unsorted_segment_sum(embedded, inputs.indices[:, 0], inputs.dense_shape[0])

    def _product(self, inputs: tf.SparseTensor) -> tf.Tensor:
        """Return the product in one pass that stores no entry's embedding; its gradient would be as large as the table.

        8,192 rows of 100 entries and 128 numbers take one core 64 ms. The lookup takes 142 ms and 840 MB, and
        ``tf.sparse.sparse_dense_matmul``, which does not compress the rows, 316 ms.
        """
        rows = tf.raw_ops.SparseTensorToCSRSparseMatrix(
            indices=inputs.indices, values=inputs.values, dense_shape=inputs.dense_shape
        )
        return tf.ensure_shape(tf.raw_ops.SparseMatrixMatMul(a=rows, b=self._table), [None, self._dim])


class SoftmaxHeads(tf_keras.layers.Layer):
    """Many softmax heads on the same hidden units, as one matrix product: a layer for each would take longer to build.

    The heads' classes are concatenated, those of the first head first: ``[batch, sum of classes]``.
    """

    def __init__(self, classes: Sequence[int], **kwargs: Any) -> None:
        """Check and store the arguments.

        Args:
            classes: Number of classes of each head.
            **kwargs: Arguments of a Keras layer.

        Raises:
            ValueError: There is no head, or one has fewer than two classes.
        """
        super().__init__(**kwargs)
        if not classes or min(classes) < 2:
            raise ValueError(f"softmax heads of {list(classes)} classes; give one head or more, each of 2 or more")
        self._classes = tuple(classes)

    def build(self, input_shape: Any) -> None:
        """Create the kernel ``[units, sum of classes]`` and the bias."""
        units, width = input_shape[-1], sum(self._classes)
        initializer = _glorot(units, width / len(self._classes))
        self._kernel = self.add_weight(name="kernel", shape=(units, width), initializer=initializer)
        self._bias = self.add_weight(name="bias", shape=(width,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the logarithm of each class's probability within its head, ``[batch, sum of classes]``."""
        head_of = np.repeat(np.arange(len(self._classes)), self._classes)
        # Transposed, because segment operations work on rows.
        logits = tf.transpose(tf.nn.bias_add(tf.matmul(inputs, self._kernel), self._bias))
        logits -= tf.gather(tf.math.segment_max(logits, head_of), head_of)
        totals = tf.math.segment_sum(tf.exp(logits), head_of)
        return tf.transpose(logits - tf.gather(tf.math.log(totals), head_of))


class TwoWayHeads(tf_keras.layers.Layer):
    """Softmax heads of two classes each, as the log-odds of their second class: ``[batch, heads]``.

    The sigmoid of the log-odds is the softmax probability. The log-odds are the difference of two logits, so they need
    one product with the difference of two kernels: half the arithmetic of both logits, and no exponentials.
    """

    def __init__(self, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._heads = heads

    def build(self, input_shape: Any) -> None:
        """Create a kernel ``[units, heads]`` and a bias for each class, stacked as ``[2, units, heads]``."""
        shape = (2, input_shape[-1], self._heads)
        self._kernel = self.add_weight(name="kernel", shape=shape, initializer=_glorot(input_shape[-1], 2))
        self._bias = self.add_weight(name="bias", shape=(2, self._heads), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return ``[batch, heads]``."""
        kernel, bias = self._kernel[1] - self._kernel[0], self._bias[1] - self._bias[0]
        return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)


def _glorot(units: int, classes: float) -> Any:
    """Return the initializer for one head's kernel; the default for the whole width would draw much smaller numbers."""
    bound = (6 / (units + classes)) ** 0.5
    return tf_keras.initializers.RandomUniform(-bound, bound)


class _CountedCalls(tf_keras.layers.Layer):
    """Draws random numbers as a function of (seed, replica, call), and counts the calls in a variable.

    Keras draws from a hidden state that checkpoints do not contain, so a resumed run would draw different numbers.
    """

    def __init__(self, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._seed = seed

    def build(self, input_shape: Any) -> None:
        """Create the counter; each replica has its own, and that of the first is saved."""
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

    def _next_seed(self) -> tf.Tensor:
        call = self._calls.assign_add(1)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        return tf.stack([tf.constant(self._seed, tf.int64) + tf.cast(replica, tf.int64) * 1_000_003, call])


class ResumableDropout(_CountedCalls):
    """Dropout whose sequence of masks continues after a checkpoint is restored."""

    def __init__(self, rate: float, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._rate = rate

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return ``inputs`` with a share ``rate`` set to zero and the rest scaled up; unchanged unless training."""
        if not training:
            return inputs
        return tf.nn.experimental.stateless_dropout(inputs, self._rate, seed=self._next_seed())


class LogUniformSample(_CountedCalls):
    """Draws classes numbered by falling frequency, frequent ones more often; the sequence continues after a checkpoint.

    Class ``c`` of ``classes`` is drawn with probability ``log((c + 2) / (c + 1)) / log(classes + 1)``, as
    ``tf.random.log_uniform_candidate_sampler`` does, but with replacement and without hidden state.
    """

    def __init__(self, count: int, classes: int, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._count = count
        self._classes = classes

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        uniform = tf.random.stateless_uniform([self._count], self._next_seed(), dtype=tf.float64)
        drawn = tf.exp(uniform * tf.math.log(tf.constant(self._classes + 1.0, tf.float64))) - 1.0
        return tf.minimum(tf.cast(drawn, tf.int64), self._classes - 1)

    def log_expected_count(self, classes: tf.Tensor) -> tf.Tensor:
        """Return the logarithm of the expected number of draws of each of ``classes`` per call, as float32."""
        numbers = tf.cast(classes, tf.float64)
        probability = tf.math.log1p(1.0 / (numbers + 1.0)) / tf.math.log(tf.constant(self._classes + 1.0, tf.float64))
        return tf.cast(tf.math.log(probability * self._count), tf.float32)


class UniformSample(_CountedCalls):
    """Draws classes with equal probability and with replacement; the sequence continues after a checkpoint."""

    def __init__(self, count: int, classes: int, seed: int, **kwargs: Any) -> None:
        super().__init__(seed, **kwargs)
        self._count = count
        self._classes = classes

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return int64 ``[count]``, the same for all rows; ``inputs`` are ignored."""
        return tf.random.stateless_uniform([self._count], self._next_seed(), 0, self._classes, tf.int64)


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


def symbolic_inputs(features: Sequence[Feature], *, any_length: bool = False) -> dict[str, Any]:
    """Return one Keras input per feature, according to its form.

    Args:
        features: The features.
        any_length: Whether lists may be padded to any length instead of their ``max_length``.
    """
    inputs = {}
    for feature in features:
        if isinstance(feature, Sparse):
            inputs[feature.name] = tf_keras.Input((feature.size,), dtype=tf.float32, sparse=True, name=feature.name)
        elif isinstance(feature, ListFeature):
            length = None if any_length else feature.max_length
            inputs[feature.name] = tf_keras.Input((length,), dtype=tf.int64, name=feature.name)
        elif isinstance(feature, Vector):
            inputs[feature.name] = tf_keras.Input((feature.size,), dtype=tf.float32, name=feature.name)
        else:
            dtype = tf.float32 if feature.form == "value" else tf.int64
            inputs[feature.name] = tf_keras.Input((), dtype=dtype, name=feature.name)
    return inputs


def lists_of_any_length(model: Any) -> tuple[str, ...]:
    """Return the names of the lists that ``model`` accepts padded to any length, according to its Keras inputs.

    The result is empty for a layer, a module, and a model that is not a graph of Keras layers.
    """
    if not isinstance(model, tf_keras.Model):
        return ()
    inputs = zip(model.input_names or (), model.inputs or (), strict=True)
    return tuple(name for name, one in inputs if one.shape.as_list() == [None, None])


def dense_stack(
    tensor: tf.Tensor, hidden_units: Sequence[int], dropout: float, seed: int, members: int = 1
) -> tf.Tensor:
    """Return ``tensor`` after a ReLU layer per entry of ``hidden_units``, each followed by dropout.

    With several ``members``, the layers are those of an ensemble: ``[batch, members, units]``.
    """
    for number, units in enumerate(hidden_units):
        name = f"hidden_{number}"
        if members > 1:
            tensor = MemberDense(members, units, seed + number, name=name)(tensor)
        else:
            tensor = tf_keras.layers.Dense(units, activation="relu", name=name)(tensor)
        if dropout:
            tensor = ResumableDropout(dropout, seed + number, name=f"dropout_{number}")(tensor)
    return tensor


def concatenated_inputs(
    fitted: FittedFeatures,
    features: Sequence[Feature],
    inputs: Mapping[str, Any],
    embedding_dim: int,
    prefix: str = "",
) -> tf.Tensor:
    """Return float32 ``[batch, width]``: averaged field embeddings, embedded sparse vectors, vectors, and the numbers.

    The layers' names begin with ``prefix``; a model that joins its inputs twice needs two prefixes.
    """
    fields, rows = lay_out_fields(fitted, features)
    parts = []
    if fields:
        embeddings = FieldEmbeddings(fields, rows, embedding_dim, name=f"{prefix}fields")
        parts.append(embeddings({field.name: inputs[field.name] for field in fields}))
    parts += inputs_without_ids(features, inputs, embedding_dim, prefix)
    return concatenated(parts, f"{prefix}features")


def feature_inputs(fitted: FittedFeatures) -> dict[str, Any]:
    """Return the symbolic inputs of a Keras model: one per feature, by name, for ``tf_keras.Model(inputs, outputs)``.

    Tokens are ids, int64 ``[batch]`` or ``[batch, any]`` for lists; numbers are standardised, float32 ``[batch]``.
    """
    return symbolic_inputs(fitted.spec.query_features, any_length=True)


def feature_vector(fitted: FittedFeatures, inputs: Mapping[str, Any], embedding_dim: int = 8) -> tf.Tensor:
    """Return all features side by side, float32 ``[batch, width]``: embeddings of the tokens, and the numbers.

    Args:
        fitted: The fitted features.
        inputs: The result of :func:`feature_inputs`.
        embedding_dim: Width of each embedding; those of a list are averaged.
    """
    return concatenated_inputs(fitted, fitted.spec.query_features, dict(inputs), embedding_dim)


def inputs_without_ids(
    features: Sequence[Feature], inputs: Mapping[str, Any], embedding_dim: int, prefix: str = ""
) -> list[tf.Tensor]:
    """Return the features outside of fields: embedded sparse rows ``[batch, dim]``, vectors, numbers ``[batch, 1]``."""
    parts = []
    for feature in features:
        if isinstance(feature, Sparse):
            # TensorFlow has no product of sparse float16 rows, and casting the table takes longer than the product.
            embedding = SparseEmbedding(
                feature.size, embedding_dim, dtype="float32", name=f"{prefix}{feature.name}_embedding"
            )
            parts.append(embedding(inputs[feature.name]))
    parts += [inputs[feature.name] for feature in features if isinstance(feature, Vector)]
    numbers = [inputs[feature.name][:, tf.newaxis] for feature in features if feature.form == "value"]
    return [*parts, *numbers]


def concatenated(parts: Sequence[tf.Tensor], name: str = "features") -> tf.Tensor:
    """Return the ``[batch, any]`` parts concatenated along their columns."""
    return tf_keras.layers.Concatenate(name=name)(list(parts)) if len(parts) > 1 else parts[0]
