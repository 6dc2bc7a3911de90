"""Settings of the lifecycle from files: dataclasses, with errors that name file, field and remedy."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from mirrorspark.storage import likely_meant, one_line

Settings = TypeVar("Settings")


def settings_of(
    cls: type[Settings], values: Mapping[str, Any], where: str, error_class: type[Exception], also: tuple[str, ...] = ()
) -> Settings:
    """Return settings from their plain form.

    Args:
        cls: A dataclass.
        values: Fields as YAML has them.
        where: Names the file in errors.
        error_class: Class of the error.
        also: Fields of the file that are read elsewhere, for the remedy.

    Raises:
        error_class: A field is unknown, or its value makes no sense.
    """
    known = [*(each.name for each in fields(cls)), *also]  # type: ignore[arg-type]
    if unknown := sorted(map(str, set(values) - set(known))):
        remedy = likely_meant(unknown, known, otherwise=f"known are {known}")
        raise error_class(f"{where} sets unknown fields {unknown}; {remedy}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "settings")
    try:
        built: Settings = parser.instantiate(parser.parse_object({"settings": dict(values)})).settings
    except (ArgumentError, ValueError, TypeError) as error:
        message = error.message if isinstance(error, ArgumentError) and error.message else one_line(error)
        raise error_class(f"{where}: {' '.join(message.split()).replace('settings.', '')}") from error
    return built
