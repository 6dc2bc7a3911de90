"""E3: the page of an experiment says what the analysis says, and needs nothing but itself."""

import re

import numpy as np
import pytest

from mirrorspark.lifecycle.experiments.analysis import Analysis, Arm, analyse_experiment
from mirrorspark.lifecycle.experiments.definition import Experiment
from mirrorspark.lifecycle.experiments.page import experiment_page
from mirrorspark.pages.charts.intervals import IntervalRow, interval_chart

ODD_NAME = "<b>deep & wide</b>"
RANKER = Experiment("ranker <1>", {"control": 50, ODD_NAME: 50})


def analysis(units: int = 5_000, others: int = 5_000) -> Analysis:
    arms = [Arm.of_counts("control", units, units // 10), Arm.of_counts(ODD_NAME, others, others // 7)]
    return analyse_experiment(RANKER, arms, planned_units=20_000)


def test_the_page_has_the_conclusion_the_numbers_and_a_figure_and_no_markup_of_names() -> None:
    page = experiment_page(analysis())
    assert ODD_NAME not in page
    text = page.replace("&lt;b&gt;deep &amp; wide&lt;/b&gt;", "NAME").replace("&lt;1&gt;", "1")
    assert f'<p class="verdict">{analysis().conclusion.replace(ODD_NAME, "NAME")}</p>' in text
    assert '<td>NAME</td><td class="number">+4.28</td><td class="number">+42.8%</td>' in text
    numbers = "".join(f'<td class="number">{number}</td>' for number in ("5,000", "5,000", "500", "10.00%"))
    assert f"<td>control</td><td>control</td>{numbers}" in text
    assert '<div class="card"><b>50%</b><span>of the plan</span></div>' in text
    assert page.count("<svg") == 2
    assert "They fit the weights." in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", page)


def test_the_page_of_an_experiment_without_a_plan_names_none() -> None:
    arms = [Arm.of_counts("control", 5_000, 500), Arm.of_counts(ODD_NAME, 5_000, 570)]
    page = experiment_page(analyse_experiment(RANKER, arms))
    assert "planned units" not in page
    assert "holds for a single look at the planned end, and there is no plan." in page


def test_a_mismatch_of_units_stands_out() -> None:
    page = experiment_page(analysis(5_600, 5_000))
    assert '<p class="verdict error">The effects cannot be trusted' in page
    assert '<b class="error">mismatch</b>' in page
    assert "something other than the assignment chooses units" in page


def test_the_course_has_a_row_for_each_look() -> None:
    course = {f"day {day}": analysis(1_000 * day, 1_000 * day) for day in (1, 2, 3)}
    page = experiment_page(course["day 3"], course=course)
    assert "<h2>Course</h2>" in page
    assert re.findall(r">(day \d)</text>", page) == ["day 1", "day 2", "day 3"]
    assert "<h2>Course</h2>" not in experiment_page(course["day 3"])


def test_means_with_a_covariate_have_their_own_columns() -> None:
    random = np.random.default_rng(1)
    before = random.normal(size=2_000)
    values = 30 + before + random.normal(size=2_000)
    halves = Experiment("basket", {"control": 1, "deep": 1})
    arms = [
        Arm.of_values("control", values[:1_000], before[:1_000]),
        Arm.of_values("deep", values[1_000:], before[1_000:]),
    ]
    page = experiment_page(analyse_experiment(halves, arms, metric="value"))
    assert "variance left by CUPED" in page
    assert "conversions" not in page
    assert "points" not in page


def test_intervals_are_drawn_in_proportion() -> None:
    chart = interval_chart(
        [IntervalRow("a", 1.0, (0.5, 1.5), (0.0, 2.0)), IntervalRow("b", 2.0, (1.0, 3.0), (0.0, 4.0))]
    )
    bars = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert bars[1] == pytest.approx(2 * bars[0], abs=0.15)
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert centres[1] > centres[0]
    with pytest.raises(ValueError, match="no estimates to draw"):
        interval_chart([])
