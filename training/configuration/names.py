"""The names of a run, its model, experiment and folder, checked before anything is started."""

import re
from typing import Any

from mirrorspark.storage import file_names
from mirrorspark.training.configuration.fields import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
# A folder's name goes on with a date and an id, and a file that is being written with its own id.
MOST_BYTES = 128


def check_name(name: Any, setting: str = "name", use: str = "it names folders") -> None:
    """Check a name that becomes part of the names of folders and files.

    Raises:
        ConfigError: It cannot.
    """
    _check(name, setting, MOST_BYTES)
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{setting} '{file_names.shown(name)}' must be letters, digits, '.', '_' or '-': {use}")


def is_name(name: str) -> bool:
    """Return True if :func:`check_name` takes a name."""
    return _NAME.fullmatch(name) is not None and file_names.why_unfit(name, MOST_BYTES) is None


def check_experiment(name: Any) -> None:
    """Check the name of an MLflow experiment, which may be a path; None is allowed.

    Raises:
        ConfigError: MLflow's stores will not take it, or it becomes a folder that cannot be made.
    """
    if name is not None:
        _check(name, "experiment")


def check_registry_name(name: Any) -> None:
    """Check the name of a registered model, which may have dots; None is allowed.

    Raises:
        ConfigError: MLflow will not take it.
    """
    if name is None:
        return
    _check(name, "registered_model")
    if re.search(r"[/:]", name) or name.startswith(".."):
        raise ConfigError(f"registered_model '{name}' must be a name without '/' and ':', and not begin with '..'")


def check_output(output: Any) -> None:
    """Check the path of the output folder, which may not exist yet.

    Raises:
        ConfigError: It is on another store, or a part of it cannot be the name of a folder.
    """
    if not isinstance(output, str):
        raise ConfigError(f"output is {output!r}; use a path")
    if "://" in output:
        raise ConfigError(
            f"output '{output}' is on another store; give a folder on a disk that the driver and all executors share"
        )
    if (why := file_names.unfit_folder(output)) is not None:
        raise ConfigError(f"output '{file_names.shown(output)}' cannot be a folder: {why}; give another one")


def _check(name: Any, setting: str, most_bytes: int = file_names.MOST_BYTES) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"{setting} is {name!r}; use a text")
    if (why := file_names.why_unfit(name, most_bytes)) is not None:
        raise ConfigError(f"{setting} '{file_names.shown(name)}' {why}; use another name")
