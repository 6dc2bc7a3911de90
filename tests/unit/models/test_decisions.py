"""#55: decisions of the least cost, with costs worked by hand, in NumPy and in the exported graph."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mirrorspark.models.decisions import Decisions, fit_decisions

LABEL = np.array([0.0, 1.0, 0.0, 1.0])
SCORES = np.float32([0.1, 0.2, 0.3, 0.4])
ONES = np.ones(4)


@pytest.mark.parametrize(
    ("false_positive", "false_negative", "weight", "threshold", "cost"),
    [
        (1, 10, ONES, 0.15, 0.25),  # one needless yes
        (10, 1, ONES, 0.35, 0.25),  # one missed
        (1, 0, ONES, 0.35, 0.0),  # of equal ones that nearest to 1, the threshold of rates
        (0, 1, ONES, 0.0, 0.0),  # always 1
        (1, 10, np.array([1.0, 0.0, 1.0, 1.0]), 0.35, 0.0),
    ],
)
def test_the_threshold_has_the_least_mean_cost(
    false_positive: float, false_negative: float, weight: np.ndarray, threshold: float, cost: float
) -> None:
    rule = fit_decisions([[0, false_positive], [false_negative, 0]], LABEL, SCORES, weight)
    assert rule.threshold == pytest.approx(threshold)
    assert rule.mean_costs(LABEL, SCORES, weight)["cost"] == cost


def test_simpler_decisions_have_their_cost_too() -> None:
    found = fit_decisions([[0, 1], [10, 0]], LABEL, SCORES, ONES)
    costs = found.mean_costs(LABEL, SCORES, ONES)
    assert costs == {"cost": 0.25, "cost_at_half": 5.0, "cost_always": 0.5, "cost_never": 5.0}
    assert found.in_words(costs) == (
        "1 from a score of 0.15 on, of least mean cost on the validation rows; mean cost of the test rows 0.25 "
        "(threshold 0.5: 5; every row 1: 0.5; every row 0: 5)"
    )


def test_a_threshold_between_neighbouring_numbers_separates_them() -> None:
    low = np.float32(0.3)
    scores = np.array([low, np.nextafter(low, np.float32(1))])
    rule = fit_decisions([[0, 1], [1, 0]], np.array([0, 1]), scores, np.ones(2))
    assert rule.applied(scores).tolist() == [0, 1]


def test_of_several_classes_the_one_of_least_expected_cost_is_taken() -> None:
    # To take c for a costs 10: 0.2 of a makes b, which costs 0.7, cheaper than c, which costs 2.2.
    scores = np.float32([[0.2, 0.2, 0.6], [0.0, 0.4, 0.6], [0.9, 0.05, 0.05]])
    rule = fit_decisions([[0, 1, 10], [1, 0, 1], [1, 1, 0]], np.array([2, 2, 0]), scores, np.ones(3), ("a", "b", "c"))
    assert rule.applied(scores).tolist() == [0, 2, 0]
    costs = rule.mean_costs(np.array([2, 2, 0]), scores, np.ones(3))
    assert costs == pytest.approx({"cost": 1 / 3, "cost_likeliest": 0.0, "cost_alike": 2 / 3})
    assert rule.in_graph({"scores": tf.constant(scores)}).numpy().tolist() == [b"a", b"c", b"a"]
    assert rule.output_type == "string"


def test_the_graph_decides_as_numpy_does_and_the_rule_is_kept(tmp_path: Path) -> None:
    assert Decisions.load(tmp_path) is None
    random = np.random.default_rng(1)
    scores = random.random(1_000).astype(np.float32)
    label = (random.random(1_000) < scores).astype(np.float32)
    fit_decisions([[0, 1], [4, 0]], label, scores, np.ones(1_000)).save(tmp_path)
    rule = Decisions.load(tmp_path)
    assert rule is not None
    assert rule.threshold == pytest.approx(0.2, abs=0.08)  # that of rates
    found = rule.in_graph({"score": tf.constant(scores)})
    assert found.dtype == tf.int32
    np.testing.assert_array_equal(found, rule.applied(scores))
