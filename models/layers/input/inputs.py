"""The Keras inputs of a model's features, and the vector of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures, kinds
from mirrorspark.models.layers.input.embeddings import FieldEmbeddings, SparseEmbedding, lay_out_fields
from mirrorspark.models.layers.resumable import ResumableDropout
from mirrorspark.models.layers.tabular import MemberDense


def symbolic_inputs(features: Sequence[kinds.Feature], *, any_length: bool = False) -> dict[str, Any]:
    """Return one Keras input per feature, according to its form.

    Args:
        features: The features.
        any_length: Whether lists may be padded to any length instead of their ``max_length``.
    """
    inputs = {}
    for feature in features:
        if isinstance(feature, kinds.Sparse):
            inputs[feature.name] = tf_keras.Input((feature.size,), dtype=tf.float32, sparse=True, name=feature.name)
        elif isinstance(feature, kinds.ListFeature):
            length = None if any_length else feature.max_length
            inputs[feature.name] = tf_keras.Input((length,), dtype=tf.int64, name=feature.name)
        elif isinstance(feature, kinds.VectorFeature):
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
    features: Sequence[kinds.Feature],
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


def embedded_sparse(
    features: Sequence[kinds.Feature],
    inputs: Mapping[str, Any],
    embedding_dim: int,
    prefix: str = "",
    *,
    from_zero: bool = False,
) -> list[tf.Tensor]:
    """Return the embedding of each sparse feature, float32 ``[batch, embedding_dim]``."""
    parts = []
    for feature in features:
        if isinstance(feature, kinds.Sparse):
            # TensorFlow has no product of sparse float16 rows, and casting the table takes longer than the product.
            embedding = SparseEmbedding(
                feature.size,
                embedding_dim,
                from_zero=from_zero,
                dtype="float32",
                name=f"{prefix}{feature.name}_embedding",
            )
            parts.append(embedding(inputs[feature.name]))
    return parts


def inputs_without_ids(
    features: Sequence[kinds.Feature], inputs: Mapping[str, Any], embedding_dim: int, prefix: str = ""
) -> list[tf.Tensor]:
    """Return the features outside of fields: embedded sparse rows ``[batch, dim]``, vectors, numbers ``[batch, 1]``."""
    parts = embedded_sparse(features, inputs, embedding_dim, prefix)
    parts += [inputs[feature.name] for feature in features if isinstance(feature, kinds.VectorFeature)]
    numbers = [inputs[feature.name][:, tf.newaxis] for feature in features if feature.form == "value"]
    return [*parts, *numbers]


def concatenated(parts: Sequence[tf.Tensor], name: str = "features") -> tf.Tensor:
    """Return the ``[batch, any]`` parts concatenated along their columns."""
    return tf_keras.layers.Concatenate(name=name)(list(parts)) if len(parts) > 1 else parts[0]
