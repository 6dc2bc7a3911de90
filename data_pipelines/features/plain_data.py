"""Features and labels as the plain data of a specification's YAML and JSON form."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from mirrorspark.data_pipelines.features.kinds import Feature, FeatureSpecError, known_kind
from mirrorspark.storage import meant

_KINDS: Mapping[str, type[Feature]] = {kind.kind: kind for kind in get_args(Feature)}


def feature_from_dict(name: str, options: Any) -> Feature:
    """Return the feature of a name with its kind and options.

    Raises:
        FeatureSpecError: An unknown kind or option, or a value that the kind refuses.
    """
    subject = f"feature '{name}'"
    check_mapping(subject, options)
    kind = known_kind(subject, options.get("kind"), _KINDS)
    given = {key: value for key, value in options.items() if key != "kind"}
    feature: Feature = built(_KINDS[kind], subject, {"name": name} | given)
    return feature


def built(kind: Any, subject: str, options: Any) -> Any:
    """Return an instance of a kind of feature, or of the label, with the given options.

    Args:
        kind: Its dataclass.
        subject: Subject of the message.
        options: The options by name, lists in the place of tuples.

    Raises:
        FeatureSpecError: An option is unknown or missing, or has a value that the kind refuses.
    """
    check_mapping(subject, options)
    known = [option.name for option in dataclasses.fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise FeatureSpecError(f"{subject}: option {unknown} is unknown{meant(str(unknown[0]), known)}; use {known}")
    try:
        # YAML has lists only.
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
    except TypeError as error:
        raise FeatureSpecError(f"{subject}: {error}") from error


def plain(value: Any) -> Any:
    """Return the value of an option as YAML and JSON have it."""
    return list(value) if isinstance(value, tuple) else value


def check_mapping(subject: str, options: Any) -> None:
    """Check that a part of a document is a mapping.

    Raises:
        FeatureSpecError: It is something else.
    """
    if not isinstance(options, Mapping):
        raise FeatureSpecError(f"{subject} is {options!r}; give a mapping, for example {{kind: categorical}}")
