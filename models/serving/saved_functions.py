"""Functions of a model as signatures of a SavedModel, with the parts of the model that they need."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from mirrorspark.data_pipelines.features import plain_name
from mirrorspark.models import keras3
from mirrorspark.storage import abilities, atomic_file

# The key of a checkpoint's variable names.
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def state(model: Any) -> list[Any]:
    """Return the parts of ``model`` that a SavedModel needs: variables, tables and files.

    The model itself is left out: Keras would add unused functions for every layer, which take several times as long to
    trace, write and load as everything else.
    """
    kinds = (tf.Variable, tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
    found = [one for one in tf.train.TrackableView(model).descendants() if isinstance(one, kinds)]
    # Those within Keras 3's own variables are not descendants.
    return found + (keras3.tf_variables(model.weights) if keras3.is_keras3(model) else [])


def concrete(function: Callable[[Mapping[str, tf.Tensor]], Any], specs: Mapping[str, tf.TensorSpec]) -> Any:
    """Return ``function`` as a concrete function whose inputs have the names of ``specs``, as plain names."""
    # Keyword arguments become the names of the signature's inputs, which TensorFlow would change without a word.
    names = {plain_name(name): name for name in specs}
    of_graph = {plain: tf.TensorSpec(specs[name].shape, specs[name].dtype, plain) for plain, name in names.items()}

    def called(**inputs: tf.Tensor) -> Any:
        return function({names[plain]: tensor for plain, tensor in inputs.items()})

    return tf.function(called, autograph=False).get_concrete_function(**of_graph)


def save_functions(module: tf.Module, signatures: Mapping[str, Any], folder: Path) -> None:
    """Write concrete functions by name, and the parts of ``module`` that they need, as a SavedModel."""
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    if abilities.can_rename(folder):
        tf.saved_model.save(module, str(folder), signatures=signatures, options=options)
        return
    # TensorFlow renames what it has written.
    if folder.exists():
        shutil.rmtree(folder)
    with atomic_file.new_folder(folder) as whole:
        tf.saved_model.save(module, str(whole), signatures=signatures, options=options)


def saved_variables(saved_model: Path) -> tuple[Any, list[tuple[str, str]]]:
    """Return the reader of the variables of a SavedModel, and the name and the key of each, without loading the graph.

    Raises:
        ValueError: The variables cannot be read.
        tf.errors.OpError: As above.
    """
    files = saved_model / tf.saved_model.VARIABLES_DIRECTORY / tf.saved_model.VARIABLES_FILENAME
    reader = tf.train.load_checkpoint(str(files))
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(reader.get_tensor(_OBJECT_GRAPH))
    return reader, [(one.full_name, one.checkpoint_key) for node in graph.nodes for one in node.attributes]
