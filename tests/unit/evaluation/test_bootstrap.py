"""F7: the interval of the difference between a model and its baseline, against scikit-learn and by hand."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from mirrorspark.evaluation import bootstrap
from mirrorspark.evaluation.bootstrap import (
    binary_statistics,
    mean_statistics,
    multi_class_statistics,
    paired_intervals,
    regression_statistics,
)
from mirrorspark.evaluation.metrics import binary_metrics, multi_class_metrics, regression_metrics

ROWS = 300
RANDOM = np.random.default_rng(5)
LABEL = (RANDOM.random(ROWS) < 0.3).astype(np.float32)
# Rounded, so that scores tie.
SCORE = np.round(np.clip(0.3 + 0.3 * (LABEL - 0.3) + 0.2 * RANDOM.normal(size=ROWS), 0.01, 0.99), 2).astype(np.float32)
RIVAL = np.clip(0.3 + 0.1 * (LABEL - 0.3) + 0.2 * RANDOM.normal(size=ROWS), 0.01, 0.99)
# Some rows are drawn not at all.
WEIGHTS = RANDOM.integers(0, 4, (3, ROWS)).astype(np.float64)


def test_reweighted_metrics_are_those_of_scikit_learn() -> None:
    found = binary_statistics(LABEL, SCORE)(WEIGHTS)
    numbers = regression_statistics(LABEL, SCORE)(WEIGHTS)
    classes, scores = RANDOM.integers(0, 4, ROWS), RANDOM.dirichlet(np.ones(4), ROWS)
    of_classes = multi_class_statistics(classes, scores, is_ordinal=True)(WEIGHTS)
    for position, weight in enumerate(WEIGHTS):
        for expected, values in (
            (binary_metrics(LABEL, SCORE, weight), found),
            (regression_metrics(LABEL, SCORE, weight), numbers),
            (multi_class_metrics(classes, scores, weight, is_ordinal=True), of_classes),
        ):
            for name, of in values.items():
                assert of[position] == pytest.approx(expected[name], rel=1e-6), name
    assert found["auc"][0] == pytest.approx(metrics.roc_auc_score(LABEL, SCORE, sample_weight=WEIGHTS[0]))


def test_the_interval_is_about_the_difference_and_as_wide_as_theory_says() -> None:
    """The deviation of a mean of rows with variance 1 is 1 / √rows."""
    rows = 2_500
    own = np.random.default_rng(1).normal(0.5, 1.0, (rows, 1))
    found = paired_intervals(mean_statistics("m"), np.zeros(rows), own, np.zeros((rows, 1)), np.ones(rows), seed=3)["m"]
    assert found["difference"] == pytest.approx(own.mean())
    assert found["low"] < found["difference"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 / 50, rel=0.2)


def test_predictions_that_differ_by_nothing_or_by_much_are_told_apart_and_a_seed_fixes_the_draws() -> None:
    def interval(baseline: np.ndarray, seed: int = 1) -> dict[str, float]:
        return paired_intervals(binary_statistics, LABEL, SCORE, baseline, np.ones(ROWS), seed=seed)["auc"]

    assert interval(SCORE) == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert interval(RIVAL)["low"] > 0
    assert interval(RIVAL) == interval(RIVAL)
    assert interval(RIVAL) != interval(RIVAL, seed=2)


def test_rows_of_weight_zero_and_repeated_users_count_as_they_should() -> None:
    values: Any = np.repeat(np.random.default_rng(2).normal(size=(50, 1)), 20, axis=0)
    users = np.repeat(np.arange(50), 20)

    def width(weight: np.ndarray, units: np.ndarray | None) -> float:
        found = paired_intervals(mean_statistics("m"), users, values, 0 * values, weight, units=units)["m"]
        return found["high"] - found["low"]

    # Twenty equal rows of a user say what one says: the interval is √20 times as that of independent rows.
    assert width(np.ones(1_000), users) / width(np.ones(1_000), None) == pytest.approx(20**0.5, rel=0.3)
    once = np.where(np.arange(1_000) % 20 == 0, 1.0, 0.0)
    assert width(once, None) == pytest.approx(width(np.ones(1_000), users), rel=0.3)


def test_of_many_rows_a_sample_gives_the_spread_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    own = np.random.default_rng(4).normal(size=(4_000, 1))

    def found() -> dict[str, float]:
        return paired_intervals(mean_statistics("m"), np.zeros(4_000), own, 0 * own, np.ones(4_000))["m"]

    whole = found()
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 500)
    sampled = found()
    assert sampled["difference"] == whole["difference"]
    assert sampled["high"] - sampled["low"] == pytest.approx(whole["high"] - whole["low"], rel=0.25)


def test_a_class_that_a_draw_does_not_have_is_not_in_its_mean() -> None:
    classes, scores = np.array([0, 1, 2, 2]), np.eye(3)[[0, 1, 2, 1]]
    (drawn,) = multi_class_statistics(classes, scores)(np.array([[1.0, 0.0, 0.0, 2.0]]))["macro_f1"]
    # Class 0 is found, class 1 only predicted, and class 2 missed: F1 of 1, 0 and 0.
    assert drawn == pytest.approx(1 / 3)
    (without,) = multi_class_statistics(classes, scores)(np.array([[1.0, 0.0, 1.0, 0.0]]))["macro_f1"]
    assert without == pytest.approx(1.0)
