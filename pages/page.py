"""The frame of self-contained pages: they fetch nothing, and follow the reader's light or dark theme."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup


def page_html(kind: str, title: str, blocks: Iterable[str | Markup], *, script: str = "") -> str:
    """Return a page.

    Args:
        kind: Kind of the page, such as ``Dataset``; in small letters above the title.
        title: The title.
        blocks: The blocks of the page, see :mod:`mirrorspark.pages.blocks`; empty ones are left out.
        script: JavaScript that the page needs; without it no script may run.
    """
    shown = list(filter(None, blocks))
    return _frame().render(kind=kind, title=title, blocks=shown, script=Markup(script))  # noqa: S704 - no value is in it


@cache
def _frame() -> Template:
    """Return the template, in which values are escaped, and an unknown name is an error."""
    source = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(source)
