"""Multi-class model: the network of :mod:`models.multi_field` with a softmax over the classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models import multi_field

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "multi_class"

Settings = multi_field.Settings
check_features = multi_field.check_features


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to a logit per class: float32 ``[batch, classes]``."""
    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    outputs = multi_field.heads(settings, fitted.classes, "logits")(hidden)
    outputs = multi_field.with_linear(settings, fitted, inputs, outputs)
    return multi_field.model_of(settings, inputs, outputs, "multi_class")


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``scores``, float32 ``[batch, classes]``: the probability of each class; those of a row sum to 1."""
    return probabilities(logits(model, inputs))


def logits(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the logits of the classes, float32 ``[batch, classes]``; an ensemble's give its mean probabilities."""
    from mirrorspark.models.layers import is_ensemble, mean_class_logits

    outputs = model(inputs, training=False)
    return mean_class_logits(outputs) if is_ensemble(model) else outputs


def probabilities(of_classes: "tf.Tensor") -> dict[str, "tf.Tensor"]:
    """Return ``scores``, ``[batch, classes]``, of logits of that shape."""
    import tensorflow as tf

    return {"scores": tf.nn.softmax(of_classes)}
