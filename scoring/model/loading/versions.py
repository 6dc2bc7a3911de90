"""Comparison of the installed libraries with those that a model was exported with, before the first row is scored.

Compared are the libraries whose minor versions change what a model computes, and Python for models with hooks. For an
MLflow model they are its pins of Python, NumPy and the libraries of its flavors. A difference in those that run the
encoders of a trained model is a warning. For all other libraries it is enough that the model loads: they only transport
rows, and the files of Mirrorspark and MLflow have format versions.
"""

import contextlib
import logging
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from mirrorspark.clear_error import ClearError
from mirrorspark.distributions import library_of, library_version

PYTHON = "python"

COMPARED_OF_TRAINED = ("tensorflow",)
"""Compared libraries of a model that was trained here. Its features have the same bits with every NumPy version."""

OF_ENCODERS = ("keras", "onnxruntime", "tf-keras")
"""Libraries that run encoders of such a model, in addition to the compared ones."""

# Computing libraries of MLflow flavors; other flavors have the name of their library.
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
# Libraries that read models of older versions by design and compute nothing.
_READS_OLDER = frozenset({"mlflow", "mlflow-skinny"})

# `scikit-learn==1.9.1`, followed by nothing but a comment or hashes: a marker may limit the pin to another system.
_PIN = re.compile(r"^([\w.-]+)(?:\[[^\]]*\])? *== *([\w.!+]+) *(?:$|[#\\])", re.MULTILINE)
# The section of flavors in the file ``MLmodel``, and the name of each.
_FLAVORS = re.compile(r"^flavors:\n((?: .*\n?)+)", re.MULTILINE)
_FLAVOR = re.compile(r"^  (\w+):", re.MULTILINE)
_PINNED_PYTHON = re.compile(r"^python: *['\"]?([\d.]+)", re.MULTILINE)

_LOGGER = logging.getLogger(__name__)


class ModelVersionsError(ClearError, RuntimeError):
    """Raised when the library versions of this Python differ from those of the model's export."""


@dataclass(frozen=True)
class Versions:
    """Versions by library, including ``python``, that a model was exported with.

    Attributes:
        compared: Versions that the scores depend on.
        others: Other known versions; a difference causes a warning.
        encoders: Versions of :data:`OF_ENCODERS`; a difference causes a warning where the encoders are loaded.
    """

    compared: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_trained(cls, recorded: Mapping[str, str]) -> "Versions":
        """Return the versions of a model that was trained here, of all that its description has."""
        compared, encoders = (
            {name: recorded[name] for name in names if name in recorded} for names in (COMPARED_OF_TRAINED, OF_ENCODERS)
        )
        return cls(compared, encoders=encoders)


def check_versions(exported_with: Versions, label: str) -> None:
    """Check that the installed libraries have the minor versions that a model was exported with.

    A library that is not found is not compared: a custom build may have any distribution name, and without the library
    the model does not load.

    Args:
        exported_with: Versions of the export.
        label: Name of the model for the message.

    Raises:
        ModelVersionsError: Some differ; the message lists all of them.
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


def warn_of_encoder_versions(exported_with: Versions) -> None:
    """Warn, once per process, of libraries of encoders whose minor versions differ from those of the export."""
    if different := _different(exported_with.encoders):
        _warn_of_encoders(different)


def versions_here(libraries: Iterable[str], *, has_hooks: bool) -> dict[str, str]:
    """Return the installed versions of everything that the scores of a packaged model depend on.

    Args:
        libraries: The result of :func:`scoring.backends.compared_libraries`.
        has_hooks: Whether the model has hooks; of their libraries only NumPy is known.
    """
    compared = (*libraries, *((PYTHON, "numpy") if has_hooks else ()))
    found = {library: installed_version(library) for library in compared}
    return {library: text for library, text in found.items() if text is not None}


def pinned_versions(folder: Path) -> Versions:
    """Return the Python version that an MLflow model names and the versions that it pins (``==``).

    Python, NumPy and the libraries of its flavors are compared.

    Args:
        folder: Folder of the file ``MLmodel``.
    """
    python = _PINNED_PYTHON.search(_text(folder / "python_env.yaml"))
    pins = {library_of(name): pin for name, pin in _PIN.findall(_text(folder / "requirements.txt"))}
    flavors = _FLAVORS.search(_text(folder / "MLmodel"))
    names = _FLAVOR.findall(flavors[1]) if flavors else []
    compared = {"numpy", *(library for name in names for library in _COMPUTES_FLAVOR.get(name, (library_of(name),)))}
    return Versions(
        ({PYTHON: python[1]} if python else {}) | {name: pin for name, pin in pins.items() if name in compared},
        {name: pin for name, pin in pins.items() if name not in compared | _READS_OLDER},
    )


# Cached because it takes a millisecond, and every task calls it for each of up to thousands of models.
@cache
def installed_version(library: str) -> str | None:
    """Return the installed version of a library or of Python, or None."""
    if library == PYTHON:
        return platform.python_version()
    with contextlib.suppress(PackageNotFoundError):
        return library_version(library)
    return None


def _different(wanted: Mapping[str, str]) -> str:
    """Return the libraries with another minor version than ``wanted``, as a list for a message."""
    found = {library: installed_version(library) for library in wanted}
    return ", ".join(
        f"{library} {here} instead of {wanted[library]}"
        for library, here in found.items()
        if here is not None and _minor(here) != _minor(wanted[library])
    )


# Cached so that the warning appears once per process, whatever the number of models and tasks.
@cache
def _warn_of_others(different: str) -> None:
    _LOGGER.warning(
        "This Python has %s, which an MLflow model pins; only the libraries of its flavors are compared. If the "
        "model's own code computes with one of these, check that the scores are equal",
        different,
    )


@cache
def _warn_of_encoders(different: str) -> None:
    _LOGGER.warning(
        "This Python has %s, which ran the encoders of a model when it was exported; their vectors may differ: check "
        "that the scores are equal",
        different,
    )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _minor(text: str) -> list[str]:
    return [*text.split("."), "0"][:2]
