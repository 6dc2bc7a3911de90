"""Lazy exports: a package offers names of its modules, and imports each module when a name of it is first used.

So ``from mirrorspark.models import catalog`` loads no TensorFlow, and packages may refer to each other.
"""

import ast
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

# TensorFlow reads it when it is imported; 3 leaves out its notes on the machine's GPUs and instructions.
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` (PEP 562) for a package's ``__init__``.

    The exports are the imports under ``if TYPE_CHECKING:`` in the package's own source, so each name and its module
    are written once, where type checkers and editors look for them. ``lazy_loader.attach_stub`` does the same with a
    ``.pyi`` file, which Python cannot read from a zip file on Spark's path.
    """
    homes = _homes(package)
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        try:
            with quiet_tensorflow():
                value = import_module(f"{package}.{name}") if home == package else getattr(import_module(home), name)
        except ImportError as error:
            _require_own_pyspark(error)
            _name_extra(error, f"{package}.{name}")
            raise
        namespace[name] = value
        return value

    return get, lambda: sorted({*namespace, *homes})


def _require_own_pyspark(error: ImportError) -> None:
    """Raise the reason of an import that fails because another PySpark than the installed one comes first."""
    found, name = sys.modules.get("pyspark"), error.name or ""
    if found is None or name.partition(".")[0] != "pyspark":
        return
    from mirrorspark.clear_error import OtherPySparkError  # importing the package loads nothing

    if not isinstance(error, OtherPySparkError):
        raise OtherPySparkError(
            f"PySpark {getattr(found, '__version__', '')} at {found.__path__[0]} has no {name}, and comes before the "
            f"installed one: take it out of PYTHONPATH",
            name=name,
        ) from error


def _name_extra(error: ImportError, what: str) -> None:
    """Raise the error that names the extra of a package that is not installed; the outermost name needs it."""
    from mirrorspark.extras import missing  # importing the package loads nothing

    if (named := missing(error, what)) is not None:
        raise named from error


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Let TensorFlow print no notes if the block imports it, unless the environment has its log level."""
    is_own = _LOG_LEVEL not in os.environ and "tensorflow" not in sys.modules
    if is_own:
        os.environ[_LOG_LEVEL] = "3"
    try:
        yield
    finally:
        if is_own:
            os.environ.pop(_LOG_LEVEL, None)


def _homes(package: str) -> dict[str, str]:
    """Return the module of each exported name; the package itself for an exported module."""
    spec = sys.modules[package].__spec__
    source = spec.loader.get_source(package)  # type: ignore[union-attr] # a source loader, from a folder or a zip file
    return {
        entry.name: node.module or package
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for entry in node.names
    }
