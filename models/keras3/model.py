"""A model of Keras 3 as callbacks, checkpoints and exports see it. This module does not import Keras."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mirrorspark.models.code_digests import used_packages
from mirrorspark.models.settings import ModelSettingsError

# With the libraries of models that extend them.
_KERAS_3 = ("keras", "keras_rs")
_TF_KERAS = ("tf_keras", "tensorflow_recommenders")


def is_keras3(value: Any) -> bool:
    """Return True for an object whose class is one of Keras 3, or extends one."""
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(value).__mro__)


def is_code_of_keras3(code: Any) -> bool:
    """Return True for a function or class whose own code uses Keras 3 and no tf-keras.

    Code that uses both, or gets its model from an installed package, shows its Keras only when it runs.
    """
    used = used_packages(code)
    return not used.isdisjoint(_KERAS_3) and used.isdisjoint(_TF_KERAS)


def require_tensorflow(name: str) -> None:
    """Check the backend of Keras 3, which is chosen for a process when Keras is imported.

    Raises:
        ModelSettingsError: It is not TensorFlow.
    """
    backend = sys.modules["keras"].backend.backend()
    if backend != "tensorflow":
        raise ModelSettingsError(
            f"{name} is a model of Keras 3 with the backend {backend}; the workers train with TensorFlow's: unset "
            f"KERAS_BACKEND there, and write the model with keras.ops or TensorFlow"
        )


def tf_variables(variables: Iterable[Any]) -> list[Any]:
    """Return the variables of TensorFlow within those of Keras 3; any others unchanged."""
    return [variable.value if is_keras3(variable) else variable for variable in variables]


def averaged_variables(model: Any) -> list[Any]:
    """Return the variables that every worker computes from its own rows, such as moving averages."""
    trained = [layer for layer in model._flatten_layers() if layer.trainable]  # a frozen layer keeps its variables
    own = {id(variable): variable for layer in trained for variable in layer._non_trainable_variables}
    return [variable for variable in tf_variables(own.values()) if variable.dtype.is_floating]


def named_inputs(model: Any) -> dict[str, Any]:
    """Return the symbolic inputs of a graph of layers by name; nothing for a class of the user's own."""
    given = getattr(model, "_inputs_struct", None)
    if isinstance(given, Mapping):
        return dict(given)
    return {one.name: one for one in getattr(model, "inputs", None) or ()}


def inputs_of(model: Any, features: Any) -> Any:
    """Return those of the named ``features`` that a graph of layers takes: others would put them into a wrong order."""
    wanted = named_inputs(model)
    is_choice = isinstance(features, Mapping) and wanted and set(wanted) <= set(features)
    return {name: features[name] for name in wanted} if is_choice else features


def continue_at(model: Any, epoch: int, step: int) -> None:
    """Make the ``fit`` that has just begun continue at a step of an epoch, both from 0; 0 and 0 change nothing."""
    model._initial_epoch = epoch  # as Keras' own BackupAndRestore does
    if hasattr(model, "_initial_step"):  # in our loop
        model._initial_step = step
    elif step:
        _begin_epoch_at(step)


def _begin_epoch_at(step: int) -> None:
    """Make the next epoch of Keras' own ``fit`` leave out the first executions that its iterator counts."""
    iterator: Any = sys.modules["keras.src.backend.tensorflow.trainer"].TFEpochIterator

    def rest(epochs: Any) -> Iterator[Any]:
        del iterator._enumerate_iterator  # the epoch after it begins at its beginning
        return itertools.dropwhile(lambda execution: execution[1] < step, epochs._enumerate_iterator())

    iterator._enumerate_iterator = rest
