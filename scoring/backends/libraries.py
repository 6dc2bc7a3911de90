"""Libraries that a model needs are imported when it is loaded, in the process that scores with it."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

BACKENDS_EXTRA = "mirrorspark[backends]"


def library(name: str, need: str, requirement: str = "mirrorspark") -> Any:
    """Import the module ``name``.

    Args:
        name: Of the module.
        need: What it is needed for, as the beginning of a sentence.
        requirement: What to install.

    Raises:
        ModuleNotFoundError: It, or a module that it needs, is not installed; the message says where, and what to do.
    """
    try:
        with _without_garbage_collector():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{need}, but {sys.executable} has no module '{error.name}'; install {requirement} with its requirements "
            f"in the Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
            name=error.name,
        ) from error


@contextlib.contextmanager
def _without_garbage_collector() -> Iterator[None]:
    """Keep the collector from looking, again and again, at all that an import makes and that stays.

    Of the time that TensorFlow's takes that is a quarter.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
