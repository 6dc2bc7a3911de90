"""Regression: the network of :mod:`models.multi_field` with one output, a number in the label's own unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models import multi_field
from mirrorspark.models.settings import ModelSettingsError

if TYPE_CHECKING:  # the driver checks settings without loading TensorFlow
    import tensorflow as tf
    import tf_keras

TASK = "regression"

Loss = Literal["squared", "absolute", "poisson"]


@dataclass(frozen=True)
class Settings(multi_field.Settings):
    """Settings of the architecture: those of :class:`models.multi_field.Settings`, and the loss.

    Attributes:
        loss: ``squared`` error, for the mean; ``absolute`` error, for the median, which large errors sway less; or
            ``poisson`` deviance, for counts and other amounts from 0 on, whose mean is then the exponential of the
            network's output.
    """

    loss: str = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in get_args(Loss):
            raise ModelSettingsError(f"model setting loss is '{self.loss}'; use one of {list(get_args(Loss))}")


def build(settings: Settings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
    """Return a model from the spec's features to the expected number: float32 ``[batch, 1]``.

    The network learns a label of mean 0 and standard deviation 1 over the training rows; its last layer scales back.

    Raises:
        ModelSettingsError: The loss needs labels from 0 on, and the training rows have one below.
    """
    import tensorflow as tf
    import tf_keras

    inputs, hidden = multi_field.hidden(settings, fitted, seed)
    output = tf_keras.layers.Dense(1, name="standardised", dtype="float32")(hidden)
    statistics = fitted.statistics[fitted.spec.label.name]
    spread = statistics.standard_deviation or 1.0
    if settings.loss == "poisson":
        if statistics.minimum < 0 or statistics.mean <= 0:
            raise ModelSettingsError(
                f"model setting loss is 'poisson', but label '{fitted.spec.label.name}' has values from "
                f"{statistics.minimum:g} on; use squared or absolute"
            )
        output = tf_keras.layers.Activation(tf.exp, name="rate", dtype="float32")(output)
        output = tf_keras.layers.Rescaling(statistics.mean, name="number", dtype="float32")(output)
    else:
        output = tf_keras.layers.Rescaling(spread, statistics.mean, name="number", dtype="float32")(output)
    model = tf_keras.Model(inputs, output, name="regression")
    # Read by `models.objectives`: gradients are then of the same size whatever the label's unit.
    model.regression_loss, model.label_scale = settings.loss, statistics.mean if settings.loss == "poisson" else spread
    return model


def predict(model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
    """Return ``score``, float32 ``[batch]``: the number in the label's own unit."""
    return {"score": model(inputs, training=False)[:, 0]}
