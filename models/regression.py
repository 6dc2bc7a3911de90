"""Regression: the network of :mod:`models.multi_field` with a number, or several quantiles, in the label's own unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models import multi_field
from mirrorspark.models.settings import ModelSettingsError

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "regression"

check_features = multi_field.check_features

Loss = Literal["squared", "absolute", "poisson", "tweedie", "quantile"]
# Their mean is the exponential of the network's output.
_LOG_LINKED = ("poisson", "tweedie")


@dataclass(frozen=True)
class Settings(multi_field.Settings):
    """Settings of the architecture: those of :class:`models.multi_field.Settings`, and the loss.

    Attributes:
        loss: ``squared`` error, for the mean; ``absolute`` error, for the median, which large errors sway less;
            ``poisson`` deviance, for counts and other amounts from 0 on; ``tweedie`` deviance, for amounts of which
            many are 0, such as claims; ``quantile``, for an interval around the middle one of ``quantiles``.
        tweedie_power: Power of the mean that the variance follows, between 1 (counts) and 2 (amounts above 0).
        quantiles: An odd number of shares, ascending: each output is above this share of the labels.
    """

    loss: str = "squared"
    tweedie_power: float = 1.5
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in get_args(Loss):
            raise ModelSettingsError(f"model setting loss is '{self.loss}'; use one of {list(get_args(Loss))}")
        if not 1 < self.tweedie_power < 2:
            raise ModelSettingsError(
                f"model setting tweedie_power is {self.tweedie_power}; use a number between 1 and 2, or loss poisson"
            )
        ascending = sorted({0.0, *self.quantiles, 1.0})
        if len(self.quantiles) % 2 == 0 or ascending != [0.0, *self.quantiles, 1.0]:
            raise ModelSettingsError(
                f"model setting quantiles is {list(self.quantiles)}; use an odd number of ascending shares between 0 "
                f"and 1, such as [0.1, 0.5, 0.9]: the middle one becomes the score"
            )


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to the expected number: float32 ``[batch, 1]``, or all quantiles.

    The network learns a label of mean 0 and standard deviation 1 over the training rows; its last layer scales back.
    Quantiles never cross: each is the one below it and what a softplus adds.

    Raises:
        ModelSettingsError: The loss needs labels from 0 on, and the training rows have one below.
    """
    import tensorflow as tf
    import tf_keras

    from mirrorspark.models.fitting import ScaledLoss

    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    quantiles = settings.quantiles if settings.loss == "quantile" else ()
    output = multi_field.heads(settings, len(quantiles) or 1, "standardised")(hidden)
    output = multi_field.with_linear(settings, fitted, inputs, output)
    statistics = fitted.statistics[fitted.spec.label.name]
    scale = statistics.standard_deviation or 1.0
    if settings.loss in _LOG_LINKED:
        if statistics.minimum < 0 or statistics.mean <= 0:
            raise ModelSettingsError(
                f"model setting loss is '{settings.loss}', but label '{fitted.spec.label.name}' has values from "
                f"{statistics.minimum:g} on; use squared or absolute"
            )
        output = tf_keras.layers.Activation(tf.exp, name="rate", dtype="float32")(output)
        scale = statistics.mean
        output = tf_keras.layers.Rescaling(scale, name="number", dtype="float32")(output)
    else:
        if quantiles:
            output = tf_keras.layers.Activation(_ascending, name="ascending", dtype="float32")(output)
        output = tf_keras.layers.Rescaling(scale, statistics.mean, name="number", dtype="float32")(output)
    model = multi_field.model_of(settings, inputs, output, "regression")
    # Read by `models.fitting.objectives`: gradients are then of the same size whatever the label's unit.
    model.has_quantiles = len(quantiles) > 1  # A single one is the score.
    model.regression_loss = ScaledLoss(settings.loss, scale, settings.tweedie_power, quantiles)
    return model


def _ascending(outputs: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    return tf.cumsum(tf.concat([outputs[..., :1], tf.nn.softplus(outputs[..., 1:])], axis=-1), axis=-1)


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``score``, float32 ``[batch]``: the number in the label's own unit.

    A model of several quantiles has them all in ``quantiles``, float32 ``[batch, quantiles]``, and the middle one as
    ``score``.
    """
    from mirrorspark.models.layers import is_ensemble, mean_numbers

    numbers = model(inputs, training=False)
    if is_ensemble(model):
        numbers = mean_numbers(numbers)
    count = numbers.shape[1]
    return {"score": numbers[:, count // 2]} | ({"quantiles": numbers} if count > 1 else {})
