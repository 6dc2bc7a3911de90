"""Figures and tables as HTML that stands alone, for notebooks and pages."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def figure_html(figure: Figure, name: str, *, dots_per_inch: int = 90) -> str:
    """Return the figure as an image in the markup; ``name`` is what readers without images get."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dots_per_inch, format="png")
    encoded = base64.b64encode(content.getvalue()).decode()
    # White, since the figure's ink is dark whatever the page's ground.
    style = "max-width:100%;background:#fff;border-radius:6px"
    return f'<img alt="{html.escape(name)}" style="{style}" src="data:image/png;base64,{encoded}">'


def table_html(table: pd.DataFrame, *, index: bool = False) -> str:
    """Return the table as markup with numbers of four decimals, or of four digits if they are very small or large."""
    markup = table.to_html(index=index, border=0, float_format=_number, na_rep="", escape=True)
    return f'<div style="overflow-x:auto">{markup}</div>'


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"
