"""Blocks that pages and notebooks are made of: headings, tables, findings, figures, tiles and cards.

A block is :class:`Markup`. Blocks escape every text that is not markup, so no value becomes an element.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from mirrorspark.pages.guarded import reason_of
from mirrorspark.pages.numbers import fixed_number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# A text of a table may be a document.
_CELL_CHARACTERS = 80
# A longer word is a name or an address, and may be broken.
_WORD_CHARACTERS = 18
_FIGURE_DOTS_PER_INCH = 90


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a text.

    Attributes:
        style: ``error``, ``warning``, ``note``, ``good``, ``name`` or ``quiet``.
        below: Small lines below the text.
        link: Address to which the text leads.
        bar: Share from 0 to 1 of a bar below the text, in the colour of the style.
        hint: Text that appears under the pointer.
    """

    text: str | Markup
    style: str = ""
    below: Sequence[str | Cell] = ()
    link: str = ""
    bar: float | None = None
    hint: str = ""


def element(name: str, *content: str | Markup, **attributes: str) -> Markup:
    """Return an element. Attributes without a value are left out; ``class_`` and ``data_name`` are named for HTML."""
    marked = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items() if value
    )
    return Markup(f"<{name}{marked}>{''.join(map(escape, content))}</{name}>")  # noqa: S704 - its parts are escaped


def joined(parts: Iterable[str | Markup], between: str = "") -> Markup:
    """Return texts and markup as one piece of markup."""
    return escape(between).join(parts)


def heading_html(text: str) -> Markup:
    """Return a heading within a notebook's output or a card."""
    return element("h4", text)


def paragraph_html(*parts: str | Markup, style: str = "") -> Markup:
    """Return a paragraph."""
    return element("p", *parts, class_=style)


def remark_html(*parts: str | Markup) -> Markup:
    """Return a paragraph in quiet ink."""
    return paragraph_html(*parts, style="quiet")


def details_html(summary: str, *content: str | Markup, is_open: bool = False) -> Markup:
    """Return markup that is folded behind its summary."""
    return element("details", element("summary", summary), *content, open="open" if is_open else "")


def section_html(title: str | Markup, *content: str | Markup, name: str = "") -> Markup:
    """Return a section of a page; links lead to ``#name``."""
    return element("section", element("h2", title), *content, id=name)


def verdict_html(text: str, style: str = "") -> Markup:
    """Return the page's main sentence, in the style of a :class:`Cell`."""
    return element("p", text, class_=f"verdict {style}".strip())


def tiles_html(tiles: Iterable[tuple[str, str | Cell]]) -> Markup:
    """Return names with a number or word each, in large letters."""
    cells = [(name, cell if isinstance(cell, Cell) else Cell(cell)) for name, cell in tiles]
    return element(
        "div",
        *(
            element("div", element("b", cell.text, class_=cell.style), element("span", name), class_="card")
            for name, cell in cells
        ),
        class_="tiles",
    )


def card_html(*content: str | Markup, title: str | Markup = "", wide: bool = False, **attributes: str) -> Markup:
    """Return content in a frame.

    Args:
        content: Blocks.
        title: Its title.
        wide: Whether the card takes the whole width among :func:`cards_html`.
        attributes: Attributes of the element; see :func:`element`.
    """
    kinds = " ".join(filter(None, ["card", "wide" if wide else "", attributes.pop("class_", "")]))
    return element("article", *([element("h3", title)] if title else []), *content, class_=kinds, **attributes)


def cards_html(cards: Iterable[Markup], *, least: int = 420) -> Markup:
    """Return cards next to each other, as many in a row as fit; a card is at least ``least`` pixels wide."""
    return element("div", *cards, class_="cards", style=f"--least:{least}px")


def facts_html(facts: Iterable[tuple[str, str]]) -> Markup:
    """Return names and their values, a line each."""
    return element("dl", *(element("dt", name) + element("dd", value) for name, value in facts))


def series_html(number: int, name: str) -> Markup:
    """Return the name of a group of rows, with the colour that charts have for its number."""
    return element("span", name, class_="series", style=f"--colour:var(--series-{number})")


def bar_html(share: float, style: str = "") -> Markup:
    """Return a bar that is filled to a share from 0 to 1."""
    return element("i", class_=f"bar {style}".strip(), style=f"--share:{100 * share:.1f}%")


