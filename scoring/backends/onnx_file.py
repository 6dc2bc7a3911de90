"""Backend for ONNX models, computed by ONNX Runtime on the CPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.libraries import library
from mirrorspark.scoring.backends.protocol import ArrayType, Signature, UnsupportedModelError, thread_count, with_rank

# Spark's names by ONNX Runtime's names of types (NodeArg.type).
_ELEMENTS = {
    "tensor(bool)": "boolean",
    "tensor(int32)": "int",
    "tensor(int64)": "bigint",
    "tensor(float)": "float",
    "tensor(double)": "double",
    "tensor(string)": "string",
    "tensor(uint8)": "uint8",
}


class OnnxBackend:
    """A session of ONNX Runtime, created when the model is loaded."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the model; imports ONNX Runtime.

        Args:
            path: The file.
            threads: Threads of the session; None means one per core.

        Raises:
            UnsupportedModelError: ONNX Runtime cannot load it.
            ModuleNotFoundError: ONNX Runtime is not installed here.
        """
        runtime = library("onnxruntime", f"the model {path.name} needs ONNX Runtime")
        options = runtime.SessionOptions()
        # By default every Python worker of a node would start a thread per core of the node.
        options.intra_op_num_threads = self.threads = thread_count(threads)
        options.inter_op_num_threads = 1
        # Waiting threads that spin would take cores from other tasks of the machine.
        # https://onnxruntime.ai/docs/performance/tune-performance/threading.html
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            given, made = self._session.get_inputs(), self._session.get_outputs()
        except _load_errors(runtime) as error:
            raise UnsupportedModelError(
                f"ONNX Runtime {runtime.__version__} cannot load {path} ({error}); a model whose weights are stored in "
                f"files of their own has to be saved as one (onnx.save_model(..., save_as_external_data=False))"
            ) from error
        self._ranks = {array.name: len(array.shape) for array in given}
        self.signature = Signature(
            tuple(_array_type(array) for array in given),
            # Classifiers of scikit-learn may also output maps of probabilities, which no column can hold.
            tuple(_array_type(array) for array in made if array.type in _ELEMENTS),
        ).with_rows()

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs; other outputs are not computed."""
        feeds = {name: with_rank(values, self._ranks[name]) for name, values in inputs.items()}
        return dict(zip(outputs, self._session.run(list(outputs), feeds), strict=True))


def _load_errors(runtime: Any) -> tuple[type[Exception], ...]:
    """Return the errors of ONNX Runtime for a file that it cannot load; they have no common class."""
    own = vars(runtime.capi.onnxruntime_pybind11_state).values()
    # UnicodeDecodeError, a ValueError, is that of damaged names.
    return (ValueError, *(one for one in own if isinstance(one, type) and issubclass(one, Exception)))


def _array_type(array: Any) -> ArrayType:
    shape = tuple(length if isinstance(length, int) else None for length in array.shape)
    return ArrayType(array.name, _ELEMENTS.get(array.type), shape, f"a {array.type}")
