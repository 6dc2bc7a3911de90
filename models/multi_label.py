"""Multi-label model: one network, and a logit for every label, so that one model serves all of them.

Source: Amazon's multi-label propensity model on Spark; its network is that of :mod:`models.multi_field`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from data_pipelines.fitted import FittedFeatures
from models import multi_field

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "multi_label"

Settings = multi_field.Settings


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to one logit per class of the label: float32 ``[batch, classes]``."""
    import tf_keras

    from models.layers import concatenated_inputs, dense_stack, symbolic_inputs

    inputs = symbolic_inputs(fitted.spec.features)
    joined = concatenated_inputs(fitted, fitted.spec.features, inputs, settings.embedding_dim)
    hidden = dense_stack(joined, settings.hidden_units, settings.dropout, seed)
    logits = tf_keras.layers.Dense(fitted.classes, name="logits", dtype="float32")(hidden)
    return tf_keras.Model(inputs, logits, name="multi_label")


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``scores``, float32 ``[batch, classes]``: the probability of each class."""
    import tensorflow as tf

    return {"scores": tf.sigmoid(model(inputs, training=False))}
