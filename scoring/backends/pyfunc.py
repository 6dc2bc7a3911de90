"""Backend for MLflow models, through their flavor ``python_function``: a DataFrame in, predictions out.

Names and types of columns are those of the model's MLflow signature.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.libraries import library
from mirrorspark.scoring.backends.protocol import (
    ArrayType,
    ModelOutputError,
    Signature,
    UnsupportedModelError,
    element_of,
    thread_count,
)
from mirrorspark.scoring.model.stored import is_outside_digest

# Spark's names by MLflow's names of column types.
_ELEMENTS = {
    "boolean": "boolean",
    "integer": "int",
    "long": "bigint",
    "float": "float",
    "double": "double",
    "string": "string",
    "binary": "binary",
}
UNNAMED_OUTPUT = "prediction"

# Keys of a flavor whose values are files or folders of the model.
_PATHS = ("code", "data", "model_data", "model_path", "path", "pickled_model", "python_model")


class PyfuncBackend:
    """An MLflow model, loaded in this process without a server or an environment of its own."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Load the model; imports MLflow and the model's packages.

        Args:
            folder: Folder of the file ``MLmodel``.
            threads: Reported number of threads of the numeric libraries, which the process limits; None means one per
                core.

        Raises:
            UnsupportedModelError: The model has no signature, or one of arrays without names.
            ModuleNotFoundError: A library that the model needs is not installed here.
        """
        library("mlflow", "an MLflow model needs MLflow")
        pyfunc = library("mlflow.pyfunc", "an MLflow model needs MLflow")
        self.signature = mlflow_signature(folder)
        try:
            with _no_bytecode(folder):
                _forget_modules_of_other_models(folder)
                self._model = pyfunc.load_model(str(folder))
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the MLflow model {folder.name} needs the module '{error.name}', which is not installed here; install "
                f"the packages of its requirements.txt in the Python of every executor",
                name=error.name,
            ) from error
        self.threads = thread_count(threads)
        self._data_frame = library("pandas", "an MLflow model needs pandas").DataFrame

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named predictions.

        Raises:
            ModelOutputError: The predictions lack an output of the signature.
        """
        columns = {name: list(values) if values.ndim == 2 else values for name, values in inputs.items()}
        predicted = self._model.predict(self._data_frame(columns))
        arrays = _by_name(predicted, [array.name for array in self.signature.outputs])
        absent = [name for name in outputs if name not in arrays]
        if absent:
            raise ModelOutputError(
                f"the model's signature says that it gives {absent}, but it has given {sorted(arrays)}; log it with "
                f"the signature of its outputs (infer_signature)"
            )
        return {name: arrays[name] for name in outputs}


@contextlib.contextmanager
def _no_bytecode(folder: Path) -> Iterator[None]:
    """Let no bytecode below ``folder`` run or be written there: the digest of a model covers only its sources."""
    if any(folder.rglob("__pycache__")):
        # For the rest of the process, since the model may import more when it predicts. Without a cache, imports take
        # longer; so it is not done for models that have none.
        sys.pycache_prefix = os.devnull
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# Of the models that this process has loaded.
_CODE_FOLDERS: set[Path] = set()


def _forget_modules_of_other_models(folder: Path) -> None:
    """Let the model import its own code: Python would give it another model's modules of the same names.

    The other model keeps those that it has imported.
    """
    code = folder.absolute() / "code"
    if not code.is_dir():
        return
    names = {path.stem for path in code.iterdir()}
    others = _CODE_FOLDERS - {code}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and any(Path(file).is_relative_to(other) for other in others):
            del sys.modules[name]
    importlib.invalidate_caches()
    _CODE_FOLDERS.add(code)


def mlflow_signature(folder: Path) -> Signature:
    """Return the signature of an MLflow model; imports MLflow but not the model.

    Args:
        folder: Folder of the file ``MLmodel``.

    Raises:
        UnsupportedModelError: It has no signature, or one of arrays without names, or loads what its digest does not
            cover.
    """
    from mlflow.models import Model

    model = Model.load(str(folder))
    for key, text in _texts(model.flavors):
        if is_outside_digest(text) if key in _PATHS else "__pycache__" in text:
            raise UnsupportedModelError(
                f"the MLflow model in {folder} names {key} '{text}', which is outside of its folder or its digest; log "
                f"it again"
            )
    signature = model.signature
    if "python_function" not in model.flavors:
        raise UnsupportedModelError(
            f"the MLflow model in {folder} has the flavors {sorted(model.flavors)} but not python_function, which "
            f"scoring needs; log it with the module of MLflow for its library"
        )
    if signature is None or signature.inputs is None or signature.outputs is None:
        raise UnsupportedModelError(
            f"the MLflow model in {folder} has no signature of its inputs and outputs, so its columns and their types "
            f"are unknown; log it with signature=infer_signature(inputs, model.predict(inputs)), or set one with "
            f"mlflow.models.set_signature"
        )
    return Signature(
        tuple(_array_type(folder, spec, None) for spec in signature.inputs),
        tuple(_array_type(folder, spec, UNNAMED_OUTPUT) for spec in signature.outputs),
    )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in the flavors of an MLflow model, each with the key before it."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, element in value.items():
            if name != "config":  # Settings by the model's author for its code.
                yield from _texts(element, str(name))
    elif isinstance(value, list):
        for element in value:
            yield from _texts(element, key)


def _array_type(folder: Path, spec: Any, unnamed: str | None) -> ArrayType:
    name = spec.name or unnamed
    if name is None:
        raise UnsupportedModelError(
            f"the MLflow model in {folder} takes an array ({spec}), whose columns have no names; log it with a "
            f"signature of a DataFrame (infer_signature(data_frame, ...)), or a model that takes one"
        )
    if hasattr(spec, "shape"):
        lengths = tuple(None if length == -1 else length for length in spec.shape)
        called = f"a tensor of {spec.type} of the MLflow model in {folder}"
        return ArrayType(name, element_of(spec.type), lengths, called)
    # A column has a plain type, or an array of a plain type.
    of_elements = getattr(spec.type, "dtype", spec.type)
    is_array = of_elements is not spec.type
    element = _ELEMENTS.get(getattr(of_elements, "name", ""))
    shape = (None, None) if is_array else (None,)
    called = f"a column of {spec.type} of the MLflow model in {folder}"
    return ArrayType(name, element, shape, called, optional=not spec.required)


def _by_name(predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return predictions as arrays by name, from an ndarray, list, Series, DataFrame or a dict of them.

    Predictions without names get the names of the signature, in order.
    """
    if hasattr(predicted, "columns"):
        # A DataFrame has column names even if the signature has no name for its only output.
        given = [str(column) for column in predicted.columns]
        called = given if set(names) <= set(given) or len(given) != len(names) else names
        return {name: _array(predicted.iloc[:, place]) for place, name in enumerate(called)}
    if isinstance(predicted, Mapping):
        return {str(name): _array(values) for name, values in predicted.items()}
    if len(names) == 1:
        return {names[0]: _array(predicted)}
    values = _array(predicted)
    return {name: values[:, place] for place, name in enumerate(names)}


def _array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    # In pandas a column of lists has one object per list.
    is_nested = array.dtype == object and array.ndim == 1 and len(array) and np.ndim(array[0]) == 1
    return np.stack([np.asarray(row) for row in array]) if is_nested else array
