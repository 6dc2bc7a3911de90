"""Libraries that a model needs are imported when it is loaded, in the process that scores with it."""

import importlib
import sys
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
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{need}, but {sys.executable} has no module '{error.name}'; install {requirement} with its requirements "
            f"in the Python of every executor (spark.pyspark.python, or an environment sent with --archives)",
            name=error.name,
        ) from error
