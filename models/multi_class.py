"""Multi-class model: the network of :mod:`models.multi_field` with a softmax over the classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models import multi_field

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "multi_class"

Settings = multi_field.Settings


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to a logit per class: float32 ``[batch, classes]``."""
    import tf_keras

    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    logits = tf_keras.layers.Dense(fitted.classes, name="logits", dtype="float32")(hidden)
    return tf_keras.Model(inputs, logits, name="multi_class")


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``scores``, float32 ``[batch, classes]``: the probability of each class; those of a row sum to 1."""
    import tensorflow as tf

    return {"scores": tf.nn.softmax(model(inputs, training=False))}
