"""Figures and tables as HTML that stands alone, for notebooks and pages."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirrorspark.pages.guarded import reason_of
from mirrorspark.pages.numbers import in_digits

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# The one style of all that notebooks show. Its ink is the notebook's own and its lines are translucent, so that it fits
# any theme: an output does not know whether its notebook is dark. The colours have a contrast of about 4:1 on white and
# on dark grounds, and mark words that say the same.
BLUE = "#2f7fd0"
ORANGE = "#d0661a"
_STYLE = """
.mirrorspark{line-height:1.45;max-width:76em}
.mirrorspark p,.mirrorspark h4{margin:.3em 0}
.mirrorspark h4{font-size:1.05em}
.mirrorspark .quiet{opacity:.75}
.mirrorspark .scroll{overflow-x:auto}
.mirrorspark table{border-collapse:collapse;table-layout:auto;margin:.5em 0;border:0;font-variant-numeric:tabular-nums}
.mirrorspark table th,.mirrorspark table td{padding:.2em .8em .2em 0;text-align:left;vertical-align:top;border:0;
border-bottom:1px solid rgba(128,128,128,.3);white-space:normal;max-width:60em;overflow-wrap:anywhere}
.mirrorspark table thead th{font-weight:600;white-space:nowrap}
.mirrorspark table .number{text-align:right;white-space:nowrap;padding-left:.8em}
.mirrorspark .error,.mirrorspark .warning,.mirrorspark .good,.mirrorspark .note,.mirrorspark .name{font-weight:600}
.mirrorspark .error{color:#dc4040}.mirrorspark .warning{color:#a86f00}.mirrorspark .good{color:#0f8f5f}
.mirrorspark .note{color:#2f7fd0}
.mirrorspark code,.mirrorspark pre{font-size:.95em;background:none;color:inherit;padding:0;overflow-wrap:anywhere}
.mirrorspark pre{white-space:pre-wrap;margin:.5em 0}
.mirrorspark summary{cursor:pointer}
"""


# A text of a table may be a document.
_CELL_CHARACTERS = 80


def panel_html(*parts: str) -> str:
    """Return markup as a notebook shows it, with the style of all our outputs."""
    return f'<div class="mirrorspark"><style>{_STYLE}</style>{"".join(parts)}</div>'


def paragraph_html(text: str, *, quiet: bool = False) -> str:
    """Return a text as a paragraph; ``quiet`` for what is said beside."""
    style = ' class="quiet"' if quiet else ""
    return f"<p{style}>{html.escape(text)}</p>"


def heading_html(text: str) -> str:
    """Return a heading."""
    return f"<h4>{html.escape(text)}</h4>"


def details_html(summary: str, content: str) -> str:
    """Return markup that is folded behind its summary."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def rows_html(head: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Collection[int] = ()) -> str:
    """Return rows of texts as a table.

    Args:
        head: Names of the columns; without them the table has no head.
        rows: A cell per column, which is escaped; a :class:`Marked` has a style.
        numbers: Columns of numbers, which are aligned at their right.
    """
    style = [' class="number"' if column in numbers else "" for column in range(max(map(len, [head, *rows])))]
    top = "".join(f"<th{of}>{html.escape(name)}</th>" for of, name in zip(style, head, strict=False))
    body = "".join(
        f"<tr>{''.join(f'<td{of}>{_cell(cell)}</td>' for of, cell in zip(style, row, strict=False))}</tr>"
        for row in rows
    )
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{thead}<tbody>{body}</tbody></table></div>'


def bar_html(share: float) -> str:
    """Return a bar that is filled to a share from 0 to 1."""
    around = (
        "display:inline-block;vertical-align:middle;width:14em;max-width:100%;height:.6em;border-radius:.3em;"
        "background:rgba(128,128,128,.3)"
    )
    filled = f"width:{100 * share:.0f}%;height:100%;border-radius:.3em;background:{BLUE}"
    return f'<div style="{around}"><div style="{filled}"></div></div>'


@dataclass(frozen=True)
class Marked:
    """A text of a table in a style of its own: ``error``, ``warning``, ``note``, ``good``, ``name`` or ``quiet``."""

    text: str
    style: str


def findings_html(findings: Sequence[Mapping[str, str]]) -> str:
    """Return findings about data as a table: ``severity``, ``column`` and ``sentence`` of each."""
    rows = [
        (
            Marked(str(finding["severity"]), str(finding["severity"])),
            finding["column"] or "dataset",
            finding["sentence"],
        )
        for finding in findings
    ]
    return rows_html(("", "column", "finding"), rows)


def figure_html(figure: Figure, name: str) -> str:
    """Return the figure as an image in the markup; ``name`` is what readers without images get."""
    content = io.BytesIO()
    try:
        figure.savefig(content, dpi=90, format="png")
    except Exception as error:  # The page has more than this picture, and says that it is missing.
        return paragraph_html(f"The picture '{name}' is missing: {reason_of(error)}.", quiet=True)
    encoded = base64.b64encode(content.getvalue()).decode()
    # White, since the figure's ink is dark whatever the page's ground.
    style = "max-width:100%;background:#fff;border-radius:6px"
    return f'<img alt="{html.escape(name)}" style="{style}" src="data:image/png;base64,{encoded}">'


def table_html(table: pd.DataFrame, *, index: bool = False) -> str:
    """Return the table as markup with numbers of four decimals, or of four digits if they are very small or large."""
    names = [str(name) for name in table.columns]
    cells = [[_value(value) for value in row] for row in table.itertuples(index=False, name=None)]
    # Texts are read from their beginning, numbers compared from their end.
    numbers = [place for place, kind in enumerate(table.dtypes) if kind.kind in "iuf"]
    if not index:
        return rows_html(names, cells, numbers=numbers)
    rows = [[Marked(str(name), "name"), *row] for name, row in zip(table.index, cells, strict=True)]
    return rows_html(["", *names], rows, numbers=[place + 1 for place in numbers])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else _number(value)
    text = "" if value is None else str(value)
    return text if len(text) <= _CELL_CHARACTERS else f"{text[:_CELL_CHARACTERS]} …"


def _cell(value: Any) -> str:
    if isinstance(value, Marked):
        return f'<span class="{value.style}">{html.escape(value.text)}</span>'
    return html.escape(str(value))


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else in_digits(value)
