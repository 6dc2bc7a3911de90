"""The Keras inputs of a model's features, and the vector of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features import FittedFeatures, item_rows, kinds, plain_name
from mirrorspark.models import keras3
from mirrorspark.models.layers.input.embeddings import FieldEmbeddings, SparseEmbedding, lay_out_fields
from mirrorspark.models.layers.resumable import ResumableDropout
from mirrorspark.models.layers.tabular import MemberDense
from mirrorspark.models.settings import ModelSettingsError

# Names of the layers that put the features side by side.
_FIELDS, _FEATURES, _EMBEDDING = "fields", "features", "_embedding"
_LAYERS = frozenset({_FIELDS, _FEATURES})


def symbolic_inputs(
    features: Sequence[kinds.Feature], *, any_length: bool = False, keras: Any = tf_keras
) -> dict[str, Any]:
    """Return one Keras input per feature, by the feature's name, according to its form.

    The input's own name is another one, so that it equals that of no layer.

    Args:
        features: The features.
        any_length: Whether lists may be padded to any length instead of their ``max_length``.
        keras: The module of either Keras.
    """
    return {
        feature.name: _symbolic_input(feature, f"{plain_name(feature.name)}_input", any_length, keras)
        for feature in features
    }


def _symbolic_input(feature: kinds.Feature, name: str, any_length: bool, keras: Any) -> Any:
    if isinstance(feature, kinds.Sparse):
        return keras.Input((feature.size,), dtype="float32", sparse=True, name=name)
    if isinstance(feature, kinds.ListFeature):
        return keras.Input((None if any_length else feature.max_length,), dtype="int64", name=name)
    if isinstance(feature, kinds.VectorFeature):
        return keras.Input((feature.size,), dtype="float32", name=name)
    return keras.Input((), dtype="float32" if feature.form == "value" else "int64", name=name)


def lists_of_any_length(model: Any) -> tuple[str, ...]:
    """Return the names of the lists that ``model`` accepts padded to any length, according to its Keras inputs.

    The result is empty for a layer, a module, and a model that is not a graph of Keras layers.
    """
    if keras3.is_keras3(model):
        return tuple(name for name, one in keras3.named_inputs(model).items() if one.shape == (None, None))
    if not isinstance(model, tf_keras.Model):
        return ()
    given = getattr(model, "input", None) if model.inputs else None
    inputs = (
        given.items() if isinstance(given, Mapping) else zip(model.input_names or (), model.inputs or (), strict=True)
    )
    return tuple(name for name, one in inputs if one.shape.as_list() == [None, None])


def dense_stack(
    tensor: tf.Tensor, hidden_units: Sequence[int], dropout: float, seed: int, members: int = 1, *, prefix: str = ""
) -> tf.Tensor:
    """Return ``tensor`` after a ReLU layer per entry of ``hidden_units``, each followed by dropout.

    With several ``members``, the layers are those of an ensemble: ``[batch, members, units]``. Their names begin with
    ``prefix``.
    """
    for number, units in enumerate(hidden_units):
        name = f"{prefix}hidden_{number}"
        if members > 1:
            tensor = MemberDense(members, units, seed + number, name=name)(tensor)
        else:
            tensor = tf_keras.layers.Dense(units, activation="relu", name=name)(tensor)
        if dropout:
            tensor = ResumableDropout(dropout, seed + number, name=f"{prefix}dropout_{number}")(tensor)
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
        embeddings = FieldEmbeddings(fields, rows, embedding_dim, name=f"{prefix}{_FIELDS}")
        parts.append(embeddings({field.name: inputs[field.name] for field in fields}))
    parts += inputs_without_ids(features, inputs, embedding_dim, prefix)
    return concatenated(parts, f"{prefix}{_FEATURES}")


def feature_inputs(fitted: FittedFeatures, keras: Any = tf_keras) -> dict[str, Any]:
    """Return the symbolic inputs of a Keras model: one per feature, by name, for ``keras.Model(inputs, outputs)``.

    Tokens are ids, int64 ``[batch]`` or ``[batch, any]`` for lists; numbers are standardised, float32 ``[batch]``.

    Args:
        fitted: The fitted features.
        keras: The module whose layers follow: tf-keras, or Keras 3.
    """
    # Keras finds the inputs of a model that takes a list by these names, so they are the features' where they can be.
    return {
        feature.name: _symbolic_input(feature, _name_beside_vector(feature.name), True, keras)
        for feature in fitted.spec.query_features
    }


def _name_beside_vector(name: str) -> str:
    """Return the name of an input that no layer of :func:`feature_vector` has."""
    plain = plain_name(name)
    return f"{plain}_input" if plain in _LAYERS or plain.endswith(_EMBEDDING) else plain


def feature_vector(fitted: FittedFeatures, inputs: Mapping[str, Any], embedding_dim: int = 8) -> tf.Tensor:
    """Return all features side by side, float32 ``[batch, width]``: embeddings of the tokens, and the numbers.

    Args:
        fitted: The fitted features.
        inputs: The result of :func:`feature_inputs`.
        embedding_dim: Width of each embedding; those of a list are averaged.
    """
    if any(map(keras3.is_keras3, inputs.values())):
        return keras3.feature_vector(fitted, inputs, embedding_dim)
    return concatenated_inputs(fitted, fitted.spec.query_features, dict(inputs), embedding_dim)


def item_features(fitted: FittedFeatures) -> dict[str, Any]:
    """Return the features of all items by name, ``[ids, ...]``: those of a candidate are at the place of its id.

    Their forms are those of :func:`feature_inputs`, a sparse one is a ``tf.SparseTensor``; ids without an item have
    zeros. A candidate tower of your own reads the others by ``tf.gather``.

    Args:
        fitted: The fitted features.

    Raises:
        ModelSettingsError: The candidates have no features.
    """
    if fitted.items is None:
        raise ModelSettingsError(
            "item_features reads the features of items, and the candidates have none; give items= and their features"
        )
    from mirrorspark.models.serving import input_tensors

    found: dict[str, Any] = input_tensors(
        fitted.items.features.spec.query_features, item_rows.encoded_items(fitted.items)
    )
    return found


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
                name=f"{prefix}{plain_name(feature.name)}{_EMBEDDING}",
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


def concatenated(parts: Sequence[tf.Tensor], name: str = _FEATURES) -> tf.Tensor:
    """Return the ``[batch, any]`` parts concatenated along their columns."""
    return tf_keras.layers.Concatenate(name=name)(list(parts)) if len(parts) > 1 else parts[0]
