"""Metrics of scores and ranked lists equal hand-worked numbers and scikit-learn (F7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from mirrorspark.evaluation.metrics import (
    binary_metrics,
    check_binary_label,
    is_better,
    multi_class_metrics,
    multi_label_metrics,
    regression_metrics,
)

# By descending score: 1, 0, 1, 0.
LABEL = [0, 0, 1, 1]
SCORE = [0.1, 0.4, 0.35, 0.8]


def test_binary_metrics_hold_hand_worked_numbers() -> None:
    result = binary_metrics(LABEL, SCORE)
    assert result["auc"] == pytest.approx(0.75)
    assert result["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["log_loss"] == pytest.approx(-(math.log(0.9) + math.log(0.6) + math.log(0.35) + math.log(0.8)) / 4)
    assert result["brier"] == pytest.approx((0.01 + 0.16 + 0.4225 + 0.04) / 4)
    assert result["base_rate"] == 0.5


def test_recall_at_precision_is_the_largest_recall_that_keeps_it() -> None:
    """F7: recall at desired precision."""
    result = binary_metrics(LABEL, SCORE)
    # Precision is 1 at recall 1/2, then 1/2, then 2/3 at recall 1.
    assert result["recall_at_precision_0.3"] == 1.0
    assert result["recall_at_precision_0.5"] == 1.0
    assert result["recall_at_precision_0.7"] == 0.5


def test_recall_at_an_unreachable_precision_is_zero() -> None:
    assert binary_metrics([1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])["recall_at_precision_0.5"] == 0.0


def test_weighted_metrics_equal_repeated_rows() -> None:
    weighted = binary_metrics(LABEL, SCORE, [1, 0, 2, 3])
    repeated = binary_metrics([0, 1, 1, 1, 1, 1], [0.1, 0.35, 0.35, 0.8, 0.8, 0.8])
    assert weighted == pytest.approx(repeated)


def test_binary_metrics_agree_with_scikit_learn_on_float32() -> None:
    """F7: test vs scikit-learn; models give float32, whose 0 and 1 must not make the loss infinite."""
    generator = np.random.default_rng(11)
    score = generator.random(2_000).astype(np.float32)
    score[:2] = [0, 1]
    label = (generator.random(2_000) < score).astype(np.float32)
    result = binary_metrics(label, score)
    exact = score.astype(np.float64)
    assert result["auc"] == pytest.approx(metrics.roc_auc_score(label, score))
    assert result["pr_auc"] == pytest.approx(metrics.average_precision_score(label, score))
    assert result["log_loss"] == pytest.approx(metrics.log_loss(label, exact))
    assert result["brier"] == pytest.approx(np.mean((exact - label) ** 2))
    assert all(isinstance(value, float) and math.isfinite(value) for value in result.values())


@pytest.mark.parametrize(
    ("label", "score", "weight", "message"),
    [
        ([0, 0], [0.1, 0.2], None, r"label has one class only \(0\) in split 'test' \(2 rows\)"),
        ([0, 1], [0.1, 0.2], [1, 0], r"label has one class only \(0\) in split 'test' \(1 rows\)"),
        ([], [], None, "split 'test' has no rows"),
        ([0, 2], [0.1, 0.2], None, "label is 2 in row 1 of split 'test'"),
        ([0, 1], [0.1], None, r"score has shape \(1,\) but label has \(2,\) in split 'test'"),
        ([0, 1], [0.1, 1.2], None, r"score is 1.2 in row 1 of split 'test' \(1 such rows\)"),
        ([0, 1], [math.nan, 0.2], None, "score is nan in row 0"),
        ([0, 1], [0.1, 0.2], [1, -1], "weight is -1.0 in row 1"),
        ([[0, 1]], [[0.1, 0.2]], None, r"label has shape"),
    ],
)
def test_input_without_metrics_is_refused_in_one_clear_line(
    label: list[int], score: list[float], weight: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        binary_metrics(label, score, weight)


def test_messages_name_the_split() -> None:
    with pytest.raises(ValueError, match="in split 'validation'"):
        check_binary_label([1, 1], split="validation")


# By descending score, the first row's labels are 1, 0, 1, 0, the second's 0, 1, 0, 0.
LABELS = [[1, 1, 0, 0], [0, 1, 0, 0]]
SCORES = [[0.9, 0.3, 0.7, 0.1], [0.8, 0.6, 0.2, 0.4]]


def test_multi_label_metrics_hold_hand_worked_numbers() -> None:
    """F7: over the eight pairs of a row and a label, and over the best labels of each row."""
    result = multi_label_metrics(LABELS, SCORES)
    # Positives at 0.9, 0.3 and 0.6; negatives at 0.7, 0.1, 0.8, 0.2 and 0.4: 5, 2 and 3 of five lie below.
    assert result["auc"] == pytest.approx(10 / 15)
    assert result["base_rate"] == 3 / 8
    right = (0.9, 0.3, 0.3, 0.9, 0.2, 0.6, 0.8, 0.6)
    assert result["log_loss"] == pytest.approx(-sum(map(math.log, right)) / 8)
    assert result["precision_at_1"] == 0.5
    assert result["precision_at_3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # There are four labels.
    assert "precision_at_5" not in result
    assert multi_label_metrics(np.tile(LABELS, 2)[:, :5], np.tile(SCORES, 2)[:, :5])["precision_at_5"] > 0


def test_multi_label_metrics_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(7)
    scores = generator.random((300, 20)).astype(np.float32)
    labels = (generator.random((300, 20)) < scores / 3).astype(np.float32)
    weight = generator.integers(0, 3, 300)
    result = multi_label_metrics(labels, scores, weight)
    assert result["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores, average="micro", sample_weight=weight))
    assert result["pr_auc"] == pytest.approx(
        metrics.average_precision_score(labels, scores, average="micro", sample_weight=weight)
    )
    best = np.argsort(-scores, axis=1)[:, :5]
    hits = np.take_along_axis(labels, best, axis=1).mean(axis=1)
    assert result["precision_at_5"] == pytest.approx(np.average(hits, weights=weight))
    named = scores >= 0.5
    assert result["micro_f1"] == pytest.approx(metrics.f1_score(labels, named, average="micro", sample_weight=weight))


def test_labels_and_scores_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"label has shape \(2, 4\) and scores \(2, 3\) in split 'test'"):
        multi_label_metrics(LABELS, np.ones((2, 3)))


def test_errors_of_numbers_worked_by_hand() -> None:
    found = regression_metrics([1.0, 3.0, 5.0, 7.0], [1.0, 4.0, 5.0, 5.0], [1, 1, 1, 1])
    assert found == pytest.approx({"rmse": (5 / 4) ** 0.5, "mae": 0.75, "r2": 1 - 5 / 20, "bias": -0.25})
    heavy = regression_metrics([1.0, 3.0], [1.0, 4.0], [3, 1])
    assert heavy["mae"] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="split 'test' has no rows"):
        regression_metrics([], [])


def test_classes_worked_by_hand() -> None:
    scores = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]]
    found = multi_class_metrics([0, 1, 1, 2], scores)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx(np.mean([2 / 3, 2 / 3, 1.0]))
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.8, 0.4, 0.6]).mean())
    assert found["base_rate"] == 0.5
    with pytest.raises(ValueError, match=r"scores has shape \(2,\) and label \(2,\)"):
        multi_class_metrics([0, 1], [0.5, 0.5])


def test_ranks_worked_by_hand_and_by_scikit_learn() -> None:
    """The predictions are 0, 2, 2 and 1."""
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.1, 0.7], [0.3, 0.4, 0.3]])
    label, weight = [0, 0, 2, 2], [1, 1, 1, 3]
    found = multi_class_metrics(label, scores, is_ordinal=True)
    assert found["rank_mae"] == (0 + 2 + 0 + 1) / 4
    # Squared distances: 5 / 4; of all sixteen pairs of a label and a prediction 28 / 16.
    assert found["quadratic_kappa"] == pytest.approx(1 - (5 / 4) / (28 / 16))
    heavy = multi_class_metrics(label, scores, weight, is_ordinal=True)
    assert heavy["rank_mae"] == pytest.approx((2 + 3 * 1) / 6)
    expected = metrics.cohen_kappa_score(label, [0, 2, 2, 1], weights="quadratic", sample_weight=weight)
    assert heavy["quadratic_kappa"] == pytest.approx(expected)
    # A prediction of one class alone is as chance, also where there is no other class.
    for labels in ([0, 1, 2], [1, 1, 1]):
        alike = multi_class_metrics(labels, np.eye(3)[[1, 1, 1]], is_ordinal=True)
        assert alike["quadratic_kappa"] == pytest.approx(0, abs=1e-12)
    assert not {"rank_mae", "quadratic_kappa"} & set(multi_class_metrics(label, scores))


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("auc", 0.8, 0.7),
        ("val_loss", 0.1, 0.2),
        ("bias", 0.1, 5.0),
        ("bias", -0.1, -5.0),
        ("val_bias", 0.1, -5.0),
        ("interval_width", 1.0, 9.0),
        ("rank_mae", 0.3, 0.4),
        ("quadratic_kappa", 0.4, -0.3),
    ],
)
def test_the_better_value_of_a_metric_is_larger_smaller_or_nearer_to_0(
    metric: str, better: float, worse: float
) -> None:
    assert is_better(metric, better, worse)
    assert not is_better(metric, worse, better)
    assert not is_better(metric, better, better)


@pytest.mark.parametrize("metric", ["base_rate", "interval_coverage", "val_base_rate"])
def test_a_metric_that_describes_has_no_better_value(metric: str) -> None:
    assert not is_better(metric, 0.9, 0.5)
    assert not is_better(metric, 0.5, 0.9)
