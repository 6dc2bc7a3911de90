"""Multi-field model: a feed-forward network on the averaged embedding of each field and the numbers.

Source: TalkingData's propensity model, after Covington et al. 2016 and Cheng et al. 2016 ("Wide & Deep Learning").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mirrorspark.data_pipelines.features import FeatureSpec, FittedFeatures, kinds
from mirrorspark.models.settings import ModelSettingsError, check_fraction, check_positive

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "binary"

# Layers of the linear model of the sparse features, whose weights have a column for every output.
LINEAR = "linear_"

NumericEmbedding = Literal["none", "piecewise", "periodic"]


@dataclass(frozen=True)
class Settings:
    """Settings of the architecture.

    Attributes:
        embedding_dim: Width of every field's embedding.
        hidden_units: Width of each hidden layer.
        dropout: Share of hidden units dropped while training.
        numeric_embedding: The embedding of a number, next to the number itself: ``none``; ``piecewise``, linear between
            the quantiles of the training rows; or ``periodic``, sines and cosines of learnt frequencies.
        numeric_dim: Width of a number's embedding.
        periodic_scale: Standard deviation of the frequencies at the start, in waves per standard deviation of the
            number.
        cross_layers: Layers that multiply the features with each other before the first hidden layer.
        cross_rank: Width inside of such a layer.
        factor_dim: Width of the vectors whose products, over all pairs of features but vectors, the heads read next to
            the last hidden layer. 0 turns it off. Useful for ratings, where the user-item interaction dominates.
        linear: Add a linear model of the sparse features to the heads' outputs, which memorises what the network
            generalises. Source: the wide part of Cheng et al. 2016.
        members: Networks of an ensemble. They share the weights of their hidden layers up to a scale per unit; each has
            its own loss and heads. The prediction is the mean of their probabilities.
        plain_members: The members that read the numbers without their embedding, through hidden layers of
            their own. Smooth functions of many numbers are learnt better by them, thresholds by the others.
        plain_units: Width of each of these hidden layers.
    """

    embedding_dim: int = 8
    hidden_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    numeric_embedding: str = "none"
    numeric_dim: int = 8
    periodic_frequencies: int = 16
    periodic_scale: float = 0.1
    cross_layers: int = 0
    cross_rank: int = 32
    factor_dim: int = 0
    linear: bool = False
    members: int = 1
    plain_members: int = 0
    plain_units: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        check_positive("embedding_dim", self.embedding_dim)
        for name in ("hidden_units", "plain_units"):
            for units in getattr(self, name):
                check_positive(name, units)
        check_fraction("dropout", self.dropout)
        if self.numeric_embedding not in get_args(NumericEmbedding):
            raise ModelSettingsError(
                f"model setting numeric_embedding is '{self.numeric_embedding}'; use one of "
                f"{list(get_args(NumericEmbedding))}"
            )
        for name in ("numeric_dim", "periodic_frequencies", "cross_rank", "members"):
            check_positive(name, getattr(self, name))
        if not self.periodic_scale > 0:  # also not a number
            raise ModelSettingsError(f"model setting periodic_scale is {self.periodic_scale}; use a number above 0")
        for name in ("cross_layers", "factor_dim"):
            if getattr(self, name) < 0:
                raise ModelSettingsError(f"model setting {name} is {getattr(self, name)}; use a whole number from 0 on")
        if self.members > 1 and not self.hidden_units:
            raise ModelSettingsError(
                f"model setting members is {self.members}, but there are no hidden layers to share; set hidden_units"
            )
        if self.plain_members and not 2 <= self.plain_members <= self.members - 2:
            raise ModelSettingsError(
                f"model setting plain_members is {self.plain_members}, of {self.members} members; use two at least, "
                f"leave two others, or set it to 0"
            )
        if self.plain_members and (self.numeric_embedding == "none" or not self.plain_units):
            raise ModelSettingsError(
                f"model setting plain_members is {self.plain_members}; it needs a numeric_embedding and plain_units"
            )


def check_features(settings: Settings, spec: FeatureSpec) -> None:
    """Raise ``ModelSettingsError`` where a linear model of the sparse features is asked for, and there are none."""
    if settings.linear and not any(isinstance(feature, kinds.Sparse) for feature in spec.features):
        raise ModelSettingsError("model setting linear is true, but there is no sparse feature; leave it out")


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to one logit: float32 ``[batch, 1]``, the shape for Keras's metrics.

    An ensemble has one per member, ``[batch, members, 1]``.
    """
    inputs, last = hidden(settings, fitted, seed)
    outputs = with_linear(settings, fitted, inputs, heads(settings, 1, "logit")(last))
    return model_of(settings, inputs, outputs, "multi_field")


