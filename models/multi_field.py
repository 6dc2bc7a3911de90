"""Multi-field model: a feed-forward network on the averaged embedding of each field and the numbers.

Source: TalkingData's propensity model, after Covington et al. 2016 and Cheng et al. 2016 ("Wide & Deep Learning").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models.settings import check_fraction, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "binary"


@dataclass(frozen=True)
class Settings:
    """Settings of the architecture.

    Attributes:
        embedding_dim: Width of every field's embedding.
        hidden_units: Width of each hidden layer.
        dropout: Share of hidden units dropped while training.
    """

    embedding_dim: int = 8
    hidden_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive("embedding_dim", self.embedding_dim)
        for units in self.hidden_units:
            check_positive("hidden_units", units)
        check_fraction("dropout", self.dropout)


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to one logit: float32 ``[batch, 1]``, the shape for Keras's metrics."""
    import tf_keras

    inputs, last = hidden(settings, fitted, seed)
    logit = tf_keras.layers.Dense(1, name="logit", dtype="float32")(last)
    return tf_keras.Model(inputs, logit, name="multi_field")


def hidden(settings: Settings, fitted: FittedFeatures, seed: int) -> "tuple[dict[str, tf.Tensor], tf.Tensor]":
    """Return the symbolic inputs, and the last hidden layer's output, ``[batch, units]``."""
    from mirrorspark.models.layers import concatenated_inputs, dense_stack, symbolic_inputs

    inputs = symbolic_inputs(fitted.spec.features, any_length=True)
    joined = concatenated_inputs(fitted, fitted.spec.features, inputs, settings.embedding_dim)
    return inputs, dense_stack(joined, settings.hidden_units, settings.dropout, seed)


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``score``, float32 ``[batch]``: the probability of the positive class."""
    import tensorflow as tf

    return {"score": tf.sigmoid(model(inputs, training=False)[:, 0])}
