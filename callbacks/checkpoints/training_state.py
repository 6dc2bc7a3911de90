"""The state of a training for a checkpoint: the model, its optimizer, and random generators with a state."""

from typing import Any, Protocol

import tensorflow as tf
import tf_keras


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
        if hasattr(optimizer, "build"):
            optimizer.build(model.trainable_variables)
        else:
            optimizer._create_all_weights(model.trainable_variables)  # tf_keras.optimizers.legacy
    return tf.train.Checkpoint(model=model, optimizer=optimizer, random=_random_generators(model))


def settle(model: tf_keras.Model) -> None:
    """Synchronise the workers of ``model`` if its optimizer makes local updates; every worker has to call this.

    An optimizer with local updates (`training.programs.keras_fit.local_updates`) has a method ``settle``; for others
    this does nothing.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # loss scaling wraps it
    if hasattr(optimizer, "settle"):
        optimizer.settle()


def _random_generators(model: tf_keras.Model) -> list[tf.random.Generator]:
    # Keras excludes these from its own checkpoints, for compatibility with older ones.
    layers = (layer for layer in model._flatten_layers() if hasattr(layer, "_random_generator"))
    generators = (getattr(layer._random_generator, "_generator", None) for layer in layers)
    return [generator for generator in generators if isinstance(generator, tf.random.Generator)]
