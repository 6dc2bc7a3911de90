"""Imports what a rank needs, and nothing else: whoever forks after this gets a rank that starts at once.

A fork copies one thread. So nothing here may start another one, and no TensorFlow operation may run: its runtime, which
starts threads and opens GPUs, begins with the first one.
"""

import tf_keras

import training.fitting.fit
import training.ranks.rank  # noqa: F401

# Keras loads these when they are first named.
LOADED = (tf_keras.Model, tf_keras.optimizers, tf_keras.losses, tf_keras.metrics, tf_keras.callbacks)
