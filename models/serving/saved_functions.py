"""Functions of a model as signatures of a SavedModel, with the parts of the model that they need."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


def state(model: Any) -> list[Any]:
    """Return the parts of ``model`` that a SavedModel needs: variables, tables and files.

    The model itself is left out: Keras would add unused functions for every layer, which take several times as long to
    trace, write and load as everything else.
    """
    kinds = (tf.Variable, tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
    return [one for one in tf.train.TrackableView(model).descendants() if isinstance(one, kinds)]


def concrete(function: Callable[[Mapping[str, tf.Tensor]], Any], specs: Mapping[str, tf.TensorSpec]) -> Any:
    """Return ``function`` as a concrete function whose inputs have the names of ``specs``."""
    # Keyword arguments become the names of the signature's inputs.
    return tf.function(lambda **inputs: function(inputs), autograph=False).get_concrete_function(**specs)


def save_functions(module: tf.Module, signatures: Mapping[str, Any], folder: Path) -> None:
    """Write concrete functions by name, and the parts of ``module`` that they need, as a SavedModel."""
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(folder), signatures=signatures, options=options)
