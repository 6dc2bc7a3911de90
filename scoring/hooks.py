"""Functions that travel with a model of another library, in a Python file of its folder, and run where it scores."""

import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from scoring.backends.protocol import DTYPES, ArrayType, Backend, element_of, number_outside, with_rank

HOOKS_FILE = "hooks.py"
PREPROCESS, POSTPROCESS = "preprocess", "postprocess"


class HookError(RuntimeError):
    """A hook that cannot be loaded, fails, or gives what it must not; the message names the function and its file."""


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles a file anew: a cache of Python's would stand in the model's folder, and not count in its digest."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


@dataclass(frozen=True)
class Hooks:
    """The functions of a file.

    Attributes:
        file: It.
        module: What it defines.
    """

    file: Path
    module: ModuleType

    @classmethod
    def load(cls, file: Path) -> "Hooks":
        """Run the file, unless this process has run one of the same content; it is never pickled.

        Raises:
            HookError: It cannot be run.
            ModuleNotFoundError: A module that it imports is not installed here.
        """
        name = f"mirrorspark_hooks_{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
        if name not in sys.modules:
            loader = _SourceLoader(name, str(file))
            module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(file)))
            module.__file__ = str(file)
            # Where Python looks for the classes that the file defines.
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
        """Whether there is a function of that name."""
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

    def called(self, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what a function makes of named arrays.

        Raises:
            HookError: It fails, or gives no named arrays.
        """
        try:
            made = self.function(name)(dict(arrays))
            if isinstance(made, Mapping):
                return {str(key): np.asarray(values) for key, values in made.items()}
        except Exception as error:  # whatever a function of others raises
            raise HookError(f"{name} of {self.file.name} failed: {type(error).__name__}: {error}") from error
        raise HookError(f"{name} of {self.file.name} gives {type(made).__name__}; have it return a dict of arrays")


def _load_error(file: Path, error: Exception) -> Exception:
    if isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(
            f"{file.name} imports the module '{error.name}', which {sys.executable} does not have; install it in the "
            f"Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
            name=error.name,
        )
    return HookError(f"{file.name} cannot be run: {type(error).__name__}: {error}")


def hooked(backend: Backend, hooks: Hooks | None, names: Sequence[str]) -> Backend:
    """Return ``backend`` between those of its hooks that ``names`` has.

    Raises:
        HookError: A function is missing, or what it gives has no types that columns have.
    """
    if hooks is None or not {PREPROCESS, POSTPROCESS} & set(names):
        return backend
    before = _Preprocessed(backend, hooks) if PREPROCESS in names else backend
    return _Postprocessed(before, backend, hooks) if POSTPROCESS in names else before


class _Preprocessed:
    """A model that takes what its hook ``preprocess`` makes of columns; its signature is the model's."""

    def __init__(self, backend: Backend, hooks: Hooks) -> None:
        hooks.function(PREPROCESS)
        self._backend, self._hooks = backend, hooks
        self.signature, self.threads = backend.signature, backend.threads

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs.

        Raises:
            HookError: The hook fails, or gives what the model does not take.
        """
        rows = len(next(iter(inputs.values())))
        made = self._hooks.called(PREPROCESS, inputs)
        names = [array.name for array in self.signature.inputs]
        if set(made) != set(names):
            raise self._error(f"gives {sorted(made)}, and the model takes {sorted(names)}")
        taken = {array.name: self._taken(array, made[array.name], rows) for array in self.signature.inputs}
        return self._backend(taken, outputs)

    def _taken(self, array: ArrayType, values: np.ndarray, rows: int) -> np.ndarray:
        values = with_rank(values, len(array.shape))
        lengths = zip(array.shape, (rows, *values.shape[1:]), strict=False)
        fits = values.ndim == len(array.shape) and all(wanted in (None, length) for wanted, length in lengths)
        if not fits or len(values) != rows:
            raise self._error(
                f"gives '{array.name}' of shape {list(values.shape)} for {rows} rows, and the model takes "
                f"{list(array.shape)}"
            )
        dtype = np.dtype(DTYPES.get(array.element or "", values.dtype))
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise self._error(f"gives '{array.name}' of {values.dtype}, and the model takes {dtype}")
        outside = number_outside(values, dtype)
        if outside is not None:
            raise self._error(f"gives '{array.name}' with {outside}, and the model takes {dtype}")
        return values.astype(dtype, copy=False)

    def _error(self, what: str) -> HookError:
        return HookError(f"{PREPROCESS} of {self._hooks.file.name} {what}")


class _Postprocessed:
    """A model whose outputs are what its hook ``postprocess`` makes of them."""

    def __init__(self, backend: Backend, model: Backend, hooks: Hooks) -> None:
        hooks.function(POSTPROCESS)
        self._backend, self._hooks, self.threads = backend, hooks, backend.threads
        self._given = [array.name for array in model.signature.outputs if array.element is not None and array.has_rows]
        self.signature = replace(model.signature, outputs=self._tried(model))

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Return the named outputs.

        Raises:
            HookError: The hook fails, does not give them for every row, or now gives another type.
        """
        rows = len(next(iter(inputs.values())))
        made = self._made(self._backend(inputs, self._given), rows)
        absent = [name for name in outputs if name not in made]
        if absent:
            raise self._error(f"does not give {absent}, but {sorted(made)}")
        return {name: self._of_its_type(name, made[name]) for name in outputs}

    def _of_its_type(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return an output, if it can be cast to the type that it had for a row of zeros; of objects Arrow tells."""
        element = next(array.element for array in self.signature.outputs if array.name == name)
        is_object = values.dtype.kind in "OUS"
        if element is not None and not is_object and not np.can_cast(values.dtype, DTYPES[element], "same_kind"):
            raise self._error(
                f"gives '{name}' of {values.dtype}, and gave {element} for a row of zeros; have it return one type "
                f"(astype)"
            )
        return values

    def _tried(self, model: Backend) -> tuple[ArrayType, ...]:
        """Return the types of what the hook gives, which only a call tells: of the model, for rows of zeros."""
        rows = model.signature.rows or 1
        try:
            given = model({array.name: _zeros(array, rows) for array in model.signature.inputs}, self._given)
        except Exception as error:  # whatever the library raises
            raise self._error(
                f"cannot be tried: the model fails for a row of zeros ({type(error).__name__}: {error})"
            ) from error
        return tuple(
            ArrayType(name, element_of(values.dtype), (None, *values.shape[1:]), f"an array of {values.dtype}")
            for name, values in self._made(given, rows).items()
        )

    def _made(self, given: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        made = self._hooks.called(POSTPROCESS, given)
        for name, values in made.items():
            if values.ndim not in (1, 2) or len(values) != rows:
                raise self._error(
                    f"gives '{name}' of shape {list(values.shape)} for {rows} rows; have it return [rows] or [rows, k]"
                )
        return made

    def _error(self, what: str) -> HookError:
        return HookError(f"{POSTPROCESS} of {self._hooks.file.name} {what}")


def _zeros(array: ArrayType, rows: int) -> np.ndarray:
    """Return so many rows of zeros, or of empty texts; what else has any length has 1."""
    shape = [length or 1 for length in array.shape]
    if array.has_rows:
        shape[0] = rows
    dtype = np.dtype(DTYPES.get(array.element or "", np.float32))
    return np.full(shape, "", dtype) if dtype == np.object_ else np.zeros(shape, dtype)
