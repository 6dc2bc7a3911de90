"""Wide & Deep: a linear model of ids and crossings that memorises, and a deep model that generalises.

Source: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems". The paper trains the wide part with FTRL and
the deep part with AdaGrad; here one optimizer trains both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, kinds, plain_name
from mirrorspark.models import multi_field
from mirrorspark.models.settings import ModelSettingsError, check_fraction, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "binary"

probabilities = multi_field.probabilities


@dataclass(frozen=True)
class Settings:
    """Settings of the architecture.

    Attributes:
        embedding_dim: Width of every field's embedding in the deep part.
        hidden_units: Width of each hidden layer of the deep part.
        dropout: Share of hidden units dropped while training.
        crosses: Pairs of features with one id per row that the wide part crosses, such as ``carrier*dest``.
        cross_buckets: Number of weights per crossing, into which its pairs of ids are hashed.
    """

    embedding_dim: int = 8
    hidden_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    crosses: tuple[str, ...] = ()
    cross_buckets: int = 10_000

    def __post_init__(self) -> None:
        check_positive("embedding_dim", self.embedding_dim)
        for units in self.hidden_units:
            check_positive("hidden_units", units)
        check_fraction("dropout", self.dropout)
        check_positive("cross_buckets", self.cross_buckets)
        for cross in self.crosses:
            if not isinstance(cross, str) or len(set(cross.split("*"))) < 2:
                raise ModelSettingsError(
                    f"model setting crosses has {cross!r}; name two features, for example carrier*dest"
                )


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` unless every crossing names two features with one id per row."""
    for cross in settings.crosses:
        _crossed(cross, spec)


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to one logit: float32 ``[batch, 1]``.

    Raises:
        ModelSettingsError: A crossing names something other than a feature with one id per row.
    """
    import tf_keras

    from mirrorspark.models.layers.input import CrossedIds, concatenated_inputs, dense_stack, symbolic_inputs

    features = fitted.spec.features
    inputs = symbolic_inputs(features, any_length=True)
    # An embedding of width one is the weight of its id.
    wide = [concatenated_inputs(fitted, features, inputs, embedding_dim=1, prefix="wide_")]
    for cross in settings.crosses:
        pair = [inputs[name] for name in _crossed(cross, fitted.spec)]
        weights = tf_keras.layers.Embedding(
            settings.cross_buckets, 1, name=f"weights_{plain_name(cross.replace('*', '_x_'))}"
        )
        wide.append(weights(CrossedIds(settings.cross_buckets)(pair)))
    deep = concatenated_inputs(fitted, features, inputs, settings.embedding_dim, prefix="deep_")
    hidden = dense_stack(deep, settings.hidden_units, settings.dropout, seed)
    logit = tf_keras.layers.Dense(1, name="logit", dtype="float32")(
        tf_keras.layers.Concatenate(name="both")([*wide, hidden])
    )
    return tf_keras.Model(inputs, logit, name="wide_deep")


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``score``, float32 ``[batch]``: the probability of the positive class."""
    return probabilities(logits(model, inputs))


def logits(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the log-odds, float32 ``[batch, 1]``."""
    return model(inputs, training=False)


def _crossed(cross: str, spec: FeatureSpec) -> tuple[str, str]:
    known = [feature.name for feature in spec if isinstance(feature, kinds.Categorical | kinds.Bucketed)]
    # A name may have an asterisk, too.
    pairs = [(cross[:place], cross[place + 1 :]) for place, one in enumerate(cross) if one == "*"]
    if pair := next((pair for pair in pairs if set(pair) <= set(known)), None):
        return pair
    name = next(name for name in pairs[0] if name not in known)
    raise ModelSettingsError(
        f"model setting crosses has '{cross}', but '{name}' is not a feature of one id per row; use two of {known}"
    )
