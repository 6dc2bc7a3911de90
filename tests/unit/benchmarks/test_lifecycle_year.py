"""A simulated year: its customers, and what its page says of weeks."""

import dataclasses
import math

import numpy as np

from benchmarks.lifecycle_year import Week, Year, report

YEAR = Year(weeks=6, drift_week=3, bad_week=5, rows=2_000)


def week(number: int, champion: str, *, stopped: str | None = None, warnings: tuple[str, ...] = ()) -> Week:
    return Week(number, 30.0, {"train": 20.0, "gate": 1.0}, stopped, champion, (0.8, 0.79), 0.0, 0.0, warnings)


WEEKS = (
    week(1, "1"),
    week(2, "2"),
    week(3, "3", warnings=("columns have drifted since the former date: income (index 0.90)",)),
    week(4, "4"),
    week(5, "4", stopped="gate"),
    week(6, "6"),
)


def test_customers_earn_more_from_the_week_of_the_drift_on_and_labels_are_noise_in_one_week() -> None:
    tables = {number: YEAR.table(number).to_pandas() for number in range(1, 7)}

    incomes = [round(table["income"].mean(), -4) for table in tables.values()]
    assert incomes == [40_000, 40_000, 50_000, 50_000, 50_000, 50_000]
    strong = [np.corrcoef(table["income"], table["bought"])[0, 1] > 0.3 for table in tables.values()]
    assert strong == [True, True, True, True, False, True]
    assert not set(tables[1]["id"]) & set(tables[2]["id"])
    assert tables[1].equals(YEAR.table(1).to_pandas())


def test_a_year_in_which_all_went_as_it_should_meets_its_marks() -> None:
    marks = report(YEAR, WEEKS).marks

    assert [mark.found for mark in marks] == [1.0, 1.0, 1.0, 0.0, 3.0]
    assert all(mark.is_met for mark in marks)


def test_a_promoted_bad_model_an_untold_drift_a_false_alarm_and_a_stopped_good_model_are_missed_marks() -> None:
    def missed(number: int, **other: object) -> list[str]:
        weeks = [dataclasses.replace(one, **other) if one.week == number else one for one in WEEKS]
        return [mark.what for mark in report(YEAR, weeks).marks if not mark.is_met]

    assert missed(5, stopped=None, champion="5") == ["the bad model of week 5 stopped at the gate"]
    assert missed(5, champion="5") == ["the bad model of week 5 stopped at the gate"]
    assert missed(3, warnings=()) == ["the drift of week 3 was told then"]
    assert missed(4, warnings=("the distribution of the scores has changed",)) == ["other weeks with a warning, share"]
    assert missed(6, stopped="gate") == ["good models that were promoted, share"]
    assert missed(6, seconds=1_800.0) == ["minutes"]


def test_a_short_try_has_no_marks_for_weeks_that_it_does_not_reach() -> None:
    marks = report(YEAR, WEEKS[:2]).marks

    assert [mark.what for mark in marks] == [
        "good models that were promoted, share",
        "other weeks with a warning, share",
        "minutes",
    ]
    assert not any(math.isnan(mark.found) for mark in marks)
