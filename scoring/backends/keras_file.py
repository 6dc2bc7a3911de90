"""Backends for files of tf-keras and of Keras 3: ``.keras`` and ``.h5``.

Such a file can hold Python code (``Lambda`` layers) or name any class of any module, which loading would run.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.libraries import library
from mirrorspark.scoring.backends.protocol import Signature, UnsupportedModelError, with_rank
from mirrorspark.scoring.backends.saved_model import side_effects, tensor_type
from mirrorspark.scoring.backends.tensorflow_runtime import compute_threads, start_tensorflow

# Functions of TensorFlow that layers of operations may call, by the modules that define them: the operations of graphs.
# Others that have a public name load libraries, fetch files, or load other models with the code in them.
_OPERATIONS = (
    "tensorflow.python.ops.",
    "tensorflow.python.framework.constant_op",
    "tensorflow.python.framework.sparse_tensor",
    "tensorflow.python.framework.tensor_conversion",
    "tf_keras.src.activations",
    "tf_keras.src.backend",
    "tf_keras.src.losses",
)
# Operations among these call Python, read or write files, or reach other processes.
_NOT_OF_NUMBERS = tuple(
    f"tensorflow.python.ops.{prefix}{module}"
    for prefix in ("", "gen_")
    for module in (
        *("checkpoint_ops", "data_flow_ops", "dataset_ops", "debug_ops", "decode_proto_ops", "encode_proto_ops"),
        *("experimental_dataset_ops", "functional_ops", "io_ops", "logging_ops", "lookup_ops", "proto_ops", "rpc_ops"),
        *("script_ops", "summary_ops"),
    )
)
# Settings of Keras' layers that may name a file, which is read when the layer is made.
_FILES_OF_LAYERS = ("vocabulary", "input_vocabulary", "vocabulary_file", "filepath", "file_path", "filename")
# Layers that hold code, or objects that their library pickles.
_CODE_OF_LAYERS = ("Lambda", "__lambda__", "FlaxLayer", "JaxLayer", "TorchModuleWrapper")
# The modules of Keras 3, within `keras` or `keras.src`, with all that a model is made of.
_PARTS_OF_MODELS = frozenset(
    {
        *("activations", "constraints", "dtype_policies", "initializers", "layers", "losses", "models", "ops"),
        *("quantizers", "random", "regularizers"),
    }
)
_FUNCTION_OF_LAYER = {
    "TFOpLambda": "function",
    "SlicingOpLambda": "function",
    "ClassMethod": "cls_symbol",
    "InstanceMethod": "cls_symbol",
}


class KerasBackend:
    """A tf-keras model, called as one graph; ``model.predict`` takes several times as long for a batch."""

    _module, _name = "tf_keras", "tf-keras"

    def __init__(self, path: Path, *, threads: int | None = None, trusted: bool = False) -> None:
        """Load the model; imports TensorFlow and Keras.

        Args:
            path: The file.
            threads: Ignored: TensorFlow uses the threads of the process
                (:func:`scoring.backends.tensorflow_runtime.limit_tensorflow`).
            trusted: Whether code in the file may run.

        Raises:
            UnsupportedModelError: The file is not a model of this Keras or is damaged, or holds code, reads or writes
                files and is not trusted, or the model has no inputs or keeps state between calls.
            ModuleNotFoundError: A library is not installed here.
        """
        tf = start_tensorflow()
        keras = library(self._module, f"the model {path.name} needs {self._name}")
        self.threads = compute_threads(tf)
        self._check_backend(keras, path)
        if not trusted and (code := self._code_in(path)) is not None:
            raise UnsupportedModelError(
                f"{path} holds {code}, which loading would run here with your rights; if you trust who made the file, "
                f"give trust=True to package_model, or export a SavedModel (model.export), which holds no Python code"
            )
        # Keras' own argument safe_mode has no effect on HDF5 files, unlike this scope.
        serialization = library(f"{self._module}.src.saving.serialization_lib", f"a Keras file needs {self._name}")
        try:
            with serialization.SafeModeScope(not trusted):
                model = keras.models.load_model(path, compile=False, safe_mode=not trusted)
        except MemoryError:
            raise
        except Exception as error:
            # Damaged files, and those with other classes and settings, fail in Keras in many ways.
            raise UnsupportedModelError(
                f"{path} cannot be read by {self._name} {keras.__version__} ({error}); of a later Keras, or with "
                f"classes of your own, export a SavedModel (model.export) and give that"
            ) from error
        if not getattr(model, "inputs", None):
            raise UnsupportedModelError(f"{path}: the model has no inputs yet; call it once before you save it")
        if self._is_stateful(model):
            raise UnsupportedModelError(
                f"{path}: the model keeps a state from call to call, so that scores would depend on the rows before "
                f"them; save it with stateful=False"
            )
        specs, results = self._specs(tf, model)
        self.signature = Signature(
            tuple(tensor_type(name, spec) for name, spec in specs.items()),
            tuple(tensor_type(name, spec) for name, spec in results.items()),
            texts_are_bytes=True,
        ).with_rows()
        self._ranks = [spec.shape.rank for spec in specs.values()]
        self._to_tensor = tf.constant

        def call(*tensors: object) -> dict[str, object]:
            given = model(self._packed(tf, model, tensors), training=False)
            return dict(zip(results, tf.nest.flatten(given), strict=True))

        self._call = tf.function(call, autograph=False).get_concrete_function(
            *(tf.TensorSpec(spec.shape, spec.dtype) for spec in specs.values())
        )
        # Last: operations may be reached in other ways than by the layers that are searched above.
        if not trusted and (found := side_effects(self._call.graph.as_graph_def())):
            raise UnsupportedModelError(
                f"{path} has the operations {', '.join(found)}, which call Python or read or write files when it "
                f"scores; if you trust who made the file, give trust=True to package_model"
            )
        self._model = model  # keeps its variables alive

    def _check_backend(self, keras: Any, path: Path) -> None:
        """Check Keras' own backend, of which tf-keras has one."""

    def _code_in(self, path: Path) -> str | None:
        return _code_in(path)

    def _is_stateful(self, model: Any) -> bool:
        return bool(model.stateful)

    def _specs(self, tf: Any, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the symbolic inputs and outputs by name, with TensorFlow's shapes and types."""
        inputs = dict(zip(model.input_names, model.inputs, strict=True))
        return inputs, dict(zip(model.output_names, model.outputs, strict=True))

    def _packed(self, tf: Any, model: Any, tensors: Sequence[object]) -> Any:
        """Return the inputs as the model takes them."""
        return list(tensors) if len(tensors) > 1 else tensors[0]

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs."""
        arrays = [inputs[array.name] for array in self.signature.inputs]
        given = self._call(*(self._to_tensor(with_rank(*pair)) for pair in zip(arrays, self._ranks, strict=True)))
        return {name: given[name].numpy() for name in outputs}


class Keras3Backend(KerasBackend):
    """A model of Keras 3, called likewise."""

    _module, _name = "keras", "Keras"

    def _check_backend(self, keras: Any, path: Path) -> None:
        if (backend := keras.backend.backend()) != "tensorflow":
            raise UnsupportedModelError(
                f"{path} is scored by Keras with TensorFlow, and its backend here is {backend}: unset KERAS_BACKEND"
            )

    def _code_in(self, path: Path) -> str | None:
        for node in _objects(_configuration(path)):
            module = node.get("module")
            parts = str(module or "keras").removeprefix("keras.src.").removeprefix("keras.").split(".")
            name = node.get("config") if node.get("class_name") == "function" else node.get("class_name")
            # Keras looks the name up after that of the module, so one with a dot leads into another module.
            if isinstance(module, str) and (parts[0] not in {"keras", *_PARTS_OF_MODELS} or "." in str(name)):
                return f"an object of {module}.{name}"
        return _code_in(path)

    def _is_stateful(self, model: Any) -> bool:
        return any(getattr(layer, "stateful", False) for layer in model._flatten_layers())

    def _specs(self, tf: Any, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        def specs(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, Any]:
            found = (
                tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in zip(names, tensors, strict=True)
            )
            return {spec.name: spec for spec in found}

        results = getattr(model, "output_names", None) or [model.layers[-1].name]
        return specs([one.name for one in model.inputs], model.inputs), specs(results, model.outputs)

    def _packed(self, tf: Any, model: Any, tensors: Sequence[object]) -> Any:
        structure = getattr(model, "_inputs_struct", None)
        if structure is None:
            return super()._packed(tf, model, tensors)
        return tf.nest.pack_sequence_as(structure, tensors)


def is_of_keras3(path: Path) -> bool:
    """Return True for a file that Keras 3 has saved; a damaged one counts as one of tf-keras."""
    try:
        if zipfile.is_zipfile(path) and str(path).endswith(".keras"):
            with zipfile.ZipFile(path) as archive:
                version = json.loads(archive.read("metadata.json"))["keras_version"]
        else:
            h5py = library("h5py", f"the model {path.name} needs h5py")
            with h5py.File(path, "r") as file:
                version = file.attrs["keras_version"]
        return int(str(version).partition(".")[0]) >= 3
    except MemoryError:
        raise
    except Exception:  # the backend says what is wrong with the file
        return False


def _code_in(path: Path) -> str | None:
    """Return a description of the first object in the file that would run Python code outside Keras, or None."""
    for node in _objects(_configuration(path)):
        name, module = node.get("class_name"), node.get("module")
        if name in _CODE_OF_LAYERS:
            return "a Lambda layer" if name == "__lambda__" else f"a {name} layer"
        if isinstance(module, str) and module.partition(".")[0] not in ("keras", "tf_keras"):
            return f"an object of {module}.{name}"
        if isinstance(name, str) and name in _FUNCTION_OF_LAYER:
            called = _config(node).get(_FUNCTION_OF_LAYER[name])
            if not _is_operation(called):
                return f"a call of {called}"
        if isinstance(name, str):
            for setting in _FILES_OF_LAYERS:
                if isinstance(file := _config(node).get(setting), str):
                    return f"a layer {name} that reads the file {file}"
    return None


def _config(node: Mapping[str, Any]) -> Mapping[str, Any]:
    found = node.get("config")
    return found if isinstance(found, Mapping) else {}


def _is_operation(symbol: object) -> bool:
    """Return whether a public name of TensorFlow belongs to an operation of graphs."""
    named = library("tensorflow.python.util.tf_export", "a Keras file needs TensorFlow").get_symbol_from_name
    module = getattr(named(symbol), "__module__", "") if isinstance(symbol, str) else ""
    return module.startswith(_OPERATIONS) and not module.startswith(_NOT_OF_NUMBERS)


def _configuration(path: Path) -> Any:
    """Return the description of the model's layers, without that of its loss and metrics, which are not loaded.

    Raises:
        UnsupportedModelError: The file has none.
    """
    try:
        # The rule of tf-keras: a file may be both, an HDF5 file with an archive at its end.
        if str(path).endswith(".keras") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                document = json.loads(archive.read("config.json"))
            return {key: value for key, value in document.items() if key != "compile_config"}
        h5py = library("h5py", f"the model {path.name} needs h5py")
        with h5py.File(path, "r") as file:
            return json.loads(file.attrs["model_config"])
    except MemoryError:
        raise
    except Exception as error:  # Damaged archives and HDF5 files fail in many ways.
        raise UnsupportedModelError(
            f"{path} holds no Keras model ({error}); save a whole model (model.save), not its weights alone"
        ) from error


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
        if isinstance(one, dict | list):
            waiting += one.values() if isinstance(one, dict) else one
