"""Templates of the pages that we write, which stand alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def page_template(file: Path, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """Return a template whose values are escaped, and in which an unknown name is an error.

    It may include ``page_style.jinja``, the style that pages share.
    """
    environment = Environment(
        loader=FileSystemLoader([file.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(file.name)
