"""Ordinal model: the network of :mod:`models.multi_field` with one score, which thresholds divide into the classes.

Source: McCullagh 1980, "Regression Models for Ordinal Data", the proportional-odds model with a network for its score.
"""

from typing import TYPE_CHECKING

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models import multi_class, multi_field

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tf_keras

# Its outputs are the logits of classes, whose order only the network knows.
TASK = "multi_class"
LABEL = "ordinal"

Settings = multi_field.Settings
check_features = multi_field.check_features
predict = multi_class.predict
logits = multi_class.logits
probabilities = multi_class.probabilities


def build(settings: multi_field.Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to the logarithm of each class's probability: ``[batch, classes]``.

    An ensemble has those of every member, ``[batch, members, classes]``; the members share the thresholds.
    """
    from mirrorspark.models.layers import OrdinalHead

    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    # No layer may have the name of a feature, and `score` is a likely one.
    score = multi_field.heads(settings, 1, "ordinal_score")(hidden)
    score = multi_field.with_linear(settings, fitted, inputs, score)
    outputs = OrdinalHead(fitted.classes, name="ordinal_thresholds")(score)
    return multi_field.model_of(settings, inputs, outputs, "ordinal")
