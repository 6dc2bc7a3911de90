"""Pages and plots: values in, figures and HTML out.

Every folder may import this one, which imports no other folder of ours and writes no files.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.pages.blocks import (
        Cell,
        bar_html,
        card_html,
        cards_html,
        details_html,
        element,
        facts_html,
        figure_html,
        findings_html,
        heading_html,
        joined,
        paragraph_html,
        remark_html,
        rows_html,
        section_html,
        series_html,
        table_html,
        tiles_html,
        verdict_html,
    )
    from mirrorspark.pages.guarded import beside_the_result, drawn
    from mirrorspark.pages.numbers import DASH, digits_or_dash, fixed_number, in_digits, short_number
    from mirrorspark.pages.page import page_html
    from mirrorspark.pages.panel import panel_html
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DASH",
    "Cell",
    "bar_html",
    "beside_the_result",
    "card_html",
    "cards_html",
    "details_html",
    "digits_or_dash",
    "drawn",
    "element",
    "facts_html",
    "figure_html",
    "findings_html",
    "fixed_number",
    "heading_html",
    "in_digits",
    "joined",
    "page_html",
    "panel_html",
    "paragraph_html",
    "remark_html",
    "rows_html",
    "section_html",
    "series_html",
    "short_number",
    "table_html",
    "tiles_html",
    "verdict_html",
]
