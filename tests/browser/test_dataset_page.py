"""The dataset page in a real browser: it draws, fits a telephone, follows the dark, finds columns, fetches nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.kinds import Categorical, Label, MultiValued, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.page import PAGE_FILE, PageFacts, dataset_page
from mirrorspark.data_pipelines.quality.profiling import profile_columns
from mirrorspark.data_pipelines.quality.validation import validate
from tests.browser.screen import screen

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROWS = 500
SPEC = FeatureSpec(
    (
        Numeric("distance"),
        Categorical("a_column_with_a_name_that_is_much_longer_than_a_telephone_is_wide_in_any_font"),
        MultiValued("earlier", max_length=3),
        Numeric("answer"),
    ),
    Label("late"),
    ("flight",),
)


def flights(seed: int, distance: float = 0.0) -> pa.Table:
    generator = np.random.default_rng(seed)
    late = generator.integers(0, 2, ROWS)
    return pa.table(
        {
            "flight": [f"{seed}-{n}" for n in range(ROWS)],
            "late": late,
            "distance": generator.normal(1_000 + distance, 100, ROWS),
            SPEC.features[1].name: generator.choice(["<img src=x onerror=alert(1)>", "w" * 90, "ü"], ROWS),
            "earlier": [["UA", "AA"][: n % 3] for n in range(ROWS)],
            "answer": late * 2.0,
        }
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    former = profile_columns({"train": flights(9)}, SPEC)
    samples = {split: flights(seed, 300) for seed, split in enumerate(("train", "validation", "test"))}
    profile = profile_columns(samples, SPEC, reference=former)
    path: Path = tmp_path_factory.mktemp("dataset") / PAGE_FILE
    content = dataset_page(
        PageFacts("flights", reference="flights-old"), profile, validate(profile, SPEC, former), former
    )
    path.write_text(content, encoding="utf-8")
    return path.as_uri()


def shown_cards(browser: "Chrome") -> list[str]:
    script = "return [...document.querySelectorAll('#columns .card:not([hidden]) h3')].map(head => head.textContent)"
    found: list[str] = browser.execute_script(script)
    return found


def test_findings_stand_on_top_and_lead_to_their_column(browser: "Chrome", page: str) -> None:
    browser.get(page)
    heads = [head.text.split("\n")[0] for head in browser.find_elements("css selector", "h2")]
    assert heads[0] == "Findings"
    first = browser.find_element("css selector", ".findings tbody tr")
    assert first.find_element("css selector", "span").get_attribute("class") == "error"
    assert "'Answer' alone separates" in first.text or "'answer' alone separates" in first.text
    first.find_element("css selector", "a").click()
    target = browser.execute_script("return document.querySelector(':target h3').textContent")
    assert target == "answer"


def test_every_column_has_its_figure_drawn(browser: "Chrome", page: str) -> None:
    browser.get(page)
    script = """
        return [...document.querySelectorAll('#columns .card')].map(card => {
            card.scrollIntoView();
            const figure = card.querySelector('svg');
            return [card.dataset.name, figure ? figure.getBoundingClientRect().width : 0,
                    figure ? figure.getBoundingClientRect().height : 0];
        })"""
    sizes: list[Any] = browser.execute_script(script)
    assert [name for name, *_ in sizes] == [*(feature.name for feature in SPEC.features), "flight"]
    for name, width, height in sizes[:-1]:
        assert width > 250, name
        assert height > 40, name


@pytest.mark.parametrize("width", [360, 400, 768, 1280])
def test_the_page_is_no_wider_than_the_screen(browser: "Chrome", page: str, width: int) -> None:
    with screen(browser, width):
        browser.get(page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_page_follows_the_dark_and_stays_readable(browser: "Chrome", page: str) -> None:
    script = """
        const brightness = colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 3;
        const style = getComputedStyle(document.body);
        return [brightness(style.backgroundColor), brightness(style.color)]"""
    for scheme, is_dark in (("light", False), ("dark", True)):
        with screen(browser, 1280, scheme=scheme):
            browser.get(page)
            ground, ink = browser.execute_script(script)
            assert (ground < ink) is is_dark
            assert abs(ground - ink) > 150


def test_columns_are_found_by_name_and_ordered(browser: "Chrome", page: str) -> None:
    browser.get(page)
    browser.find_element("id", "filter").send_keys("DIST")
    assert shown_cards(browser) == ["distance"]
    browser.get(page)
    browser.find_element("css selector", "#order option[value=weight]").click()
    assert shown_cards(browser)[0] == "answer"
    browser.find_element("css selector", "#order option[value=name]").click()
    assert shown_cards(browser) == sorted(shown_cards(browser))


def test_nothing_is_fetched_and_no_value_runs(browser: "Chrome", page: str) -> None:
    browser.get_log("browser")
    browser.get(page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not browser.find_elements("css selector", "img")
    assert browser.get_log("browser") == []
