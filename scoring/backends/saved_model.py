"""Backend for SavedModels of other origin: calls a named signature with tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.protocol import ELEMENTS, ArrayType, Signature, UnsupportedModelError, with_rank
from mirrorspark.scoring.backends.tensorflow_runtime import compute_threads, start_tensorflow

# TensorFlow's attribute for compiled functions (python/eager/polymorphic_function/attributes.py), which is not public.
_COMPILED = "_XlaMustCompile"


class SavedModelBackend:
    """A signature of a SavedModel."""

    def __init__(self, folder: Path, *, signature: str, threads: int | None = None) -> None:
        """Load the SavedModel; imports TensorFlow.

        Args:
            folder: Folder of ``saved_model.pb``.
            signature: Name of the signature to call.
            threads: Ignored: TensorFlow uses the threads of the process (:func:`limit_tensorflow`).

        Raises:
            UnsupportedModelError: There is no such signature.
            ModuleNotFoundError: TensorFlow is not installed here.
        """
        tf = start_tensorflow()
        self.threads = compute_threads(tf)
        # The signature does not keep its own variables and tables alive; the module does.
        self._module = tf.saved_model.load(str(folder))
        if signature not in self._module.signatures:
            raise UnsupportedModelError(
                f"{folder} has the signatures {sorted(self._module.signatures)} but not '{signature}'; name one of them"
            )
        self._call = self._module.signatures[signature]
        specs = self._call.structured_input_signature[1]
        self._to_tensor = tf.constant
        self._ranks = {name: spec.shape.rank for name, spec in specs.items()}
        self.signature = Signature(
            tuple(tensor_type(name, spec) for name, spec in specs.items()),
            tuple(tensor_type(name, spec) for name, spec in self._call.structured_outputs.items()),
            texts_are_bytes=True,
            compiles_each_shape=_is_compiled(self._call.graph),
        ).with_rows()

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs."""
        tensors = {name: self._to_tensor(with_rank(values, self._ranks[name])) for name, values in inputs.items()}
        given = self._call(**tensors)
        return {name: given[name].numpy() for name in outputs}


def _is_compiled(graph: Any) -> bool:
    """Return whether XLA compiles a function of a graph, which ``tf.function(..., jit_compile=True)`` made."""
    functions = graph.as_graph_def().library.function
    return any(function.attr[_COMPILED].b for function in functions if _COMPILED in function.attr)


def tensor_type(name: str, spec: Any) -> ArrayType:
    """Return the array type of a tensor, given any object with a ``dtype`` and a ``shape``."""
    # A shape of unknown rank is assumed to be one value per row; outputs are checked in each call.
    shape = (None,) if spec.shape.rank is None else tuple(spec.shape.as_list())
    return ArrayType(name, ELEMENTS.get(spec.dtype.name), shape, f"a tensor of {spec.dtype.name}")
