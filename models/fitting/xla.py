"""XLA compilation of a Keras model's arithmetic, without the rest of its training step."""

from typing import Any

import tensorflow as tf
import tf_keras

from mirrorspark.models.layers import CausalStates, recurrent


def compile_with_xla(model: tf_keras.Model) -> None:
    """Compile forward and backward pass of ``model``, or of its towers, with XLA.

    ``model.compile(jit_compile=True)`` would compile the whole step including the sums over the workers, which XLA does
    not support on CPU.
    """
    for part in model.submodules:
        if isinstance(part, recurrent.LastState | CausalStates):
            part.is_for_xla = True
    functional = [part for part in (model, *model.submodules) if _is_functional(part)]
    outermost = [part for part in functional if not any(part in other.submodules for other in functional)]
    for part in outermost:
        part.call = tf.function(part.call, jit_compile=True, reduce_retracing=True)


def _is_functional(part: Any) -> bool:
    return isinstance(part, tf_keras.Model) and bool(getattr(part, "_is_graph_network", False))
