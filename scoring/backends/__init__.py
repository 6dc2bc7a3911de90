"""Backends, one file for each library or format that computes models.

``catalog`` lists them, and all implement the interface in ``protocol``.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.backends import protocol
    from mirrorspark.scoring.backends.catalog import compared_libraries, load_backend, runs_code
    from mirrorspark.scoring.backends.keras_file import is_of_keras3
    from mirrorspark.scoring.backends.libraries import library
    from mirrorspark.scoring.backends.linear import FIELDS
    from mirrorspark.scoring.backends.onnx_file import OnnxBackend
    from mirrorspark.scoring.backends.pyfunc import mlflow_signature
    from mirrorspark.scoring.backends.saved_model import DEFAULT_SIGNATURE, SavedModelBackend
    from mirrorspark.scoring.backends.tensorflow_runtime import limit_tensorflow, start_tensorflow, traced_functions
    from mirrorspark.scoring.backends.trained_model import TrainedBackend, TrainedGraph
    from mirrorspark.scoring.backends.xgboost_file import check_whole
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DEFAULT_SIGNATURE",
    "FIELDS",
    "OnnxBackend",
    "SavedModelBackend",
    "TrainedBackend",
    "TrainedGraph",
    "check_whole",
    "compared_libraries",
    "is_of_keras3",
    "library",
    "limit_tensorflow",
    "load_backend",
    "mlflow_signature",
    "protocol",
    "runs_code",
    "start_tensorflow",
    "traced_functions",
]
