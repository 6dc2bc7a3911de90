"""The architectures by name. CONTRIBUTING.md (add a model) lists the files, tests and pages of a new one."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, get_type_hints

from mirrorspark.data_pipelines.features import FeatureSpec
from mirrorspark.models import own_model
from mirrorspark.models.classical import RECOMMENDERS, FittedArchitecture
from mirrorspark.models.settings import ModelSettingsError, checked_settings
from mirrorspark.storage import meant

ARCHITECTURES: Mapping[str, str] = {
    "lstm_retrieval": "mirrorspark.models.lstm_retrieval",
    "multi_class": "mirrorspark.models.multi_class",
    "multi_field": "mirrorspark.models.multi_field",
    "multi_label": "mirrorspark.models.multi_label",
    "ordinal": "mirrorspark.models.ordinal",
    "regression": "mirrorspark.models.regression",
    "sasrec": "mirrorspark.models.sasrec",
    "two_tower": "mirrorspark.models.two_tower",
    "wide_deep": "mirrorspark.models.wide_deep",
    "youtube_dnn": "mirrorspark.models.youtube_dnn",
}

# Name of gradient boosting in an exported model. It cannot be trained here (models.boosted_trees).
BOOSTED_TREES = "hist_gradient_boosting"
# Leaves of such a tree, which are the bits of a number.
MOST_LEAVES = 31
# Name of the weighted mean of several models' predictions, in an exported model (models.blend).
BLEND = "blend"
# Name of the trained network among the models that it is compared with.
NETWORK = "network"


def names() -> list[str]:
    """Return the names of all architectures."""
    return sorted({*ARCHITECTURES, *RECOMMENDERS})


Architecture = ModuleType | own_model.OwnArchitecture | FittedArchitecture


def architecture(name: str) -> Architecture:
    """Return an architecture: ``TASK``, ``Settings``, ``build`` and ``predict``.

    It is a module, or for a model of the user's own and a classical recommender an object with the same names.

    Args:
        name: A name of the catalog, the dotted path of the user's own module, or the name that
            :func:`models.own_model.own_model` gave.

    Raises:
        ModelSettingsError: There is no such architecture.
    """
    if name in own_model.NAMES:
        return own_model.architecture(name)
    if name in RECOMMENDERS:
        return FittedArchitecture(name)
    path = ARCHITECTURES.get(name, name)
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        hint = meant(name, names())
        raise ModelSettingsError(
            f"model '{name}' is unknown{hint}; use one of {names()} or the dotted path of a module"
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
        ModelSettingsError: An unknown option or an invalid value.
    """
    return checked_settings(name, architecture(name).Settings, options)


def setting_names(name: str) -> set[str]:
    """Return ``name`` and the names of the settings of architecture ``name``."""
    return {"name", *get_type_hints(architecture(name).Settings)}


def reads_items(name: str) -> bool:
    """Return whether the candidates of an architecture may have features."""
    return bool(getattr(architecture(name), "READS_ITEMS", False))


def label_kind(name: str) -> str | None:
    """Return the kind of label that an architecture needs, if it is another one than that of its task."""
    kind: str | None = getattr(architecture(name), "LABEL", None)
    return kind


def learns_histories(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether architecture ``name`` learns the items of the histories as candidates, too.

    Raises:
        ModelSettingsError: An unknown option or an invalid value.
    """
    learns = getattr(architecture(name), "learns_histories", None)
    return learns is not None and bool(learns(settings(name, options)))


def check_features(name: str, options: Mapping[str, Any], spec: FeatureSpec) -> None:
    """Check early whether architecture ``name`` can be built for these features.

    Raises:
        ModelSettingsError: The architecture's own ``check_features`` rejects them; most architectures accept any.
    """
    check = getattr(architecture(name), "check_features", None)
    if check is not None:
        check(settings(name, options), spec)


def check_calibration(name: str, kind: str) -> None:
    """Check that the probabilities of architecture ``name`` can be calibrated by ``kind``.

    Raises:
        ModelSettingsError: It predicts no probabilities, does not give its ``logits``, or the kind is for other labels.
    """
    if kind == "none":
        return
    given = architecture(name)
    if given.TASK not in ("binary", "multi_class", "multi_label"):
        raise ModelSettingsError(
            f"calibration '{kind}' is for probabilities, and model '{name}' predicts none; leave calibration out"
        )
    missing = [part for part in ("logits", "probabilities") if not hasattr(given, part)]
    if missing:
        raise ModelSettingsError(
            f"calibration '{kind}' needs the functions logits and probabilities, and model '{name}' lacks {missing}; "
            f"leave calibration out, or see models/multi_field.py for an example"
        )
    if kind == "centroids" and given.TASK != "multi_label":
        raise ModelSettingsError(
            f"calibration 'centroids' is for several labels, and model '{name}' predicts one; use temperature "
            f"or isotonic"
        )
    if kind == "isotonic" and given.TASK == "multi_class":
        raise ModelSettingsError(
            f"calibration 'isotonic' maps one probability, and those of model '{name}' belong together; use temperature"
        )
