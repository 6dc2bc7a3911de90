"""F7, F15, T8: the better of the network and gradient boosting, and gradient boosting as a graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mirrorspark.training.results.evaluation.baselines import BaselineFeature, split_rows
from mirrorspark.training.results.evaluation.boosting import FittedBoosting, gradient_boosting
from mirrorspark.training.results.evaluation.model_choice import BASELINE, NETWORK, Choice, choose, trees_of

FEATURES = (
    BaselineFeature("distance", "value"),
    BaselineFeature("carrier", "id"),
    BaselineFeature("plane", "id"),
    BaselineFeature("previous", "ids"),
)


@pytest.mark.parametrize(
    ("task", "monitor", "network", "baseline", "registered", "metric"),
    [
        ("binary", "val_auc", {"auc": 0.70, "log_loss": 0.5}, {"auc": 0.71, "log_loss": 0.6}, BASELINE, "auc"),
        ("binary", "val_log_loss", {"auc": 0.70, "log_loss": 0.5}, {"auc": 0.71, "log_loss": 0.6}, NETWORK, "log_loss"),
        ("binary", "val_auc", {"auc": 0.70}, {"auc": 0.70}, NETWORK, "auc"),
        ("regression", "val_rmse", {"rmse": 2.0}, {"rmse": 1.5}, BASELINE, "rmse"),
        ("multi_class", "val_accuracy", {"accuracy": 0.8}, {"accuracy": 0.9}, BASELINE, "accuracy"),
        # Only the network has a loss, and a metric of the user's own.
        ("binary", "val_loss", {"auc": 0.6}, {"auc": 0.7}, BASELINE, "auc"),
        ("multi_class", "val_f1", {"log_loss": 0.6}, {"log_loss": 0.7}, NETWORK, "log_loss"),
    ],
)
def test_the_better_one_by_the_monitored_metric_is_registered_and_the_network_where_they_are_equal(
    task: str, monitor: str, network: Mapping[str, float], baseline: Mapping[str, float], registered: str, metric: str
) -> None:
    choice = choose(task, monitor, network, baseline)
    assert (choice.registered, choice.metric) == (registered, metric)


def test_a_choice_is_told_in_words_and_kept(tmp_path: Path) -> None:
    choice = choose("binary", "val_auc", {"auc": 0.7}, {"auc": 0.71})
    assert choice.in_words() == (
        "gradient boosting, better than the network on the validation rows (auc 0.7100 against 0.7000)"
    )
    assert choice.other == NETWORK
    choice.save(tmp_path)
    assert Choice.load(tmp_path) == choice


def rides(rows: int, seed: int, *, planes: int = 600) -> dict[str, np.ndarray]:
    """Return rows with few carriers (split as categories), many planes (ordered by frequency), lists, and gaps."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 5, rows)
    previous = random.integers(2, 10, (rows, 4))
    previous[np.arange(4) >= lengths[:, None]] = 0
    carrier, plane = random.integers(0, 20, rows), random.integers(0, planes, rows)
    distance = random.normal(size=rows).astype(np.float32)
    number = distance + 2.0 * (carrier % 2) + lengths - 3 + (plane == 0) + 0.3 * random.normal(size=rows)
    return {
        "distance": distance,
        "carrier": carrier,
        "plane": plane,
        "previous": previous,
        "late": (number > 0).astype(np.float32),
        "minutes": number,
        "way": np.digitize(number, [-2, 0, 2]).astype(np.int64),
        "sometimes": np.where(number > 0, 3, 1),
    }


def fitted(label: str, task: str) -> FittedBoosting:
    return gradient_boosting(split_rows(rides(6_000, 1), rides(1_000, 2), FEATURES, label, task=task), seed=0)


@pytest.mark.parametrize(
    ("label", "task", "classes"),
    [("late", "binary", 0), ("minutes", "regression", 0), ("way", "multi_class", 4), ("sometimes", "multi_class", 5)],
)
def test_the_graph_of_the_trees_scores_as_scikit_learn_does_also_unknown_ids_and_empty_lists(
    label: str, task: str, classes: int
) -> None:
    import tensorflow as tf

    from mirrorspark.models import boosted_trees

    model = fitted(label, task)
    rows = rides(3_000, 3, planes=5_000)
    rows["carrier"][:100] = 77
    expected = model.predict(rows)
    given: dict[str, Any] = {feature.name: tf.constant(rows[feature.name]) for feature in FEATURES}
    trees = boosted_trees.BoostedTrees(trees_of(model, classes))
    scores = next(iter(boosted_trees.predict(trees, given).values())).numpy()
    if classes:
        assert model.class_numbers is not None
        known = model.class_numbers
        assert scores.shape == (3_000, classes)
        np.testing.assert_array_equal(np.delete(scores, known, axis=1), 0)
        scores = scores[:, known]
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-7)
    empty = given | {"previous": tf.zeros([3_000, 0], tf.int64)}
    without = model.predict({**rows, "previous": np.zeros((3_000, 1), np.int64)})
    found = next(iter(boosted_trees.predict(trees, empty).values())).numpy()
    np.testing.assert_allclose(found[:, known] if classes else found, without, rtol=1e-6, atol=1e-7)
