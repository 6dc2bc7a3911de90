"""All features of a Keras 3 model side by side."""

from collections.abc import Mapping
from typing import Any

import keras

from mirrorspark.data_pipelines.features import FittedFeatures, kinds, plain_name
from mirrorspark.models.layers.input import FieldLookup, SparseLookup, lay_out_fields


class FieldEmbeddings(FieldLookup, keras.layers.Layer):
    """The layer of Keras 3."""


class SparseEmbedding(SparseLookup, keras.layers.Layer):
    """The layer of Keras 3."""


def feature_vector(fitted: FittedFeatures, inputs: Mapping[str, Any], embedding_dim: int) -> Any:
    """Return float32 ``[batch, width]``, as :func:`models.layers.input.feature_vector` does for tf-keras."""
    features = fitted.spec.query_features
    fields, rows = lay_out_fields(fitted, features)
    parts = []
    if fields:
        embeddings = FieldEmbeddings(fields, rows, embedding_dim, name="fields")
        parts.append(embeddings({field.name: inputs[field.name] for field in fields}))
    for feature in features:
        given = inputs[feature.name]
        if isinstance(feature, kinds.Sparse):
            name = f"{plain_name(feature.name)}_embedding"
            parts.append(SparseEmbedding(feature.size, embedding_dim, dtype="float32", name=name)(given))
        elif isinstance(feature, kinds.VectorFeature):
            parts.append(given)
        elif feature.form == "value":
            parts.append(given[:, None])
    return keras.layers.Concatenate(name="features")(parts) if len(parts) > 1 else parts[0]
