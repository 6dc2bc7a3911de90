"""The feature transform as graph operations: what lets an exported model take raw columns.

Equal bit for bit to :mod:`data_pipelines.transform`, which a test holds it to: numbers are computed in float64 and
rounded once, tokens are looked up in the same vocabulary. Only numbers below float32's smallest normal, 1.2e-38, may
differ: TensorFlow makes zeros of them.
"""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from data_pipelines.features import (
    FIRST_VOCABULARY_ID,
    MISSING_ID,
    OUT_OF_VOCABULARY_ID,
    UNBOUNDED,
    Categorical,
    Feature,
    MultiValued,
    Numeric,
)
from data_pipelines.fitted import FittedFeatures


class GraphEncoder(tf.Module):
    """Turns raw tensors into model inputs.

    Raw tensors: float64 ``[batch]`` with NaN for missing; string ``[batch]`` and string ``[batch, any]`` with ``""``
    for missing.
    """

    def __init__(self, fitted: FittedFeatures, features: Sequence[Feature]) -> None:
        super().__init__(name="raw_columns")
        self._fitted = fitted
        self._features = tuple(features)
        names = {
            fitted.spec.vocabulary_name(feature): feature
            for feature in features
            if isinstance(feature, Categorical | MultiValued)
        }
        self._tables = {name: _lookup_table(fitted, feature) for name, feature in names.items()}

    def signature(self) -> dict[str, tf.TensorSpec]:
        """Return the raw tensors that :meth:`__call__` takes."""
        return {feature.name: _raw_spec(feature) for feature in self._features}

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the model's inputs, as :meth:`data_pipelines.transform.Encoder.encode_padded` does."""
        return {feature.name: self._encode(feature, raw[feature.name]) for feature in self._features}

    def _encode(self, feature: Feature, raw: tf.Tensor) -> tf.Tensor:
        if isinstance(feature, Numeric):
            offset, divisor = self._fitted.scaling(feature)
            imputed = tf.constant(self._fitted.imputed(feature), tf.float64)
            filled = tf.where(tf.math.is_nan(raw), imputed, raw)
            return tf.cast((filled - tf.constant(offset, tf.float64)) / tf.constant(divisor, tf.float64), tf.float32)
        ids = self._ids(feature, raw)
        return _truncated(feature, ids) if isinstance(feature, MultiValued) else ids

    def _ids(self, feature: Categorical | MultiValued, tokens: tf.Tensor) -> tf.Tensor:
        ids = self._tables[self._fitted.spec.vocabulary_name(feature)].lookup(tokens)
        return tf.where(tf.equal(tokens, ""), tf.constant(MISSING_ID, tf.int64), ids)


def encoded_signature(features: Sequence[Feature]) -> dict[str, tf.TensorSpec]:
    """Return the encoded tensors of ``features``, any batch size."""
    specs = {}
    for feature in features:
        if isinstance(feature, MultiValued):
            length = None if feature.max_length == UNBOUNDED else feature.max_length
            specs[feature.name] = tf.TensorSpec([None, length], tf.int64, feature.name)
        else:
            dtype = tf.float32 if isinstance(feature, Numeric) else tf.int64
            specs[feature.name] = tf.TensorSpec([None], dtype, feature.name)
    return specs


def _raw_spec(feature: Feature) -> tf.TensorSpec:
    if isinstance(feature, Numeric):
        return tf.TensorSpec([None], tf.float64, feature.name)
    if isinstance(feature, MultiValued):
        return tf.TensorSpec([None, None], tf.string, feature.name)
    return tf.TensorSpec([None], tf.string, feature.name)


def _lookup_table(fitted: FittedFeatures, feature: Categorical | MultiValued) -> tf.lookup.StaticHashTable:
    tokens = fitted.vocabulary(feature).tokens.to_pylist()
    ids = tf.range(FIRST_VOCABULARY_ID, FIRST_VOCABULARY_ID + len(tokens), dtype=tf.int64)
    initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(tokens, tf.string), ids)
    return tf.lookup.StaticHashTable(initializer, default_value=OUT_OF_VOCABULARY_ID)


def _truncated(feature: MultiValued, ids: tf.Tensor) -> tf.Tensor:
    """Drop missing ids, cut to ``max_length`` at the feature's side, pad with 0 on the right."""
    present = tf.ragged.boolean_mask(ids, tf.not_equal(ids, MISSING_ID))
    if feature.max_length == UNBOUNDED:
        return present.to_tensor(MISSING_ID)
    kept = present[:, -feature.max_length :] if feature.truncate == "head" else present[:, : feature.max_length]
    return kept.to_tensor(MISSING_ID, shape=[None, feature.max_length])