def hidden(settings: Settings, fitted: FittedFeatures, seed: int) -> "tuple[dict[str, tf.Tensor], tf.Tensor]":
    """Return the symbolic inputs, and the inputs of the heads, ``[batch, units]``: the last hidden layer, and factors.

    An ensemble's is ``[batch, members, units]``.
    """
    from mirrorspark.models.layers import tabular
    from mirrorspark.models.layers.input import concatenated, concatenated_inputs, dense_stack, symbolic_inputs

    inputs = symbolic_inputs(fitted.spec.features, any_length=True)
    joined = concatenated_inputs(fitted, fitted.spec.features, inputs, settings.embedding_dim)
    numbers = [feature for feature in fitted.spec.features if isinstance(feature, kinds.Numeric)]
    plain = joined
    if numbers and settings.numeric_embedding != "none":
        joined = concatenated([joined, _embedded_numbers(settings, fitted, numbers, inputs)], "embedded_features")
    last = joined
    for number in range(settings.cross_layers):
        last = tabular.LowRankCross(settings.cross_rank, name=f"cross_{number}")([joined, last])
    of_plain = settings.plain_members if numbers else 0
    last = dense_stack(last, settings.hidden_units, settings.dropout, seed, settings.members - of_plain)
    if of_plain:
        layers = dense_stack(plain, settings.plain_units, settings.dropout, seed + 1_000, of_plain, prefix="plain_")
        last = tabular.JoinedMembers(name="all_members")([last, layers])
    if settings.factor_dim:
        last = concatenated([last, _factor_products(settings, fitted, inputs)], "hidden_and_factors")
    return inputs, last


def _factor_products(settings: Settings, fitted: FittedFeatures, inputs: "Mapping[str, tf.Tensor]") -> "tf.Tensor":
    from mirrorspark.models.layers import tabular
    from mirrorspark.models.layers.input import FieldEmbeddings, concatenated, embedded_sparse, lay_out_fields

    features, width = fitted.spec.features, settings.members * settings.factor_dim
    fields, rows = lay_out_fields(fitted, features)
    parts = []
    if fields:
        parts.append(FieldEmbeddings(fields, rows, width, name="factors")({of.name: inputs[of.name] for of in fields}))
    parts += embedded_sparse(features, inputs, width, "factors_")
    numbers = [inputs[feature.name][:, None] for feature in features if feature.form == "value"]
    if numbers:
        parts.append(tabular.NumberFactors(width, name="number_factors")(concatenated(numbers, "factor_numbers")))
    return tabular.FactorProducts(settings.factor_dim, settings.members, name="factor_products")(
        concatenated(parts, "all_factors")
    )


def _embedded_numbers(
    settings: Settings, fitted: FittedFeatures, numbers: "Sequence[kinds.Numeric]", inputs: "Mapping[str, tf.Tensor]"
) -> "tf.Tensor":
    from mirrorspark.models.layers import tabular
    from mirrorspark.models.layers.input import concatenated

    given = concatenated([inputs[feature.name][:, None] for feature in numbers], "numbers")
    if settings.numeric_embedding == "piecewise":
        edges = [tabular.bin_edges(fitted, feature) for feature in numbers]
        return tabular.PiecewiseLinear(edges, settings.numeric_dim, name="embedded_numbers")(given)
    return tabular.Periodic(
        settings.numeric_dim, settings.periodic_frequencies, settings.periodic_scale, name="embedded_numbers"
    )(given)


def heads(settings: Settings, outputs: int, name: str) -> "tf_keras.layers.Layer":
    """Return the linear layer after the last hidden one, with ``outputs`` per row, or per row and member."""
    import tf_keras

    from mirrorspark.models.layers import tabular

    kind = tabular.MemberHeads if settings.members > 1 else tf_keras.layers.Dense
    return kind(outputs, name=name, dtype="float32")


def with_linear(
    settings: Settings, fitted: FittedFeatures, inputs: "Mapping[str, tf.Tensor]", outputs: "tf.Tensor"
) -> "tf.Tensor":
    """Return the heads' outputs, plus a linear model of the sparse features if configured; members share it."""
    from mirrorspark.models.layers.input import embedded_sparse

    if not settings.linear:
        return outputs
    for part in embedded_sparse(fitted.spec.features, inputs, outputs.shape[-1], LINEAR, from_zero=True):
        outputs = outputs + (part[:, None] if settings.members > 1 else part)
    return outputs


def model_of(
    settings: Settings, inputs: "Mapping[str, tf.Tensor]", outputs: "tf.Tensor", name: str
) -> "tf_keras.Model":
    """Return the Keras model, which knows its number of members: loss, metrics and prediction depend on it."""
    import tf_keras

    model = tf_keras.Model(inputs, outputs, name=name)
    model.members = settings.members
    return model


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``score``, float32 ``[batch]``: the probability of the positive class."""
    return probabilities(logits(model, inputs))


def logits(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> "tf.Tensor":
    """Return the log-odds, float32 ``[batch, 1]``; an ensemble's are those of the members' mean probability."""
    from mirrorspark.models.layers import is_ensemble, mean_log_odds

    outputs = model(inputs, training=False)
    return mean_log_odds(outputs) if is_ensemble(model) else outputs


def probabilities(log_odds: "tf.Tensor") -> dict[str, "tf.Tensor"]:
    """Return ``score``, ``[batch]``, of log-odds ``[batch, 1]``."""
    import tensorflow as tf

    return {"score": tf.sigmoid(log_odds[:, 0])}
