"""The imports of a worker, made ahead in the fork server so that a fork starts at once.

A fork copies one thread. So no import here may start another one, and no TensorFlow operation may run: the first one
would start TensorFlow's runtime, with its threads and GPUs.
"""

import importlib

import tf_keras

# The module that the process runs, the usual entry of a plan, and the kernel for sparse gradients. Imported by name, as
# from plans: workers do not depend on an entry.
for module in (
    "mirrorspark.training.executor.worker",
    "mirrorspark.training.programs.keras_fit.fit",
    "mirrorspark.training.protocol.ring.row_sums",
):
    importlib.import_module(module)

# Keras loads these on first use.
LOADED = (tf_keras.Model, tf_keras.optimizers, tf_keras.losses, tf_keras.metrics, tf_keras.callbacks)
