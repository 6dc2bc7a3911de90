"""Losses of retrieval by name, with numbers worked by hand (S6)."""

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models import sasrec, two_tower, youtube_dnn
from mirrorspark.models.retrieval import losses
from mirrorspark.models.settings import LOSSES, ModelSettingsError
from tests.unit.models.test_youtube_dnn import MOVIES, batch, fitted  # noqa: F401 - a fixture

LN2 = math.log(2)
NOTHING = tf.float32.min


def logits(*rows: list[float]) -> tf.Tensor:
    return tf.constant(rows, tf.float32)


def test_the_softmax_compares_with_all_others() -> None:
    """e^own is 2 of 2 + 1 + 5, then 2 of 2 + 2."""
    others = logits([0.0, math.log(5)], [LN2, NOTHING])
    found = losses.softmax(tf.constant([LN2, LN2]), others)
    np.testing.assert_allclose(found, [2 * LN2, LN2], rtol=1e-6)


def test_bpr_is_the_mean_over_pairs() -> None:
    """The own candidate wins with probabilities 1/2 and 1/4."""
    found = losses.bpr(tf.constant([0.0, 1.0]), logits([0.0, math.log(3), NOTHING], [NOTHING] * 3))
    np.testing.assert_allclose(found, [1.5 * LN2, 0.0], rtol=1e-6)


def test_cosine_contrastive_counts_what_exceeds_the_margin() -> None:
    """0.2, and twice the mean of 0.1, 0.5 and 0."""
    found = losses.cosine_contrastive(tf.constant([0.8]), logits([0.5, 0.9, -0.2, NOTHING]), 0.4, 2.0)
    np.testing.assert_allclose(found, [0.6], rtol=1e-5)


@pytest.mark.parametrize(("calibration", "power"), [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)])
def test_gbce_lowers_the_weight_of_the_own_candidate_as_far_as_it_is_calibrated(
    calibration: float, power: float
) -> None:
    """One candidate of ten is drawn: 0.1 (0.5 (1 - 10) + 10) = 0.55; the others' losses are ln 2 and ln 4."""
    found = losses.gbce(tf.constant([0.0]), logits([0.0, math.log(3), NOTHING]), 0.1, calibration)
    np.testing.assert_allclose(found, [(power + 3) * LN2 / 3], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_what_counts_for_nothing_are_0(loss: str) -> None:
    arguments = {"cosine_contrastive": (0.4, 2.0), "gbce": (0.1, 0.5)}.get(loss, ())
    own, others = tf.constant([0.3]), logits([0.5, NOTHING])
    with tf.GradientTape() as tape:
        tape.watch([own, others])
        found = getattr(losses, loss)(own, others, *arguments)
    of_own, of_others = tape.gradient(found, [own, others])
    assert float(of_own[0]) < 0 < float(of_others[0, 0])
    assert float(of_others[0, 1]) == 0


@pytest.mark.parametrize(
    ("loss", "negatives"),
    [
        *((loss, 20) for loss in LOSSES),
        ("softmax", MOVIES),
        *(pytest.param(loss, MOVIES, marks=pytest.mark.full) for loss in LOSSES if loss != "softmax"),
    ],
)
def test_every_loss_learns_what_follows_what(fitted: FittedFeatures, loss: str, negatives: int) -> None:  # noqa: F811
    tf_keras.utils.set_random_seed(1)
    is_cosine = loss == "cosine_contrastive"
    settings = youtube_dnn.Settings(
        embedding_dim=16, hidden_units=(32,), negatives=negatives, loss=loss, cosine=is_cosine, negative_weight=10.0
    )
    model = youtube_dnn.build(settings, fitted, seed=1)
    model.compile(tf_keras.optimizers.Adam(0.02))
    watched = np.arange(2, MOVIES + 2)
    following = np.roll(watched, 1)
    rows = batch(np.stack([watched, 0 * watched, 0 * watched], 1).tolist(), following.tolist(), [1.0] * MOVIES)
    step = tf.function(model.train_step)
    for _ in range(300):
        step(rows)
    candidates = model.candidate_tower(tf.range(2, MOVIES + 2, dtype=tf.int64)).numpy()
    queries = youtube_dnn.predict(model, {"watched": rows[0]["watched"]}).numpy()
    assert np.mean((queries @ candidates.T).argmax(axis=1) + 2 == following) > 0.9
    if is_cosine:
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(candidates, axis=1), 1.0, rtol=1e-5)


def test_the_temperature_divides_the_logits(fitted: FittedFeatures) -> None:  # noqa: F811
    """One history and its movie among all: the loss of a softmax of cosines times 10."""
    settings = youtube_dnn.Settings(embedding_dim=4, hidden_units=(), negatives=MOVIES, cosine=True, temperature=0.1)
    model = youtube_dnn.build(settings, fitted, seed=3)
    rows = batch([[2, 3, 0]], [5], [1.0])
    cosines = (
        youtube_dnn.predict(model, {"watched": rows[0]["watched"]}).numpy()
        @ model.candidate_tower(tf.range(2, MOVIES + 2, dtype=tf.int64)).numpy().T
    )
    expected = np.log(np.exp(cosines[0] * 10).sum()) - cosines[0, 3] * 10
    assert float(model.compute_loss(rows, training=True)) == pytest.approx(expected, rel=1e-4)


def test_two_towers_of_cosines_have_length_1(rating_features: FittedFeatures) -> None:
    model = two_tower.build(two_tower.Settings(embedding_dim=4, cosine=True), rating_features, seed=1)
    queries = two_tower.predict(model, {"user": tf.constant([2, 3, 4], tf.int64)})
    candidates = model.candidate_tower(tf.constant([2, 3, 4], tf.int64))
    for found in (queries, candidates):
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, r"setting loss is 'hinge'; use one of \['softmax', 'bpr', 'cosine_contrastive', 'gbce'\]"),
        ({"loss": "cosine_contrastive"}, "set cosine to true and leave temperature at 1"),
        ({"margin": 1.5}, "setting margin is 1.5; use a cosine, from -1 to 1"),
        ({"negative_weight": 0.0}, "setting negative_weight is 0.0; use a number above 0"),
        ({"calibration": 1.5}, "setting calibration is 1.5; use a number from 0 to 1"),
        ({"temperature": 0.0}, "setting temperature is 0.0; use a number above 0"),
        ({"sampling": "random"}, r"setting sampling is 'random'; use one of \['auto', 'log_uniform', 'uniform', "),
        ({"hard_negatives": -1}, "setting hard_negatives is -1; use a number from 0 on"),
        ({"hard_negatives": 6, "negatives": 5}, "hard_negatives is 6, of 5 that are drawn; use fewer, or more"),
        ({"loss": "gbce", "sampling": "popularity"}, "but sampling is 'popularity'; set calibration to 0, or sampling"),
        ({"loss": "gbce", "hard_negatives": 2}, "but hard_negatives is 2; set calibration to 0, or sampling to"),
        ({"every_position": True, "sampling": "mixed"}, "set sampling to auto, uniform or popularity"),
    ],
)
def test_a_loss_that_cannot_work_is_named(options: dict[str, Any], message: str) -> None:
    model = sasrec if "every_position" in options else youtube_dnn
    with pytest.raises(ModelSettingsError, match=message):
        model.Settings(**options)


def test_what_does_without_the_calibration_of_gbce_can_be_chosen() -> None:
    """And of the batch's rows there are as there are, whatever is drawn."""
    two_tower.Settings(loss="gbce", calibration=0.0)
    two_tower.Settings(loss="gbce", sampling="uniform")
    two_tower.Settings(hard_negatives=2000)
