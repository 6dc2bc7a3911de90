"""Flags to configuration: every field of ``RunConfig`` is a flag of the same name, a recipe fills in the rest."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionYesNo, ArgumentParser

from training.config import ConfigError, RunConfig, TrainingConfig, load_recipe

_FIRST_FLAGS = (
    "workers",
    "recipe",
    "data",
    "output",
    "tracking_uri",
    "master",
    "epochs",
    "resume",
    "dry_run",
    "summary",
)

# Of a misspelt flag to the one that is meant, from 0 to 1.
_LIKENESS = 0.75
_IN_WORDS = {int: "a whole number", float: "a number"}


class _Parser(ArgumentParser):
    """Says what is wrong in one line; jsonargparse would print the whole usage above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        raise ConfigError(f"{_wrong_value(message) or message}{self._meant(message)} (see --help)") from ex

    def _meant(self, message: str) -> str:
        """Return which flags are like those that there are not."""
        if not message.startswith("unrecognized arguments:"):
            return ""
        flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        likely = [found for flag in flags for found in difflib.get_close_matches(flag, known, n=1, cutoff=_LIKENESS)]
        return f"; did you mean {' and '.join(dict.fromkeys(likely))}?" if likely else ""


def _wrong_value(message: str) -> str | None:
    """Return in our words what jsonargparse says of a value of another type, in which it names Python's types."""
    found = re.match(r'Parser key "(\w+)": .*(?:Got|Given) value: ?(.*)$', message)
    if found is None:
        return None
    name, value = found.groups()
    kinds = [kind for kind in _alternatives(get_type_hints(RunConfig)[name]) if kind is not type(None)]
    if any(get_origin(kind) is Literal for kind in kinds):
        return f"{name} '{value}' is unknown; use one of {[one for kind in kinds for one in get_args(kind)]}"
    if len(kinds) == 1 and kinds[0] in _IN_WORDS:
        return f"{name} is '{value}'; use {_IN_WORDS[kinds[0]]}"
    return None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def parse(arguments: Sequence[str]) -> RunConfig:
    """Return the checked configuration.

    The recipe's values stand under the flags, so its name is read first.

    Raises:
        ConfigError: An unknown recipe or flag, a value of the wrong type, or values that contradict each other.
        SystemExit: ``--help`` was asked for.
    """
    parser = _build_parser()
    recipe = load_recipe(_recipe(arguments))
    try:
        # Defaults are not checked, parsed values are.
        parser.set_defaults(parser.parse_object(recipe).as_dict())
    except ConfigError as error:
        raise ConfigError(f"recipe '{recipe['recipe']}': {error}") from error
    values = parser.parse_args(list(arguments)).as_dict()
    return RunConfig(**{knob.name: values[knob.name] for knob in dataclasses.fields(RunConfig)})


def summary_file(arguments: Sequence[str]) -> str | None:
    """Return what ``--summary`` names, for arguments that :func:`parse` refuses as well."""
    return _first_look(arguments, "--summary", None)


def _recipe(arguments: Sequence[str]) -> str:
    return _first_look(arguments, "--recipe", RunConfig.recipe) or RunConfig.recipe


def _first_look(arguments: Sequence[str], flag: str, default: str | None) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # A flag without its value is left for the full parser to complain of.
    parser.add_argument(flag, dest="value", nargs="?", default=default, const=default)
    value: str | None = parser.parse_known_args(list(arguments))[0].value
    return value


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="mirrorspark",
        allow_abbrev=False,
        description="Convert a table with Spark, train on several workers, register the model and score with it.",
        epilog="The model's settings are flags too, for example --model.embedding_dim=16.",
    )
    hints = get_type_hints(RunConfig)
    docstrings = (parse_docstring(kind.__doc__ or "") for kind in (TrainingConfig, RunConfig))
    help_by_field = {entry.arg_name: entry.description for docstring in docstrings for entry in docstring.params}
    fields = {knob.name: knob for knob in dataclasses.fields(RunConfig)}
    for name in (*_FIRST_FLAGS, *(name for name in fields if name not in _FIRST_FLAGS)):
        flag = f"--{name.replace('_', '-')}"
        help_text = re.sub(r"``", "", help_by_field[name] or "")
        if name == "workers":
            parser.add_argument(flag, type=_workers, default=_default(fields[name]), help=help_text)
        elif hints[name] is bool:
            parser.add_argument(flag, action=ActionYesNo(no_prefix="no-"), default=fields[name].default, help=help_text)
        else:
            parser.add_argument(flag, type=hints[name], default=_default(fields[name]), help=help_text)
    return parser


def _workers(text: str | int) -> str | int:
    # As it is: jsonargparse would read it as YAML, where 2:4 is the number 124 (to base 60).
    return text


def _default(knob: dataclasses.Field[Any]) -> Any:
    return knob.default if knob.default_factory is dataclasses.MISSING else knob.default_factory()
