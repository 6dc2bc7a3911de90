"""Writes docs/api.md: every public name with its signature and the first sentence of its docstring."""

import inspect
import re
from pathlib import Path
from typing import Any

import mirrorspark as ms

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

_HEAD = """\
# Python names

`import mirrorspark as ms` gives all of them; each is imported when it is first used. `help(ms.NAME)` shows the whole
docstring. The fields of `ms.TrainingConfig` and `ms.RunConfig` are the flags of [the command
line](command-line.md#flags), with underscores.

`python tools/api_page.py` writes this page.
"""
_MOST_PARAMETERS = 20


def page() -> str:
    """Return the text of the page."""
    parts = [_HEAD]
    for subject, names in ms.SUBJECTS.items():
        parts += [f"\n## {subject}\n\n", *(_entry(name, getattr(ms, name)) for name in names)]
    return "".join(parts)


def _entry(name: str, value: Any) -> str:
    return f"- **`{name}{_signature(value)}`** {_first_sentence(value)}\n"


def _signature(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Exception):
        return ""
    signature = inspect.signature(value)
    if len(signature.parameters) > _MOST_PARAMETERS:
        return "(…)"
    plain = [
        each.replace(annotation=each.empty, default=_Shown.of(each.default)) for each in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))


class _Shown(str):
    """A default as the page shows it: itself where it is short and plain."""

    __slots__ = ()

    @classmethod
    def of(cls, default: Any) -> Any:
        if default is inspect.Parameter.empty:
            return default
        is_plain = default is None or default == () or type(default) in (bool, int, float, str)
        return cls(repr(default) if is_plain else "…")

    def __repr__(self) -> str:
        return str(self)


def _first_sentence(value: Any) -> str:
    text = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.])\s", text)[0].rstrip(":.") + "."
    references = re.sub(r":\w+:`[\w.]*?(\w+)`", r"`\1`", sentence)
    return references.replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
