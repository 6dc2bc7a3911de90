"""Import of the libraries that a model needs, in the process that scores with it."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from typing import Any

from mirrorspark.distributions import distribution_of, library_version
from mirrorspark.extras import install_line
from mirrorspark.scoring.backends.protocol import UnsupportedModelError


def library(name: str, need: str) -> Any:
    """Import the module ``name``.

    Args:
        name: Name of the module.
        need: Purpose of the module, as the beginning of a sentence.

    Raises:
        ModuleNotFoundError: The module or a dependency is not installed; the message names the Python and the remedy.
    """
    try:
        with _without_garbage_collector():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{need}, but {sys.executable} has no module '{error.name}'; in the Python of every executor "
            f"(spark.pyspark.python, or an environment sent with --archives) run: {install_line(error.name or name)}",
            name=error.name,
        ) from error


def import_scann() -> None:
    """Import ScaNN, which adds the operations of its index to TensorFlow.

    Raises:
        ModuleNotFoundError: It is not installed.
        UnsupportedModelError: It is built for another TensorFlow.
    """
    try:
        library("scann", "the model holds a ScaNN index, which needs the package scann")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # TensorFlow's own, of an operation or a symbol that it does not find
        needed = next((line for line in requires("scann") or [] if line.startswith("tensorflow")), "tensorflow")
        versions = needed.partition(";")[0].strip().removeprefix("tensorflow")
        raise UnsupportedModelError(
            f"the model holds a ScaNN index, and scann {library_version('scann')} does not load with TensorFlow "
            f"{library_version('tensorflow')}; install {distribution_of('tensorflow')}{versions}, or search by another "
            f"index of the model, such as exact"
        ) from error


@contextlib.contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Turn off garbage collection during an import, whose objects stay.

    Collection takes a quarter of the time of TensorFlow's import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
