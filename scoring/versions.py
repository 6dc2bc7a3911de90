"""The libraries of this Python against those that exported a model: told before the first row, in one message."""

import contextlib
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

# Libraries whose minor versions change what a graph computes, and the distributions that bring them. Of the others it
# is enough that the model loads.
COMPARED = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-rocm", "intel-tensorflow")}


class ModelVersionsError(RuntimeError):
    """This Python has other libraries than the model was exported with."""


def check_versions(exported_with: Mapping[str, str], label: str) -> None:
    """Check that the installed libraries are those that a model was exported with, up to their patch versions.

    Args:
        exported_with: Versions by package, as the model's description has them; what is not there is not compared.
        label: The model, for the message.

    Raises:
        ModelVersionsError: Some differ.
    """
    different = [
        f"{package} {_installed(package) or 'not at all'} instead of {wanted}"
        for package, wanted in exported_with.items()
        if package in COMPARED and _minor(_installed(package)) != _minor(wanted)
    ]
    if different:
        raise ModelVersionsError(
            f"{label} cannot be scored by {sys.executable}: it has {', '.join(different)}, which the model was "
            f"exported with; install that minor version in the Python of every executor (spark.pyspark.python, or an "
            f"environment sent with --archives), or score with other_versions='allow' once parity has shown that the "
            f"scores are equal"
        )


def _installed(package: str) -> str:
    for distribution in COMPARED[package]:
        with contextlib.suppress(PackageNotFoundError):
            return version(distribution)
    return ""


def _minor(text: str) -> list[str]:
    return text.split(".")[:2]
