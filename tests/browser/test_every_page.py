"""Every page that we write, in a real browser: it fits its screen, and its texts and pictures follow the dark (H9)."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from mirrorspark.pages import panel_html, table_html
from mirrorspark.training.results.report.report import report_page
from mirrorspark.training.results.report.shown import RunComparison
from tests.browser.screen import screen
from tests.browser.test_report import explanation, facts
from tests.unit.every_page import MANY, every_page, gate, watching
from tests.unit.notebook_outputs import document

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

KINDS = ("dataset", "gate", "fleet", "pipeline", "history", "experiment", "watching", "training", "numbers")

# Returns the number of texts, and each whose contrast (WCAG 2.2) with the ground below it is below the limit.
FAINT = """
const part = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
const luminance = colour => .2126 * part(colour[0]) + .7152 * part(colour[1]) + .0722 * part(colour[2]);
const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
const ground = element => {
    for (; element; element = element.parentElement) {
        const [red, green, blue, alpha = 1] = numbers(getComputedStyle(element).backgroundColor);
        if (alpha > 0) return [red, green, blue];
    }
    return [255, 255, 255];
};
const faint = [];
let texts = 0;
for (const element of document.querySelectorAll('main *')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    if (['STYLE', 'title'].includes(element.tagName)) continue;
    const style = getComputedStyle(element), below = ground(element);
    const [red, green, blue, alpha = 1] = numbers(element instanceof SVGElement ? style.fill : style.color);
    // Letters on a coloured area of a figure.
    if (element instanceof SVGElement && red + green + blue === 762) continue;
    const ink = [red, green, blue].map((value, at) => alpha * value + (1 - alpha) * below[at]);
    const [low, high] = [luminance(ink), luminance(below)].sort((a, b) => a - b);
    texts += 1;
    if ((high + .05) / (low + .05) < arguments[0]) faint.push([element.textContent.slice(0, 40), style.color]);
}
return [texts, faint];
"""
# Returns the tables that show a part only.
CUT = """
return [...document.querySelectorAll('.scroll')].filter(table => table.scrollWidth > table.clientWidth + 1)
    .map(table => `${table.scrollWidth} of ${table.clientWidth}: ${table.textContent.slice(0, 60)}`)
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("pages")
    contents = {**every_page(), "training": report_page(facts("binary")), "numbers": report_page(facts("number"))}
    for kind, content in contents.items():
        (folder / f"{kind}.html").write_text(content, encoding="utf-8")
    return {kind: (folder / f"{kind}.html").as_uri() for kind in contents}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_its_screen_and_its_tables_a_laptop(browser: "Chrome", pages: dict[str, str], kind: str) -> None:
    for width in (400, 800, 1200):
        with screen(browser, width):
            browser.get(pages[kind])
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            if width == 1200:
                assert browser.execute_script(CUT) == []


def comparison() -> str:
    """Return a notebook with a comparison in many metrics, and with a table of many columns."""
    values = pd.Series(dict.fromkeys(MANY, 0.7))
    models = RunComparison.of(("models:/late/3", f"models:/{'w' * 90}/4"), (values, values), {})
    wide = panel_html(table_html(pd.DataFrame({name: ["some words"] for name in MANY}), index=True))
    return document({"models": models._repr_html_(), "table": wide}, ground="#fff", ink="#000")


def report() -> str:
    """Return the report of a training whose rows have many columns."""
    rows = explanation().worst.assign(**dict.fromkeys(MANY, "some words"))
    return report_page(replace(facts("binary"), explanation=replace(explanation(), worst=rows)))


def test_a_table_of_forty_columns_scrolls_in_its_own_box(browser: "Chrome", tmp_path: Path) -> None:
    contents = {"gate": gate(MANY), "watching": watching(MANY), "report": report(), "comparison": comparison()}
    for kind, content in contents.items():
        (tmp_path / f"{kind}.html").write_text(content, encoding="utf-8")
        with screen(browser, 800):
            browser.get((tmp_path / f"{kind}.html").as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 800
            assert browser.execute_script(CUT) != []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_a_page_and_of_its_pictures_is_readable(
    browser: "Chrome", pages: dict[str, str], kind: str, scheme: str
) -> None:
    with screen(browser, 1200, scheme=scheme):
        browser.get(pages[kind])
        texts, faint = browser.execute_script(FAINT, 3.8)
        assert texts > 20
        assert faint == []
        assert not browser.find_elements("css selector", "img")
