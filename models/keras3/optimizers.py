"""The configured optimizers as those of Keras 3."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mirrorspark.models.fitting import OptimizerSettings, schedule


def build_optimizer(settings: OptimizerSettings) -> Any:
    """Return the optimizer of Keras 3 with a schedule, as :func:`models.fitting.build_optimizer` does of tf-keras."""
    decay = {} if settings.weight_decay is None else {"weight_decay": settings.weight_decay}
    return _OPTIMIZERS[settings.name](learning_rate=_Schedule(settings), global_clipnorm=settings.clip_norm, **decay)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, settings: OptimizerSettings) -> None:
        super().__init__()
        self._rate = schedule(settings)

    def __call__(self, step: Any) -> tf.Tensor:
        return self._rate(tf.convert_to_tensor(step))

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._rate.get_config()
        return config


class _FusedSteps:
    """Updates a weight by Adam in one kernel, as the optimizers of tf-keras do here."""

    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable; a sparse gradient names no row twice."""
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
            return
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.scatter_nd(gradient.indices[:, tf.newaxis], gradient.values, variable.shape)
        number, dtype = self._get_variable_index(variable), variable.dtype
        step = tf.cast(self.iterations.value + 1, dtype)
        betas = [tf.cast(beta, dtype) for beta in (self.beta_1, self.beta_2)]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[number].value.handle,
            v=self._velocities[number].value.handle,
            beta1_power=tf.pow(betas[0], step),
            beta2_power=tf.pow(betas[1], step),
            lr=tf.cast(learning_rate, dtype),
            beta1=betas[0],
            beta2=betas[1],
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


class Adam(_FusedSteps, keras.optimizers.Adam):
    """Keras's Adam, in one kernel."""


class AdamW(_FusedSteps, keras.optimizers.AdamW):
    """Keras's AdamW, in one kernel after the decay."""


_OPTIMIZERS: Mapping[str, type] = {
    "adam": Adam,
    "adagrad": keras.optimizers.Adagrad,
    "adamw": AdamW,
    "lazy_adam": Adam,
    "lion": keras.optimizers.Lion,
    "sgd": keras.optimizers.SGD,
}
