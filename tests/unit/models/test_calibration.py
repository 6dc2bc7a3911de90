"""#23: the fits of a calibration, and its map in NumPy and in TensorFlow."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from mirrorspark.models.calibration import Calibration, CalibrationError, fit, log_loss

LOGITS = np.linspace(-4, 4, 81)


def expected_rows(log_odds: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a positive and a negative row for each of the log-odds, whose weights give exactly these rates."""
    labels = np.repeat([1, 0], len(log_odds))
    return np.tile(log_odds, 2), labels, np.concatenate([rates, 1 - rates])


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_temperature_is_the_scale_of_the_log_odds(scale: float) -> None:
    logits, labels, weights = expected_rows(LOGITS * scale, expit(LOGITS))
    found = fit("temperature", logits, labels, weights)
    assert found.temperature == pytest.approx(scale, abs=1e-4)
    assert log_loss(found.applied(logits), labels, weights) <= log_loss(logits, labels, weights)


def test_the_temperature_of_several_classes_is_the_scale_of_their_logits() -> None:
    logits = np.random.default_rng(1).normal(size=(50, 3)) * 2
    rates = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows, labels = np.repeat(logits, 3, axis=0), np.tile([0, 1, 2], 50)
    # Rows of weight 0 would ask for the opposite.
    rows, labels = np.concatenate([3 * rows, -rows]), np.concatenate([labels, labels])
    weights = np.concatenate([rates.ravel(), np.zeros(150)])
    assert fit("temperature", rows, labels, weights).temperature == pytest.approx(3.0, abs=1e-4)


def test_a_temperature_that_would_be_zero_stays_at_its_bound() -> None:
    rightly = fit("temperature", np.array([-1.0, 1.0]), np.array([0, 1]), np.ones(2))
    assert rightly.temperature == pytest.approx(0.1, rel=1e-3)


def test_knots_are_the_blocks_of_scikit_learn_s_isotonic_regression() -> None:
    """Weighted rows with ties; a positive is added at the lowest log-odds and a negative at the highest."""
    random = np.random.default_rng(5)
    logits = random.integers(-6, 7, 600) / 2
    labels, weights = random.random(600) < expit(1.5 * logits - 0.5), random.integers(1, 4, 600).astype(float)
    knots = np.array(fit("isotonic", logits, labels, weights).knots)
    more = (np.append(logits, [-3, 3]), np.append(labels, [True, False]), np.append(weights, [weights.mean()] * 2))
    peer = IsotonicRegression().fit(more[0], more[1], sample_weight=more[2])
    levels = peer.predict(more[0])
    np.testing.assert_allclose(expit(knots[:, 1]), np.unique(levels), atol=1e-9)
    centres = [np.average(more[0][levels == level], weights=more[2][levels == level]) for level in np.unique(levels)]
    np.testing.assert_allclose(knots[:, 0], centres, atol=1e-9)
    assert 5 < len(knots) < 13


def test_blocks_with_a_steep_line_between_them_are_pooled() -> None:
    # The two at 0 and 0.01 rise by 2 in log-odds, 200 times as fast; worked by hand.
    points, rates = np.array([-2.0, 0.0, 0.01, 2.0]), expit(np.array([-2.0, -1.0, 1.0, 2.0]))
    # Enough rows that the two more do not count.
    rows = (np.tile(column, 10_000) for column in expected_rows(points, rates))
    knots = fit("isotonic", *rows).knots
    np.testing.assert_allclose(knots, [(-2, -2), (0.005, 0), (2, 2)], atol=2e-3)


def test_a_map_is_linear_between_its_knots_and_shifted_outside() -> None:
    found = Calibration("isotonic", knots=((-1.0, -3.0), (1.0, 1.0)))
    given = np.array([[-2.0, -1.0], [0.0, 0.5], [1.0, 5.0]])
    wanted = np.array([[-4.0, -3.0], [-1.0, 0.0], [1.0, 5.0]])
    np.testing.assert_allclose(found.applied(given), wanted)
    np.testing.assert_allclose(found.in_graph(tf.constant(given, tf.float32)), wanted)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
@pytest.mark.parametrize(("labels", "weights"), [([1, 1, 1], [1, 1, 1]), ([1, 0, 1], [1, 0, 1]), ([], [])])
def test_rows_of_one_class_are_refused(kind: str, labels: list[int], weights: list[float]) -> None:
    rows = np.zeros(len(labels)), np.array(labels), np.array(weights, float)
    with pytest.raises(CalibrationError, match=r"validation rows with a weight above 0 have fewer than two classes"):
        fit(kind, *rows)


ROWS = st.lists(
    st.tuples(
        st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0])), st.booleans(), st.sampled_from([0.5, 1.0])
    ),
    min_size=2,
).filter(lambda rows: len({label for _, label, _ in rows}) == 2)


@given(ROWS, st.sampled_from(["temperature", "isotonic"]))
def test_any_calibration_keeps_the_order_and_gives_probabilities(
    rows: list[tuple[float, bool, float]], kind: str
) -> None:
    """Whatever the rows: increasing, never 0 or 1, at most ten times as steep, the same in TensorFlow."""
    columns: Any = (np.array(column, float) for column in zip(*rows, strict=True))
    found = fit(kind, *columns)
    at = np.linspace(-35, 35, 2001)
    mapped = found.applied(at)
    rises = np.diff(mapped) / np.diff(at)
    assert np.isfinite(mapped).all()
    assert (rises > 0).all()
    assert rises.max() <= 10.01
    assert log_loss(mapped, at > 0, np.ones(len(at))) < np.inf
    np.testing.assert_allclose(found.in_graph(tf.constant(at)), mapped, rtol=1e-9, atol=1e-9)
    if kind == "isotonic":
        inside = expit([point for _, point in found.knots])
        assert ((inside > 0) & (inside < 1)).all()
        assert logit(inside) == pytest.approx([point for _, point in found.knots], rel=1e-6, abs=1e-6)
