"""TensorFlow Recommenders as ``tfrs``, for the modules that extend it; no other module imports it."""

import sys

import tensorflow as tf

try:
    import tensorflow_recommenders as tfrs
except tf.errors.NotFoundError:
    # It does without ScaNN where that is not installed, but not where it is built for another TensorFlow.
    for name in [name for name in sys.modules if name.startswith("tensorflow_recommenders")]:
        del sys.modules[name]
    sys.modules["scann"] = None  # type: ignore[assignment] # the import of a module that is None raises ImportError
    import tensorflow_recommenders as tfrs

__all__ = ["tfrs"]
