"""Multi-label model: one network with a head for every label.

Source: Amazon's multi-label propensity model on Spark, which takes sparse features through hidden layers to a two-way
softmax for each of thousands of categories. The network is that of :mod:`models.multi_field`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models import multi_field
from mirrorspark.models.settings import ModelSettingsError

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "multi_label"

logits = multi_field.logits
check_features = multi_field.check_features

# The layer whose weights have a column for every label.
HEADS = "heads"

Heads = Literal["sigmoid", "softmax"]


@dataclass(frozen=True)
class Settings(multi_field.Settings):
    """Settings of the architecture: those of :class:`models.multi_field.Settings`, and the heads.

    Attributes:
        heads: Function from the last hidden layer to a label's probability: ``sigmoid`` of one logit, or a two-way
            ``softmax``, which has a logit for the label and one against it. Both can express the same functions;
            ``softmax`` has twice the weights, and its updates are twice as large at the same learning rate.
    """

    heads: str = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads not in get_args(Heads):
            raise ModelSettingsError(f"model setting heads is '{self.heads}'; use {' or '.join(get_args(Heads))}")
        if self.heads == "softmax" and self.members > 1:
            raise ModelSettingsError(
                f"model setting heads is softmax, and members is {self.members}; use sigmoid, which can express the "
                f"same functions, or one member"
            )


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to the log-odds of each label: float32 ``[batch, classes]``."""
    from mirrorspark.models.layers import TwoWayHeads

    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    if settings.heads == "softmax":
        heads = TwoWayHeads(fitted.classes, name=HEADS, dtype="float32")
    else:
        heads = multi_field.heads(settings, fitted.classes, HEADS)
    outputs = multi_field.with_linear(settings, fitted, inputs, heads(hidden))
    return multi_field.model_of(settings, inputs, outputs, "multi_label")


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``scores``, float32 ``[batch, classes]``: the probability of each label."""
    return probabilities(logits(model, inputs))


def probabilities(log_odds: "tf.Tensor") -> dict[str, "tf.Tensor"]:
    """Return ``scores``, ``[batch, classes]``, of log-odds of that shape."""
    import tensorflow as tf

    return {"scores": tf.sigmoid(log_odds)}