def rows_html(
    head: Sequence[str | Markup], rows: Sequence[Sequence[Any]], *, numbers: Collection[int] = (), name: str = ""
) -> Markup:
    """Return rows of texts as a table.

    Args:
        head: Names of the columns; without them the table has no head.
        rows: A text, number or :class:`Cell` per column.
        numbers: Columns of numbers, which are aligned at their right.
        name: Class of the table.
    """
    style = ["number" if column in numbers else "" for column in range(max(map(len, [head, *rows])))]
    top = [
        element("th", name, scope="col", class_=_cell_class(of, name)) for of, name in zip(style, head, strict=False)
    ]
    body = [
        element(
            "tr",
            *(element("td", _cell(cell), class_=_cell_class(of, cell)) for of, cell in zip(style, row, strict=False)),
        )
        for row in rows
    ]
    thead = element("thead", element("tr", *top)) if head else ""
    return element("div", element("table", thead, element("tbody", *body), class_=name), class_="scroll")


def findings_html(
    findings: Sequence[Mapping[str, str]], *, links: Mapping[str, str] | None = None, are_of_one_column: bool = False
) -> Markup:
    """Return findings about data as a table.

    Args:
        findings: ``severity``, ``column`` and ``sentence`` of each, and ``check`` where it is known.
        links: Addresses by column.
        are_of_one_column: Whether the column need not be named.
    """
    rows = [
        (
            Cell(str(finding["severity"]), str(finding["severity"])),
            Cell(
                finding["column"] or "dataset",
                link=(links or {}).get(finding["column"], ""),
                below=[finding["check"]] if "check" in finding else (),
            ),
            f"{finding['sentence'][:1].upper()}{finding['sentence'][1:]}.",
        )
        for finding in findings
    ]
    if are_of_one_column:
        return rows_html((), [(severity, sentence) for severity, _, sentence in rows], name="findings")
    return rows_html(("", "column", "finding"), rows, name="findings")


def figure_html(figure: Figure, name: str) -> Markup:
    """Return the figure as markup; ``name`` is its text for readers without images.

    Our own figures take the colours of the page around them. Any other figure is an image on its own ground.
    """
    from mirrorspark.pages.figures import figure_svg, has_page_colours

    try:
        if has_page_colours(figure):
            return element("div", figure_svg(figure, name), class_="figure")
        content = io.BytesIO()
        figure.savefig(content, dpi=_FIGURE_DOTS_PER_INCH, format="png")
    except Exception as error:  # The page has more than this picture, and says that it is missing.
        return remark_html(f"The picture '{name}' is missing: {reason_of(error)}.")
    encoded = base64.b64encode(content.getvalue()).decode()
    # White, since its ink is dark whatever the page's ground.
    style = "max-width:100%;background:#fff;border-radius:6px"
    return Markup('<img alt="{}" style="{}" src="data:image/png;base64,{}">').format(name, style, encoded)


def table_html(table: pd.DataFrame, *, index: bool = False) -> Markup:
    """Return the table as markup with numbers of four decimals, or of four digits if they are very small or large."""
    names = [str(name) for name in table.columns]
    cells = [[_value(value) for value in row] for row in table.itertuples(index=False, name=None)]
    # Texts are read from their beginning, numbers compared from their end.
    numbers = [place for place, kind in enumerate(table.dtypes) if kind.kind in "iuf"]
    if not index:
        return rows_html(names, cells, numbers=numbers)
    rows = [[Cell(str(name), "name"), *row] for name, row in zip(table.index, cells, strict=True)]
    return rows_html(["", *names], rows, numbers=[place + 1 for place in numbers])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else fixed_number(value)
    text = "" if value is None else str(value)
    return text if len(text) <= _CELL_CHARACTERS else f"{text[:_CELL_CHARACTERS]} …"


def _cell_class(style: str, content: Any) -> str:
    """Return the class of a cell, ``long`` among it where a word may have to be broken."""
    text = content.text if isinstance(content, Cell) else content
    words = [] if isinstance(text, Markup) else str(text).split()
    return f"{style} long".strip() if max(map(len, words), default=0) > _WORD_CHARACTERS else style


def _cell(value: Any) -> str | Markup:
    if not isinstance(value, Cell):
        return value if isinstance(value, Markup) else str(value)
    is_plain = not value.style and not value.hint
    text = value.text if is_plain else element("span", value.text, class_=value.style, title=value.hint)
    return joined(
        [
            element("a", text, href=value.link) if value.link else text,
            *(element("small", _cell(line)) for line in value.below),
            "" if value.bar is None else bar_html(value.bar, value.style),
        ]
    )
