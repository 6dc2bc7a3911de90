"""Import of the libraries that a model needs, in the process that scores with it."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from mirrorspark.extras import install_line


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
