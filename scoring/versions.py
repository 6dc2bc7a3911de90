"""The libraries of this Python against those that a model was exported with: told before the first row, in one message.

What is compared are the libraries whose minor versions change what a model computes, and Python where functions of its
own do; of an MLflow model, Python and what it pins. Of everything else it is enough that the model loads: it carries
rows, and what Mirrorspark and MLflow write has format versions of its own.
"""

import contextlib
import platform
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYTHON = "python"

COMPARED_OF_TRAINED = ("tensorflow",)
"""What is compared of a model that was trained here: its features are the same bits with every NumPy."""

# What computes a packaged model, by its backend.
_COMPUTED_BY: Mapping[str, tuple[str, ...]] = {
    "keras": ("tensorflow", "tf-keras"),
    "lightgbm": ("lightgbm",),
    "linear": ("numpy",),
    "onnx": ("onnxruntime",),
    "saved_model": ("tensorflow",),
    "xgboost": ("xgboost",),
}
# What reads models of older versions by design, and computes nothing.
_READS_OLDER = frozenset({"mlflow", "mlflow-skinny"})
# The distributions of libraries that come in several; all others are called as their library is.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-rocm", "intel-tensorflow"),
    "xgboost": ("xgboost", "xgboost-cpu"),
}

# `scikit-learn==1.9.1`, and nothing behind it but a comment or hashes: with a marker it may be of another system.
_PIN = re.compile(r"^([\w.-]+)(?:\[[^\]]*\])? *== *([\w.!+]+) *(?:$|[#\\])", re.MULTILINE)
_PINNED_PYTHON = re.compile(r"^python: *['\"]?([\d.]+)", re.MULTILINE)


class ModelVersionsError(RuntimeError):
    """This Python has other libraries than the model was exported with."""


def check_versions(exported_with: Mapping[str, str], label: str) -> None:
    """Check that the installed libraries are those that a model was exported with, up to their patch versions.

    Args:
        exported_with: Versions by library, ``python`` among them; what is not there is not compared.
        label: The model, for the message.

    Raises:
        ModelVersionsError: Some differ; the message has all of them.
    """
    different = [
        f"{library} {installed_version(library) or 'not at all'} instead of {wanted}"
        for library, wanted in exported_with.items()
        if _minor(installed_version(library) or "") != _minor(wanted)
    ]
    if different:
        raise ModelVersionsError(
            f"{label} cannot be scored by {sys.executable}: it has {', '.join(different)}, which the model was "
            f"exported with; install these minor versions in the Python of every executor (spark.pyspark.python, or an "
            f"environment sent with --archives), or score with other_versions='allow' once parity has shown that the "
            f"scores are equal"
        )


def versions_here(backend: str, *, has_hooks: bool) -> dict[str, str]:
    """Return the versions that the scores of a packaged model depend on, as this Python has them.

    Args:
        backend: What computes it, by its name in :mod:`scoring.backends.catalog`.
        has_hooks: Whether functions of its own compute too, of whose libraries only NumPy is known.
    """
    libraries = (*_COMPUTED_BY[backend], *((PYTHON, "numpy") if has_hooks else ()))
    found = {library: installed_version(library) for library in libraries}
    # A build of one's own may be a distribution of any name.
    return {library: text for library, text in found.items() if text is not None}


def pinned_versions(folder: Path) -> dict[str, str]:
    """Return the Python that an MLflow model names, and the versions that it pins (``==``) of what is installed here.

    Args:
        folder: Of the file ``MLmodel``.
    """
    python = _PINNED_PYTHON.search(_text(folder / "python_env.yaml"))
    pins = dict(_PIN.findall(_text(folder / "requirements.txt")))
    # What is not installed may be something that only serving needs; of all else the model misses it when it is loaded.
    installed = {name: pin for name, pin in pins.items() if name not in _READS_OLDER and installed_version(name)}
    return ({PYTHON: python[1]} if python else {}) | installed


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


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _minor(text: str) -> list[str]:
    return [*text.split("."), "0"][:2]
