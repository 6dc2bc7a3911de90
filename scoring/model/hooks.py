"""Hooks: Python functions in the folder of a packaged model, which run wherever it scores."""

import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from mirrorspark.clear_error import ClearError
from mirrorspark.scoring.backends import protocol

HOOKS_FILE = "hooks.py"
PREPROCESS, POSTPROCESS = "preprocess", "postprocess"


class HookError(ClearError, RuntimeError):
    """Raised when a hook cannot be loaded, fails or returns an invalid result; the message names hook and file."""


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file on each load, because Python's cache would be in the model's folder and outside its digest."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


@dataclass(frozen=True)
class Hooks:
    """The functions of a file of hooks."""

    file: Path
    module: ModuleType

    @classmethod
    def load(cls, file: Path) -> "Hooks":
        """Run the file, unless this process has run one of the same content; the module is never pickled.

        Raises:
            HookError: The file cannot be run.
            ModuleNotFoundError: A module that it imports is not installed here.
        """
        name = f"mirrorspark_hooks_{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        if name not in sys.modules:
            loader = _SourceLoader(name, str(file))
            module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(file)))
            module.__file__ = str(file)
            # Python looks up the classes of the file here.
            sys.modules[name] = module
            try:
                loader.exec_module(module)
            except BaseException as error:
                del sys.modules[name]
                if isinstance(error, Exception):
                    raise _load_error(file, error) from error
                raise
        return cls(file, sys.modules[name])

    def has(self, name: str) -> bool:
        """Return whether there is a function of that name."""
        return callable(getattr(self.module, name, None))

    def function(self, name: str) -> Callable[..., Any]:
        """Return the function of that name.

        Raises:
            HookError: There is none.
        """
        if not self.has(name):
            raise HookError(f"{self.file.name} has no function '{name}'; define it there")
        function: Callable[..., Any] = getattr(self.module, name)
        return function

    @contextmanager
    def failures(self, name: str) -> Iterator[None]:
        """Raise ``HookError``, which names the function, for any error of its call in the block."""
        try:
            yield
        except Exception as error:  # a user's function may raise anything
            raise HookError(f"{name} of {self.file.name} failed: {type(error).__name__}: {error}") from error

    def call(self, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Call a function with named arrays and return its named arrays.

        Raises:
            HookError: The function fails, or does not return named arrays.
        """
        with self.failures(name):
            made = self.function(name)(dict(arrays))
            if isinstance(made, Mapping):
                return {str(key): np.asarray(values) for key, values in made.items()}
        raise HookError(f"{name} of {self.file.name} gives {type(made).__name__}; have it return a dict of arrays")


def _load_error(file: Path, error: Exception) -> Exception:
    if isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(
            f"{file.name} imports the module '{error.name}', which {sys.executable} does not have; install it in the "
            f"Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
            name=error.name,
        )
    return HookError(f"{file.name} cannot be run: {type(error).__name__}: {error}")


def with_hooks(backend: protocol.Backend, hooks: Hooks | None, names: Sequence[str]) -> protocol.Backend:
    """Return ``backend`` wrapped in the hooks ``preprocess`` and ``postprocess`` if ``names`` has them.

    Raises:
        HookError: A function is missing, or its result has types that no column can hold.
    """
    if hooks is None or not {PREPROCESS, POSTPROCESS} & set(names):
        return backend
    before = _Preprocessed(backend, hooks) if PREPROCESS in names else backend
    return _Postprocessed(before, backend, hooks) if POSTPROCESS in names else before


class _Preprocessed:
    """A backend with the hook ``preprocess``, which maps columns to its inputs; the signature stays the model's."""

    def __init__(self, backend: protocol.Backend, hooks: Hooks) -> None:
        hooks.function(PREPROCESS)
        self._backend, self._hooks = backend, hooks
        self.signature, self.threads = backend.signature, backend.threads

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs.

        Raises:
            HookError: The hook fails, or its result does not fit the model.
        """
        rows = len(next(iter(inputs.values())))
        made = self._hooks.call(PREPROCESS, inputs)
        names = [array.name for array in self.signature.inputs]
        if set(made) != set(names):
            raise self._error(f"gives {sorted(made)}, and the model takes {sorted(names)}")
        taken = {array.name: self._checked_input(array, made[array.name], rows) for array in self.signature.inputs}
        return self._backend(taken, outputs)

    def _checked_input(self, array: protocol.ArrayType, values: np.ndarray, rows: int) -> np.ndarray:
        values = protocol.with_rank(values, len(array.shape))
        lengths = zip(array.shape, (rows, *values.shape[1:]), strict=False)
        fits = values.ndim == len(array.shape) and all(wanted in (None, length) for wanted, length in lengths)
        if not fits or len(values) != rows:
            raise self._error(
                f"gives '{array.name}' of shape {list(values.shape)} for {rows} rows, and the model takes "
                f"{list(array.shape)}"
            )
        dtype = np.dtype(protocol.DTYPES.get(array.element or "", values.dtype))
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise self._error(f"gives '{array.name}' of {values.dtype}, and the model takes {dtype}")
        outside = protocol.number_outside(values, dtype)
        if outside is not None:
            raise self._error(f"gives '{array.name}' with {outside}, and the model takes {dtype}")
        return values.astype(dtype, copy=False)

    def _error(self, what: str) -> HookError:
        return HookError(f"{PREPROCESS} of {self._hooks.file.name} {what}")


class _Postprocessed:
    """A backend with the hook ``postprocess``, which maps its outputs."""

    def __init__(self, backend: protocol.Backend, model: protocol.Backend, hooks: Hooks) -> None:
        hooks.function(POSTPROCESS)
        self._backend, self._hooks, self.threads = backend, hooks, backend.threads
        self._given = [array.name for array in model.signature.outputs if array.element is not None and array.has_rows]
        self.signature = replace(model.signature, outputs=self._output_types(model))

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs.

        Raises:
            HookError: The hook fails, lacks an output or a row, or changes a type.
        """
        rows = len(next(iter(inputs.values())))
        made = self._checked_result(self._backend(inputs, self._given), rows)
        absent = [name for name in outputs if name not in made]
        if absent:
            raise self._error(f"does not give {absent}, but {sorted(made)}")
        return {name: self._checked_type(name, made[name]) for name in outputs}

    def _checked_type(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return an output after checking that it can be cast to its type for a row of zeros. Arrow checks objects."""
        element = next(array.element for array in self.signature.outputs if array.name == name)
        is_object = values.dtype.kind in "OUS"
        if (
            element is not None
            and not is_object
            and not np.can_cast(values.dtype, protocol.DTYPES[element], "same_kind")
        ):
            raise self._error(
                f"gives '{name}' of {values.dtype}, and gave {element} for a row of zeros; have it return one type "
                f"(astype)"
            )
        return values

    def _output_types(self, model: protocol.Backend) -> tuple[protocol.ArrayType, ...]:
        """Return the types of the hook's outputs, found by a call for rows of zeros."""
        rows = model.signature.rows or 1
        try:
            given = model({array.name: _zeros(array, rows) for array in model.signature.inputs}, self._given)
        except Exception as error:  # the library may raise anything
            raise self._error(
                f"cannot be tried: the model fails for a row of zeros ({type(error).__name__}: {error})"
            ) from error
        return tuple(
            protocol.ArrayType(
                name, protocol.element_of(values.dtype), (None, *values.shape[1:]), f"an array of {values.dtype}"
            )
            for name, values in self._checked_result(given, rows).items()
        )

    def _checked_result(self, given: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        made = self._hooks.call(POSTPROCESS, given)
        for name, values in made.items():
            if values.ndim not in (1, 2) or len(values) != rows:
                raise self._error(
                    f"gives '{name}' of shape {list(values.shape)} for {rows} rows; have it return [rows] or [rows, k]"
                )
        return made

    def _error(self, what: str) -> HookError:
        return HookError(f"{POSTPROCESS} of {self._hooks.file.name} {what}")


def _zeros(array: protocol.ArrayType, rows: int) -> np.ndarray:
    """Return ``rows`` rows of zeros or empty strings; other open dimensions get length 1."""
    shape = [length or 1 for length in array.shape]
    if array.has_rows:
        shape[0] = rows
    dtype = np.dtype(protocol.DTYPES.get(array.element or "", np.float32))
    return np.full(shape, "", dtype) if dtype == np.object_ else np.zeros(shape, dtype)
