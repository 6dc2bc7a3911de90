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
    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    logits = multi_field.heads(settings, fitted.classes, "logits")(hidden)
    return multi_field.model_of(settings, inputs, logits, "multi_class")


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``scores``, float32 ``[batch, classes]``: the probability of each class; those of a row sum to 1."""
    import tensorflow as tf

    from mirrorspark.models.layers.members import is_ensemble, mean_class_logits

    logits = model(inputs, training=False)
    return {"scores": tf.nn.softmax(mean_class_logits(logits) if is_ensemble(model) else logits)}
