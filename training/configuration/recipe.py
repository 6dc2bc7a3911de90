"""Recipes: a folder with the settings of a run as YAML, and the query that builds its table."""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mirrorspark.storage import UniqueKeyLoader, likely_meant, meant, read_text
from mirrorspark.training.configuration.fields import GROUPS, ConfigError

RECIPE_FILE = "recipe.yaml"
SQL_FILE = "table.sql"

_TEXT, _BOOLEAN = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that keeps the line breaks of a query."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(_TEXT, text, style="|" if "\n" in text else None),
)


class _Loader(UniqueKeyLoader):
    """A YAML loader that reads whole numbers as YAML 1.2 does, and days and the keys ``no`` and ``yes`` as text.

    In YAML 1.1 ``workers: 2:4`` is the number 124 (to base 60), ``run_date: 2026-01-31`` is not text, and
    ``class_weights: {no: 1, yes: 5}`` has the keys false and true.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the values of a mapping by their keys."""
        for key, _ in node.value:
            if key.tag == _BOOLEAN and key.value.lower() not in ("true", "false"):
                key.tag = _TEXT
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Return a whole number; to base 10 also after a zero, which YAML 1.1 takes for a sign of base 8."""
        text = node.value.replace("_", "")
        return int(text, 16 if "x" in text else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+)$"), [*"-+0123456789"]
)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return settings in the form of a recipe."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, width=120)


def read_yaml(text: str) -> Any:
    """Return the content of a YAML text, read as YAML 1.2 where 1.1 surprises.

    Dates, numbers like ``2:4`` and keys like ``yes`` are text.

    Raises:
        yaml.YAMLError: The text is not valid YAML.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


def without_semicolon(sql: str) -> str:
    """Return a query without the semicolon that many editors put after it."""
    query = sql.rstrip()
    return query.rstrip("; \t\n") + "\n" if query.endswith(";") else sql


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the installation."""
    folders = (entry for entry in resources.files("mirrorspark.recipes").iterdir() if entry.is_dir())
    return sorted(folder.name for folder in folders if folder.joinpath(RECIPE_FILE).is_file())


def recipe_folder(recipe: str) -> Any:
    """Return the folder of a recipe, as a path or a resource: of the installation, or any other."""
    if recipe in recipe_names():  # a folder of that name in the working directory is ./name
        return resources.files("mirrorspark.recipes").joinpath(recipe)
    return Path(recipe)


def load_recipe(recipe: str) -> dict[str, Any]:
    """Return a recipe's settings.

    Args:
        recipe: A name of :func:`recipe_names`, or a folder.

    Raises:
        ConfigError: There is no such recipe, or its file is not a YAML mapping of known fields.
    """
    folder = recipe_folder(recipe)
    if not folder.is_dir():
        names = recipe_names()
        raise ConfigError(f"recipe '{recipe}' is unknown{meant(recipe, names)}; use one of {names}, or a folder's path")
    texts = {}
    for name in (RECIPE_FILE, SQL_FILE):
        if not folder.joinpath(name).is_file():
            raise ConfigError(f"recipe folder {folder} has no {name}; a recipe is a {RECIPE_FILE} and a {SQL_FILE}")
        try:
            texts[name] = read_text(folder.joinpath(name))
        except UnicodeDecodeError as error:
            raise ConfigError(error.reason) from error
    texts[SQL_FILE] = without_semicolon(texts[SQL_FILE])
    try:
        values = read_yaml(texts[RECIPE_FILE])
    except yaml.YAMLError as error:
        raise ConfigError(f"{folder / RECIPE_FILE} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{folder / RECIPE_FILE} must be a mapping of fields to values; see those of {recipe_names()}"
        )
    known = {field.name: field for fields in GROUPS.values() for field in fields}
    unknown = sorted(map(str, set(values) - set(known)))
    if unknown:
        remedy = likely_meant(unknown, sorted(known), otherwise=f"known are {sorted(known)}")
        raise ConfigError(f"{folder / RECIPE_FILE} sets unknown fields {unknown}; {remedy}")
    empty = [name for name, field in known.items() if values.get(name, "") is None and field.default is not None]
    if empty:
        raise ConfigError(
            f"{folder / RECIPE_FILE} gives no value for {empty}; leave the lines out to keep the defaults"
        )
    if isinstance(values.get("tables"), dict):  # a table without columns has those of its file
        values["tables"] = {table: "" if columns is None else columns for table, columns in values["tables"].items()}
    if isinstance(named := values.get("model"), str):
        values["model"] = {"name": named}
    return values | {"recipe": recipe, "sql": texts[SQL_FILE]}
