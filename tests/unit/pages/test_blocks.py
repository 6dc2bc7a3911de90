"""Blocks and the frame of pages: no value becomes an element, and a page needs nothing but itself."""

import re

import pandas as pd
import pytest
from markupsafe import Markup

from mirrorspark.pages.blocks import (
    Cell,
    card_html,
    cards_html,
    details_html,
    element,
    facts_html,
    findings_html,
    joined,
    paragraph_html,
    rows_html,
    section_html,
    series_html,
    table_html,
    tiles_html,
    verdict_html,
)
from mirrorspark.pages.page import page_html

EVIL = '<script>alert("x")</script>&\''
CELL = Cell(EVIL, EVIL, below=[EVIL, Cell(EVIL)], link=EVIL, bar=0.5, hint=EVIL)


@pytest.mark.parametrize(
    "block",
    [
        element("p", EVIL, title=EVIL),
        joined([EVIL, EVIL], EVIL),
        paragraph_html(EVIL, style=EVIL),
        details_html(EVIL, EVIL),
        section_html(EVIL, EVIL, name=EVIL),
        verdict_html(EVIL, EVIL),
        tiles_html([(EVIL, EVIL), (EVIL, CELL)]),
        cards_html([card_html(EVIL, title=EVIL, data_name=EVIL)]),
        facts_html([(EVIL, EVIL)]),
        series_html(0, EVIL),
        rows_html([EVIL], [[EVIL], [CELL]], name=EVIL),
        findings_html([{"severity": EVIL, "column": EVIL, "sentence": EVIL}], links={EVIL: EVIL}),
        table_html(pd.DataFrame({EVIL: [EVIL]}, index=[EVIL]), index=True),
    ],
)
def test_a_value_is_no_markup_in_any_block(block: Markup) -> None:
    assert "<script" not in block
    assert '"x"' not in block
    assert "&lt;script&gt;" in block


def test_a_cell_has_its_link_its_small_lines_and_its_bar() -> None:
    cell = Cell("4.9", "error", below=["chance 0.1"], link="#age", bar=0.25, hint="large")
    assert rows_html((), [[cell]], numbers=(0,)) == (
        '<div class="scroll"><table><tbody><tr><td class="number">'
        '<a href="#age"><span class="error" title="large">4.9</span></a><small>chance 0.1</small>'
        '<i class="bar error" style="--share:25.0%"></i></td></tr></tbody></table></div>'
    )


def test_findings_name_their_column_unless_they_are_of_one() -> None:
    found = [{"severity": "note", "column": "", "check": "rows", "sentence": "few rows"}]
    table = findings_html(found)
    assert re.findall("<th [^>]*>([^<]*)", table) == ["", "column", "finding"]
    assert re.findall("<td>(.*?)</td>", table) == [
        '<span class="note">note</span>',
        "dataset<small>rows</small>",
        "Few rows.",
    ]
    assert "dataset" not in findings_html(found, are_of_one_column=True)


def test_a_page_may_run_a_script_only_if_it_has_one() -> None:
    page = page_html("Dataset", EVIL, ["", paragraph_html("all"), EVIL])
    assert page.count("&lt;script&gt;") == 3  # in the title, the heading and a block
    assert "script" not in page.replace("&lt;script&gt;", "").replace("&lt;/script&gt;", "")
    assert "default-src 'none'" in page
    with_script = page_html("Dataset", "flights", [], script="const more = 1 < 2;")
    assert "script-src 'unsafe-inline'" in with_script
    assert "<script>const more = 1 < 2;</script>" in with_script
    assert "<title>flights - dataset</title>" in with_script
