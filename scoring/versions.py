"""The libraries of this Python against those that a model was exported with: told before the first row, in one message.

What is compared are the libraries whose minor versions change what a model computes, and Python where functions of its
own do; of an MLflow model, what it pins of the libraries of its flavors, NumPy and Python. Of everything else it is
enough that the model loads: it carries rows, and what Mirrorspark and MLflow write has format versions of its own.
"""

import contextlib
import logging
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYTHON = "python"

COMPARED_OF_TRAINED = ("tensorflow",)
"""What is compared of a model that was trained here: its features are the same bits with every NumPy."""

# What computes an MLflow model, by its flavor; that of all others has the flavor's name.
_COMPUTES_FLAVOR: Mapping[str, tuple[str, ...]] = {
    "diffusers": ("diffusers", "torch"),
    "keras": ("keras", "tf-keras", "tensorflow", "torch", "jax"),
    "onnx": ("onnxruntime",),
    "paddle": ("paddlepaddle",),
    "pmdarima": ("pmdarima", "statsmodels"),
    "python_function": (),
    "pytorch": ("torch",),
    "sentence_transformers": ("sentence-transformers", "transformers", "torch"),
    "sklearn": ("scikit-learn",),
    "spark": ("pyspark",),
    "tensorflow": ("tensorflow", "keras", "tf-keras"),
    "transformers": ("transformers", "torch", "tensorflow"),
}
# The distributions of libraries that come in several; all others are called as their library is.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-rocm", "intel-tensorflow"),
    "xgboost": ("xgboost", "xgboost-cpu"),
}

_LIBRARIES = {name: library for library, names in _DISTRIBUTIONS.items() for name in names}
# What reads models of older versions by design, and computes nothing.
_READS_OLDER = frozenset({"mlflow", "mlflow-skinny"})

# `scikit-learn==1.9.1`, and nothing behind it but a comment or hashes: with a marker it may be of another system.
_PIN = re.compile(r"^([\w.-]+)(?:\[[^\]]*\])? *== *([\w.!+]+) *(?:$|[#\\])", re.MULTILINE)
# As MLflow writes them: the flavors of the file ``MLmodel``, and the name of each.
_FLAVORS = re.compile(r"^flavors:\n((?: .*\n?)+)", re.MULTILINE)
_FLAVOR = re.compile(r"^  (\w+):", re.MULTILINE)
_PINNED_PYTHON = re.compile(r"^python: *['\"]?([\d.]+)", re.MULTILINE)

_LOGGER = logging.getLogger(__name__)


class ModelVersionsError(RuntimeError):
    """This Python has other libraries than the model was exported with."""


@dataclass(frozen=True)
class Versions:
    """Versions by library, ``python`` among them, that a model was exported with.

    Attributes:
        compared: What its scores depend on.
        others: What else is known; a difference is worth a warning.
    """

    compared: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)


def check_versions(exported_with: Versions, label: str) -> None:
    """Check that the installed libraries are those that a model was exported with, up to their patch versions.

    A library that is not found here is not compared: a build of one's own may be a distribution of any name, and where
    there is none, the model cannot be loaded.

    Args:
        exported_with: What is not there is not compared.
        label: The model, for the message.

    Raises:
        ModelVersionsError: Some differ; the message has all of them.
    """
    if others := _different(exported_with.others):
        _warn_of_others(others)
    if different := _different(exported_with.compared):
        raise ModelVersionsError(
            f"{label} cannot be scored by {sys.executable}: it has {different}, which the model was "
            f"exported with; install these minor versions in the Python of every executor (spark.pyspark.python, or an "
            f"environment sent with --archives), or score with other_versions='allow' once parity has shown that the "
            f"scores are equal"
        )


def versions_here(libraries: Iterable[str], *, has_hooks: bool) -> dict[str, str]:
    """Return the versions that the scores of a packaged model depend on, as this Python has them.

    Args:
        libraries: What computes it, as :func:`scoring.backends.catalog.compared_libraries` says.
        has_hooks: Whether functions of its own compute too, of whose libraries only NumPy is known.
    """
    compared = (*libraries, *((PYTHON, "numpy") if has_hooks else ()))
    found = {library: installed_version(library) for library in compared}
    return {library: text for library, text in found.items() if text is not None}


def pinned_versions(folder: Path) -> Versions:
    """Return the Python that an MLflow model names and the versions that it pins (``==``).

    Compared are Python, NumPy and the libraries of its flavors.

    Args:
        folder: Of the file ``MLmodel``.
    """
    python = _PINNED_PYTHON.search(_text(folder / "python_env.yaml"))
    pins = {_library(name): pin for name, pin in _PIN.findall(_text(folder / "requirements.txt"))}
    flavors = _FLAVORS.search(_text(folder / "MLmodel"))
    names = _FLAVOR.findall(flavors[1]) if flavors else []
    compared = {"numpy", *(library for name in names for library in _COMPUTES_FLAVOR.get(name, (_library(name),)))}
    return Versions(
        ({PYTHON: python[1]} if python else {}) | {name: pin for name, pin in pins.items() if name in compared},
        {name: pin for name, pin in pins.items() if name not in compared | _READS_OLDER},
    )


# Found out once: it takes a millisecond, and every task asks, for each of what may be thousands of models.
@cache
def installed_version(library: str) -> str | None:
    """Return the version of a library, or of Python, in this process; None where it is not installed."""
    if library == PYTHON:
        return platform.python_version()
    for distribution in _DISTRIBUTIONS.get(library, (library,)):
        with contextlib.suppress(PackageNotFoundError):
            return version(distribution)
    return None


def _different(wanted: Mapping[str, str]) -> str:
    """Return what is installed in another minor version than ``wanted``, as a list for a message."""
    found = {library: installed_version(library) for library in wanted}
    return ", ".join(
        f"{library} {here} instead of {wanted[library]}"
        for library, here in found.items()
        if here is not None and _minor(here) != _minor(wanted[library])
    )


# Once in a process, however many models and tasks it sees.
@cache
def _warn_of_others(different: str) -> None:
    _LOGGER.warning(
        "This Python has %s, which an MLflow model pins; it is compared by the libraries of its flavors alone. If code "
        "of its own computes with one of these, see that the scores are equal",
        different,
    )


def _library(distribution: str) -> str:
    """Return the library that a distribution has, by the name that is used here (PEP 503)."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    return _LIBRARIES.get(name, name)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _minor(text: str) -> list[str]:
    return [*text.split("."), "0"][:2]
