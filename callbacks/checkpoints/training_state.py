"""The state of a training for a checkpoint: the model, its optimizer, and random generators with a state."""

from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras

from mirrorspark.callbacks.collectives import gather_over_ranks, local_replicas
from mirrorspark.models import keras3


class Stateful(Protocol):
    """A callback whose decisions depend on earlier epochs.

    A state is plain JSON. Its key ``epoch``, if there is one, is the number of completed epochs that it covers.
    `ChiefCheckpoint` refuses a state that lags behind the epoch being saved.
    """

    def get_state(self) -> dict[str, Any]:
        """Return the state, as plain JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore ``state``."""


def tensors(model: tf_keras.Model, optimizer: Any) -> tf.train.Checkpoint:
    """Return the TensorFlow checkpoint object over all variables that a resumed training needs.

    Missing slot variables of the optimizer are created, because a checkpoint can only restore existing variables.
    Random layers (dropout) are included if built with ``rng_type="stateful"``; by default their state is inside
    TensorFlow's kernels, where it cannot be saved.

    Under a strategy of several workers, values that each worker keeps for itself (the moving averages of batch
    normalisation) are saved as the mean. All workers resume from it: the mean they would have reached, up to rounding.
    """
    with model.distribute_strategy.scope():
        if not hasattr(optimizer, "build"):
            optimizer._create_all_weights(model.trainable_variables)  # tf_keras.optimizers.legacy
        elif not getattr(optimizer, "built", False):
            optimizer.build(model.trainable_variables)
    parts: dict[str, Any] = {"averages": found} if (found := averages(optimizer)) else {}
    if keras3.is_keras3(model):
        return tf.train.Checkpoint(model=of_model(model), optimizer=keras3.tf_variables(optimizer.variables), **parts)
    return tf.train.Checkpoint(model=model, optimizer=optimizer, random=_random_generators(model), **parts)


def averages(optimizer: Any) -> list[Any]:
    """Return the moving averages of the weights that an optimizer with ``use_ema`` keeps; nothing for another one."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # loss scaling wraps it
    return keras3.tf_variables(inner._model_variables_moving_average) if getattr(inner, "use_ema", False) else []


def of_model(model: Any) -> Any:
    """Return the part of a checkpoint that holds the model: itself, or the variables of one of Keras 3 in their order.

    Those include the seeds of its random layers.
    """
    return keras3.tf_variables(model.variables) if keras3.is_keras3(model) else model


def settle(model: tf_keras.Model) -> None:
    """Synchronise what the workers of ``model`` have computed on their own; every worker has to call this.

    That is what an optimizer with local updates (`training.programs.keras_fit.local_updates`) has a method ``settle``
    for, and in Keras 3 the moving averages of normalisation, which tf-keras' strategies average by themselves.
    """
    if keras3.is_keras3(model):
        _average(model)
        return
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # loss scaling wraps it
    if hasattr(optimizer, "settle"):
        optimizer.settle()


def _average(model: Any) -> None:
    """Set the variables that every worker computes from its own rows to their means over the workers."""
    strategy, variables = model.distribute_strategy, keras3.averaged_variables(model)
    local = local_replicas(strategy)
    if not variables or strategy.num_replicas_in_sync == local:
        return
    own = np.concatenate([np.ravel(variable.numpy()) for variable in variables]).astype(np.float64)
    means = gather_over_ranks(strategy, np.repeat(own[None], local, axis=0)).mean(axis=0)
    parts = np.split(means, np.cumsum([variable.shape.num_elements() for variable in variables])[:-1])
    for variable, mean in zip(variables, parts, strict=True):
        variable.assign(mean.reshape(variable.shape).astype(variable.dtype.as_numpy_dtype))


def _random_generators(model: tf_keras.Model) -> list[tf.random.Generator]:
    # Keras excludes these from its own checkpoints, for compatibility with older ones.
    layers = (layer for layer in model._flatten_layers() if hasattr(layer, "_random_generator"))
    generators = (getattr(layer._random_generator, "_generator", None) for layer in layers)
    return [generator for generator in generators if isinstance(generator, tf.random.Generator)]
