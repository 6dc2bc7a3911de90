"""Compiles the arithmetic of a Keras model with XLA, and leaves the rest of its training step as it is."""

from typing import Any

import tensorflow as tf
import tf_keras

from models.recurrent import LastState


def compile_with_xla(model: tf_keras.Model) -> None:
    """Let XLA compile forward and backward pass of ``model``, or of its towers.

    ``model.compile(jit_compile=True)`` would compile the whole step, sums over the workers included; those are not
    XLA's on CPU.
    """
    for part in model.submodules:
        if isinstance(part, LastState):
            part.is_for_xla = True
    functional = [part for part in (model, *model.submodules) if _is_functional(part)]
    outermost = [part for part in functional if not any(part in other.submodules for other in functional)]
    for part in outermost:
        part.call = tf.function(part.call, jit_compile=True, reduce_retracing=True)


def _is_functional(part: Any) -> bool:
    return isinstance(part, tf_keras.Model) and bool(getattr(part, "_is_graph_network", False))
