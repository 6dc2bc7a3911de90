"""The flags of ``mirrorspark train``: one for every field of ``RunConfig``; a recipe fills in the rest."""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

from mirrorspark.models import catalog
from mirrorspark.storage import likely_meant, meant
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.configuration.fields import GROUPS, alternatives, choices_of, help_texts, type_in_words
from mirrorspark.training.configuration.recipe import load_recipe, read_yaml

_MOST_USED = (
    *("recipe", "data", "workers", "master", "output"),
    *("tracking_uri", "epochs", "resume", "dry_run", "summary"),
)

_METAVARS = {int: "N", float: "X"}
_HELP_COLUMN = 40
_LONGEST_DEFAULT_SHOWN = 30
_MODE = "mirrorspark"


class _Parser(ArgumentParser):
    """A parser that reports an error in one line; jsonargparse would print the whole usage above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.split())
        raise ConfigError(f"{_wrong_value(message) or message}{self._meant(message)} (see --help)") from ex

    def _meant(self, message: str) -> str:
        """Return a suggestion of known flags that resemble the unknown ones."""
        if not message.startswith("unrecognized arguments:"):
            return ""
        flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        question = likely_meant(flags, known, otherwise="")
        return f"; {question}" if question else ""


class _Formatter(DefaultHelpFormatter):
    """A help formatter that shows only short defaults; jsonargparse would show Python's types, and whole queries."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=_HELP_COLUMN)

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        is_plain = isinstance(default, str | int | float) and not isinstance(default, bool)
        is_shown = is_plain and default != argparse.SUPPRESS and 0 < len(str(default)) <= _LONGEST_DEFAULT_SHOWN
        return f"{action.help or ''}{' (default: %(default)s)' if is_shown else ''}"


def flag_groups() -> Mapping[str, Sequence[str]]:
    """Return the fields by subject, in the order of ``--help``; the most used ones come first."""
    subjects = {
        title: [each.name for each in fields if each.name not in _MOST_USED] for title, fields in GROUPS.items()
    }
    return {"most used": _MOST_USED, **subjects}


def parse(arguments: Sequence[str]) -> RunConfig:
    """Return the checked configuration.

    Flags override the recipe's values, so the recipe's name is read first.

    Raises:
        ConfigError: An unknown recipe or flag, a value of the wrong type, or values that contradict each other.
        SystemExit: ``--help`` was asked for.
    """
    parser = _build_parser()
    for flag in ("--recipe", "--name"):
        if _first_look(arguments, flag, None) == "":
            raise ConfigError(f"{flag} is empty; give a name, or leave it out")
    recipe = load_recipe(_recipe(arguments))
    try:
        # Defaults are not checked, parsed values are.
        parser.set_defaults(parser.parse_object(recipe).as_dict())
    except ConfigError as error:
        raise ConfigError(f"recipe '{recipe['recipe']}': {error}") from error
    values = parser.parse_args(list(arguments)).as_dict()
    values["model"] = _without_others(values["model"], recipe.get("model", {}))
    return RunConfig(**{each.name: values[each.name] for each in dataclasses.fields(RunConfig)})


def _without_others(model: Mapping[str, Any], of_recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model without the recipe's settings of the recipe's architecture, if it has another one."""
    name = model.get("name")
    if name == of_recipe.get("name") or name not in catalog.names():
        return dict(model)
    known = catalog.setting_names(name)
    return {key: value for key, value in model.items() if key in known or of_recipe.get(key) != value}


def summary_file(arguments: Sequence[str]) -> str | None:
    """Return the value of ``--summary``, even for arguments that :func:`parse` rejects."""
    return _first_look(arguments, "--summary", None)


def _recipe(arguments: Sequence[str]) -> str:
    return _first_look(arguments, "--recipe", RunConfig.recipe) or RunConfig.recipe


def _first_look(arguments: Sequence[str], flag: str, default: str | None) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # The full parser reports a flag without its value.
    parser.add_argument(flag, dest="value", nargs="?", default=default, const=default)
    value: str | None = parser.parse_known_args(list(arguments))[0].value
    return value


def _build_parser() -> _Parser:
    set_loader(_MODE, _loaded, (yaml.YAMLError,))
    parser = _Parser(
        parser_mode=_MODE,
        prog="mirrorspark train",
        usage="mirrorspark train [--recipe NAME|FOLDER] [--data FOLDER] [--workers N] [any other flag]",
        allow_abbrev=False,
        formatter_class=_Formatter,
        description="Convert a table with Spark, train on several workers, register the model and score with it.",
        epilog="A setting of the model is a flag, too: --model.embedding_dim 16. The defaults are those of the recipe.",
    )
    hints, help_by_name = get_type_hints(RunConfig), help_texts()
    fields = {each.name: each for each in dataclasses.fields(RunConfig)}
    for title, names in flag_groups().items():
        group = parser.add_argument_group(title)
        for name in names:
            flag, hint, shown = f"--{name.replace('_', '-')}", hints[name], help_by_name[name]
            if hint is bool:
                group.add_argument(flag, action=ActionYesNo(no_prefix="no-"), default=fields[name].default, help=shown)
            else:
                # jsonargparse would read workers as YAML, where 2:4 is the number 124 (to base 60).
                kind = _as_it_is if name == "workers" else hint
                names_of = (flag, "--remote") if name == "master" else (flag,)
                group.add_argument(
                    *names_of, type=kind, default=_default(fields[name]), help=shown, metavar=_metavar(hint)
                )
    return parser


def _loaded(text: str) -> Any:
    """Return a value as jsonargparse reads it, except that ``no`` and ``yes`` alone and as keys are text.

    Texts of a recipe come by here, too: of ``positive: "yes"`` jsonargparse would make ``True``.
    """
    value = get_loader("yaml")(text)
    if isinstance(value, bool) and text.strip().lower() not in ("true", "false"):
        return text
    return read_yaml(text) if _has_boolean_keys(value) else value


def _has_boolean_keys(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(key, bool) or _has_boolean_keys(of) for key, of in value.items())


def _as_it_is(text: str | int) -> str | int:
    return text


def _metavar(hint: Any) -> str:
    if choices := choices_of(hint):
        return "|".join(choices)
    return next((_METAVARS[kind] for kind in alternatives(hint) if kind in _METAVARS), "VALUE")


def _wrong_value(message: str) -> str | None:
    """Return our own message for a value of the wrong type; jsonargparse's names Python's types."""
    found = re.match(r'Parser key "(\w+)": .*(?:Got|Given) value: ?(.*)$', message)
    if found is None:
        return None
    name, value = found.groups()
    hint = get_type_hints(RunConfig)[name]
    if name == "model":
        return f"model is '{value}'; give its name as --model.name {value}"
    if choices := choices_of(hint):
        return f"{name} '{value}' is unknown{meant(value, choices)}; use one of {choices}"
    kinds = [kind for kind in alternatives(hint) if kind is not type(None)]
    is_plain = len(kinds) == 1 and isinstance(kinds[0], type)
    return f"{name} is '{value}'; use {type_in_words(kinds[0])}" if is_plain else None


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
