"""The report of a run in a real browser: it fits a telephone, and fetches nothing."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.kinds import Categorical, Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.quality.column_card import rate_name
from mirrorspark.data_pipelines.quality.profiling import profile_columns
from mirrorspark.data_pipelines.quality.validation import validate
from mirrorspark.evaluation.bootstrap import (
    binary_statistics,
    paired_intervals,
    regression_statistics,
)
from mirrorspark.evaluation.metrics import binary_metrics, regression_metrics
from mirrorspark.pages.figures.calibration import calibration_curve
from mirrorspark.pages.figures.classes import class_quality, confusion_matrix
from mirrorspark.pages.figures.lift import lift_chart
from mirrorspark.pages.figures.regression import predicted_and_actual, residuals_by_prediction
from mirrorspark.pages.figures.threshold_curves import roc_curve
from mirrorspark.pages.figures.training_curves import learning_curves
from mirrorspark.training.protocol.outcomes.cause import Attempt
from mirrorspark.training.results.evaluation.explanation import Explanation
from mirrorspark.training.results.report.cost import Reservation, cost_of
from mirrorspark.training.results.report.report import ReportFacts, rates_of, write_report
from mirrorspark.training.run_records.run_history import Launch
from tests.browser.screen import screen

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROWS = 2_000
SECONDS = {"start": 4.1, "infer": 14.9, "convert": 22.7, "train": 9.8, "export": 6.3, "between stages": 1.2}
LONG = "a_column_with_a_name_that_is_much_longer_than_a_telephone_is_wide_in_any_font"


def table(kind: str) -> tuple[pa.Table, FeatureSpec]:
    random = np.random.default_rng(3)
    delay = random.gamma(2, 12, ROWS) - 10
    town = random.choice(["New York", "Newark", "<img src=x onerror=alert(1)>", "w" * 90], ROWS)
    rows = pa.table(
        {
            "flight": range(ROWS),
            "delay": delay if kind == "number" else (delay > 20).astype(np.int64),
            "town": town,
            LONG: np.array(["JFK", "EWR", "x", "LGA"])[np.unique(town, return_inverse=True)[1]],
            "miles": delay * 9 + random.normal(900, 300, ROWS),
        }
    )
    return rows, FeatureSpec(
        (Categorical("town"), Categorical(LONG), Numeric("miles")), Label("delay", kind), ("flight",)
    )


def explanation() -> Explanation:
    importance = pd.DataFrame({"feature": ["miles", LONG], "importance": [0.12, 0.01], "deviation": [0.01, 0.004]})
    slices = pd.DataFrame({"feature": "town", "value": ["w" * 90, "Newark"], "rows": [40, 900], "loss": [0.71, 0.5]})
    worst = pd.DataFrame(
        {"flight": range(9), "label": 1.0, "prediction": 0.02, "loss": 3.9, "town": "w" * 90, LONG: "x"}
    )
    curves = {"miles": pd.DataFrame({"value": [100.0, 900.0, 2_000.0], "prediction": [0.1, 0.3, 0.2]})}
    return Explanation(importance, curves, slices, worst, "log loss", 2_000)


def facts(kind: str) -> ReportFacts:
    rows, spec = table(kind)
    profile = profile_columns({"train": rows}, spec)
    random = np.random.default_rng(4)
    label, weight = rows["delay"].to_numpy().astype(np.float64), np.ones(ROWS)
    curves = learning_curves({"loss": [0.6, 0.5, 0.47], "val_loss": [0.58, 0.52, 0.53]}, best_epoch=2)
    if kind == "number":
        score, other_score = (label + random.normal(0, width, ROWS) for width in (9, 9.1))
        metrics, other = (regression_metrics(label, of) for of in (score, other_score))
        intervals = paired_intervals(regression_statistics, label, score, other_score, weight)
        beside = {"hist. gradient boosting": other_score}
        classes = [(of > 10).astype(int) + (of > 30) for of in (label, score, other_score)]
        names = ["on time", "late", "a class with a long name"]
        figures = {
            "predicted_and_actual": predicted_and_actual(label, score, baseline=beside),
            "residuals": residuals_by_prediction(label, score, baseline=beside),
            "confusion_matrix": confusion_matrix(classes[0], classes[1], names),
            "classes": class_quality(classes[0], classes[1], names, baseline={"hist. gradient boosting": classes[2]}),
        }
    else:
        score, other_score = (
            np.clip(0.3 + 0.2 * label + random.normal(0, width, ROWS), 0.01, 0.99) for width in (0.15, 0.2)
        )
        metrics, other = (binary_metrics(label, of) for of in (score, other_score))
        intervals = paired_intervals(binary_statistics, label, score, other_score, weight)
        figures = {
            "roc": roc_curve(label, score, baseline={"hist. gradient boosting": other_score}),
            "calibration": calibration_curve(label, score),
            "lift": lift_chart(label, score),
        }
    found = [
        {"severity": each.severity, "column": each.column, "sentence": each.sentence}
        for each in validate(profile, spec).findings
    ]
    return ReportFacts(
        title="flight-delays 3",
        metrics={"validation": metrics, "test": metrics},
        baseline={"name": "hist_gradient_boosting", "metrics": other, "intervals": intervals},
        figures=figures | {"learning_curves": curves},
        rows={"train": ROWS, "test": ROWS},
        findings=found,
        seconds=SECONDS,
        cost=cost_of(
            SECONDS, Reservation((Launch(2, 9.5),), (Attempt(1, 3, (), 0, 9, 2),), 2, 2), price_per_core_hour=0.05
        ),
        facts={"model": "models:/flight-delays/3", "speed": "51,234 examples/s"},
        settings={"epochs": 40, "model": {"name": "multi_field"}},
        explanation=explanation(),
        rates=rates_of(profile),
        rate_name=rate_name(profile.columns[-1]),
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reports")
    for kind in ("binary", "number"):
        write_report(facts(kind), folder / f"{kind}.html")
    return {kind: (folder / f"{kind}.html").as_uri() for kind in ("binary", "number")}


@pytest.mark.parametrize("kind", ["binary", "number"])
def test_the_verdict_stands_on_top_and_every_part_follows(browser: "Chrome", pages: dict[str, str], kind: str) -> None:
    browser.get(pages[kind])
    verdict = browser.find_element("css selector", ".verdict").text
    assert "95% interval" in verdict
    heads = [head.text for head in browser.find_elements("css selector", "h2")]
    mean = "Mean delay by value" if kind == "number" else "Rate of delay by value"
    parts = ["On the test rows", "What the predictions depend on", "Findings in the data", mean]
    assert heads == [*parts, "Where the time went", "Settings"]
    assert "goes with one value of 'town'" in browser.find_element("css selector", ".findings tbody").text


@pytest.mark.parametrize("kind", ["binary", "number"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_no_wider_than_the_screen(browser: "Chrome", pages: dict[str, str], kind: str, width: int) -> None:
    with screen(browser, width):
        browser.get(pages[kind])
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        # A card hides nothing of what is in it without a bar to scroll.
        script = """
            return [...document.querySelectorAll('.card')].filter(card => {
                const scrolls = getComputedStyle(card).overflowX !== 'visible';
                return card.scrollWidth > card.clientWidth + 1 && !scrolls && !card.querySelector('.scroll');
            }).map(card => card.textContent.slice(0, 60))"""
        assert browser.execute_script(script) == []


def test_nothing_is_fetched_and_no_value_runs(browser: "Chrome", pages: dict[str, str]) -> None:
    browser.get_log("browser")
    browser.get(pages["binary"])
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert "<img src=x onerror=alert(1)>" in browser.find_element("css selector", "body").text
    assert browser.get_log("browser") == []
