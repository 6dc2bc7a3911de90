"""The architectures by name. A new one is a file beside this one and a line here."""

import dataclasses
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, get_type_hints

from data_pipelines.features import FeatureSpec
from models.settings import ModelSettingsError

ARCHITECTURES: Mapping[str, str] = {
    "lstm_retrieval": "models.lstm_retrieval",
    "multi_field": "models.multi_field",
    "multi_label": "models.multi_label",
    "two_tower": "models.two_tower",
    "wide_deep": "models.wide_deep",
    "youtube_dnn": "models.youtube_dnn",
}


def architecture(name: str) -> ModuleType:
    """Return the module of an architecture: ``TASK``, ``Settings``, ``build`` and ``predict``.

    Args:
        name: A name of the catalog, or the dotted path of a module of one's own.

    Raises:
        ModelSettingsError: There is no such architecture.
    """
    path = ARCHITECTURES.get(name, name)
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        raise ModelSettingsError(
            f"model '{name}' is unknown; use one of {sorted(ARCHITECTURES)} or the dotted path of a module"
        )
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(f"{error.name}.")):
            raise ModelSettingsError(
                f"model '{name}': there is no module {path}; install it or put it on PYTHONPATH"
            ) from error
        raise
    missing = [part for part in ("TASK", "Settings", "build", "predict") if not hasattr(module, part)]
    if missing:
        raise ModelSettingsError(
            f"model '{name}': module {path} lacks {missing}; see models/multi_field.py for an example"
        )
    return module


def settings(name: str, options: Mapping[str, Any]) -> Any:
    """Return the checked ``Settings`` of architecture ``name``.

    Raises:
        ModelSettingsError: An unknown option or a value that cannot work.
    """
    kind = architecture(name).Settings
    known = get_type_hints(kind)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ModelSettingsError(f"model '{name}' has no setting {unknown}; use {sorted(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for field in dataclasses.fields(kind):
        expected = type(field.default)
        value = values.get(field.name, field.default)
        # A bool is an int to isinstance, and a whole number is a fine float.
        fits = type(value) in ((int, float) if expected is float else (expected,))
        if not fits:
            raise ModelSettingsError(
                f"model '{name}': setting {field.name} is {value!r}; it must be of type {expected.__name__}"
            )
    return kind(**values)


def check_features(name: str, options: Mapping[str, Any], spec: FeatureSpec) -> None:
    """Let architecture ``name`` look at the features that it is to be built for, before anything is done with them.

    Raises:
        ModelSettingsError: It cannot be built for them, as its ``check_features`` says; most take any features.
    """
    check = getattr(architecture(name), "check_features", None)
    if check is not None:
        check(settings(name, options), spec)
