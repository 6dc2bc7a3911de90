"""Notebook outputs in a browser, on light and dark grounds: readable, no wider than the cell, without scripts (H9)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.screen import screen
from tests.unit.notebook_outputs import document, outputs

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# The colours of JupyterLab's and VS Code's themes. Databricks' dark theme inverts a light output as a whole.
THEMES = {"light": ("#ffffff", "rgba(0, 0, 0, .87)"), "dark": ("#1e1e1e", "#d4d4d4"), "inverted": ("#ffffff", "#000")}

# Returns each text whose contrast (WCAG 2.2) with the ground is below the limit, and the elements wider than the page.
LOOK = """
const part = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
const luminance = colour => .2126 * part(colour[0]) + .7152 * part(colour[1]) + .0722 * part(colour[2]);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const isInverted = getComputedStyle(document.documentElement).filter !== 'none';
const shown = colour => colour.map(value => isInverted ? 255 - value : value);
const ground = numbers(getComputedStyle(document.body).backgroundColor);
const opacity = element => element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
const faint = [], seen = [];
for (const element of document.querySelectorAll('.mirrorspark *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.tagName === 'STYLE') continue;
    const style = getComputedStyle(element);
    const [red, green, blue, alpha = 1] = numbers(element instanceof SVGElement ? style.fill : style.color);
    const share = alpha * opacity(element);
    const ink = [red, green, blue].map((value, at) => share * value + (1 - share) * ground[at]);
    const [low, high] = [luminance(shown(ink)), luminance(shown(ground))].sort((a, b) => a - b);
    const contrast = (high + .05) / (low + .05);
    seen.push(contrast);
    if (contrast < arguments[0]) faint.push([element.textContent.slice(0, 40), contrast]);
}
const wide = [...document.querySelectorAll('.mirrorspark')]
    .filter(panel => panel.scrollWidth > panel.clientWidth + 1).map(panel => panel.textContent.slice(0, 40));
return [seen.length, faint, wide];
"""


@pytest.mark.parametrize("theme", THEMES)
def test_all_texts_are_readable_in_the_notebooks_theme(browser: "Chrome", tmp_path: Path, theme: str) -> None:
    (folder := tmp_path / "flights").mkdir()
    ground, ink = THEMES[theme]
    path = tmp_path / "outputs.html"
    content = document(outputs(folder), ground=ground, ink=ink)
    if theme == "inverted":
        content = content.replace("<style>", "<style>html{filter:invert(1)}", 1)
    path.write_text(content, encoding="utf-8")
    browser.get_log("browser")
    # An output that followed the system's theme would be light in an inverted notebook.
    with screen(browser, 1280, scheme="light" if theme == "light" else "dark"):
        browser.get(path.as_uri())
        look: tuple[int, list[Any], list[str]] = browser.execute_script(LOOK, 3.8)
    texts, faint, wide = look
    assert texts > 200
    assert faint == []
    assert wide == []
    assert browser.get_log("browser") == []
    assert all(image.get_attribute("src").startswith("data:") for image in browser.find_elements("css selector", "img"))
