"""Versions of installed libraries, whatever the name of the distribution that has brought them."""

import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distributions, version

# Libraries with several distributions, in the order of the search; other libraries are only looked up by their name.
_DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "keras": ("keras", "keras-nightly"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "pyspark": ("pyspark", "pyspark-client"),  # PySpark without its JVM, for sessions of Spark Connect
    "tensorflow": (
        *("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-cpu-aws", "tensorflow-macos"),
        *("tensorflow-rocm", "intel-tensorflow", "tf-nightly", "tf-nightly-cpu"),
    ),
    "tf-keras": ("tf-keras", "tf-keras-nightly"),
    "xgboost": ("xgboost", "xgboost-cpu"),
}
_LIBRARIES = {name: library for library, names in _DISTRIBUTIONS.items() for name in names}


def library_version(library: str) -> str:
    """Return the installed version of a library.

    Raises:
        PackageNotFoundError: No distribution of it is installed.
    """
    return version(distribution_of(library))


def distribution_of(library: str) -> str:
    """Return the name of the installed distribution of a library, such as ``tensorflow-cpu`` for ``tensorflow``.

    Raises:
        PackageNotFoundError: None is installed.
    """
    for name in _DISTRIBUTIONS.get(library, (library,)):
        with suppress(PackageNotFoundError):
            version(name)
            return name
    found = _distribution_with(library.replace("-", "_")) if library in _DISTRIBUTIONS else None
    if found is None:
        raise PackageNotFoundError(library)
    return found


def library_of(distribution: str) -> str:
    """Return the library of a distribution, by its normalised name (PEP 503)."""
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    return _LIBRARIES.get(name, name)


def _distribution_with(module: str) -> str | None:
    """Return the distribution whose list of files has a module: a vendor's build has a name of its own."""
    line = f"\n{module}/__init__.py,"
    for one in distributions():
        if line in f"\n{one.read_text('RECORD') or ''}":
            return str(one.metadata["Name"])
    return None
