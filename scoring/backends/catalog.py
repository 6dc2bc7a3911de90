"""Catalog of the backends.

A new backend is one file in this folder and one line in the table here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirrorspark.scoring.backends.keras_file import Keras3Backend, KerasBackend
from mirrorspark.scoring.backends.lightgbm_file import LightGBMBackend
from mirrorspark.scoring.backends.linear import LinearBackend
from mirrorspark.scoring.backends.onnx_file import OnnxBackend
from mirrorspark.scoring.backends.protocol import Backend, UnsupportedModelError
from mirrorspark.scoring.backends.pyfunc import PyfuncBackend
from mirrorspark.scoring.backends.saved_model import SavedModelBackend
from mirrorspark.scoring.backends.xgboost_file import XGBoostBackend


@dataclass(frozen=True)
class _Entry:
    """A backend.

    Attributes:
        compared: Libraries whose minor versions change what its models compute.
        runs_code: Whether any of its models may bring Python code.
    """

    load: Callable[..., Backend]
    compared: tuple[str, ...] = ()
    runs_code: bool = False


# No backend imports its library before a model is loaded.
_BACKENDS: Mapping[str, _Entry] = {
    "keras": _Entry(KerasBackend, ("tensorflow", "tf-keras")),
    "keras3": _Entry(Keras3Backend, ("tensorflow", "keras")),
    "lightgbm": _Entry(LightGBMBackend, ("lightgbm",)),
    "linear": _Entry(LinearBackend, ("numpy",)),
    "onnx": _Entry(OnnxBackend, ("onnxruntime",)),
    # Versions are in the model: scoring.model.versions.pinned_versions.
    "pyfunc": _Entry(PyfuncBackend, runs_code=True),
    "saved_model": _Entry(SavedModelBackend, ("tensorflow",)),
    "xgboost": _Entry(XGBoostBackend, ("xgboost",)),
}


def compared_libraries(name: str) -> tuple[str, ...]:
    """Return the libraries whose minor versions change the scores of a backend's models."""
    return _BACKENDS[name].compared


def runs_code(name: str) -> bool:
    """Return whether any model of a backend may bring Python code; files of Keras do only if they are trusted."""
    return name in _BACKENDS and _BACKENDS[name].runs_code


def load_backend(
    name: str, path: Path, *, signature: str | None = None, threads: int | None = None, trusted: bool = False
) -> Backend:
    """Load a model of another library.

    Args:
        name: Name of the backend.
        path: The model's file or folder.
        signature: Signature of a SavedModel; None for other models.
        threads: Threads of the backend, if it has threads of its own; None means one per core.
        trusted: Whether Python code in a file of Keras may run, and its graphs or a SavedModel's read and write files.

    Raises:
        UnsupportedModelError: The model cannot be loaded or scored, or there is no such backend.
        ModuleNotFoundError: A library that it needs is not installed here.
    """
    if name not in _BACKENDS:
        raise UnsupportedModelError(f"backend '{name}' is unknown; use one of {sorted(_BACKENDS)}")
    options: dict[str, Any] = {"threads": threads}
    if signature is not None:
        options["signature"] = signature
    if trusted:
        options["trusted"] = True
    return _BACKENDS[name].load(path, **options)
